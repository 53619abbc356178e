"""C++ sources compiled on first use and kept, by what they are made of, for the next process."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

FLAGS = (
    "-std=c++20", "-O3", "-march=native", "-ffp-contract=fast", "-fno-math-errno", "-fopenmp", "-fPIC", "-shared",
    f"-D_GLIBCXX_USE_CXX11_ABI={int(torch._C._GLIBCXX_USE_CXX11_ABI)}",
)  # fmt: skip
DIGEST_BYTES = hashlib.sha256().digest_size


class CannotBuild(RuntimeError):
    """There is no compiler, or it does not make a library of the source; the first line says which."""


@functools.cache
def load(folder: Path) -> None:
    """Register the operators of folder/operators.cpp with torch, compiled if no sound library of it is in the cache.

    A cache that cannot be written, or holds what cannot be loaded, is passed by: then the library is made in a
    temporary folder, for this process alone. Raises CannotBuild.
    """
    name = f"{folder.name}-{fingerprint(folder)}.so"
    try:
        _load_from(cache_folder() / name, folder)
    except OSError:
        with tempfile.TemporaryDirectory(prefix="gfm-harness-") as temporary:
            try:
                _load_from(Path(temporary) / name, folder)
            except OSError as error:
                raise CannotBuild(f"the operators of {folder.name} cannot be loaded: {error}") from error


def cache_folder() -> Path:
    """Where compiled libraries are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gfm-harness"


def fingerprint(folder: Path) -> str:
    """Twenty hexadecimal digits of sources, flags, torch and processor."""
    sources = [path.read_text(encoding="utf-8") for path in sorted([*folder.glob("*.h"), *folder.glob("*.cpp")])]
    content = [*sources, *FLAGS, torch.__version__, _processor()]
    return hashlib.sha256("\n".join(content).encode()).hexdigest()[:20]


def _processor() -> str:
    """What -march=native depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine() + platform.processor()
    wanted = ("model name", "flags", "CPU part", "Features", "cpu\t")
    return "\n".join(sorted({line for line in lines if line.startswith(wanted)}))


def _load_from(path: Path, sources: Path) -> None:
    if not _is_sound(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _compile(sources / "operators.cpp", path)
    torch.ops.load_library(path)


def _is_sound(path: Path) -> bool:
    """Whether the file ends in the digest of what comes before: loading a cut-off library would end the process."""
    try:
        content = path.read_bytes()
    except OSError:
        return False
    return hashlib.sha256(content[:-DIGEST_BYTES]).digest() == content[-DIGEST_BYTES:]


def _compile(source: Path, path: Path) -> None:
    """Write the library and its digest under another name and move it: nobody sees half of it."""
    compiler = _compiler()
    root = Path(torch.__file__).parent
    handle, part = tempfile.mkstemp(suffix=".so", prefix=f"{path.stem}-", dir=path.parent)
    os.close(handle)
    try:
        command = [
            compiler, *FLAGS, str(source), "-o", part, f"-I{root}/include", f"-I{root}/include/torch/csrc/api/include",
            f"-L{root}/lib", "-ltorch_cpu", "-lc10",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise CannotBuild(f"{Path(compiler).name} fails: {_first_error(done.stderr)}")
        with Path(part).open("r+b") as file:
            digest = hashlib.sha256(file.read()).digest()
            file.write(digest)
        os.replace(part, path)
    finally:
        Path(part).unlink(missing_ok=True)


def _compiler() -> str:
    wanted = os.environ.get("CXX")
    found = next((path for c in ([wanted] if wanted else ["c++", "g++", "clang++"]) if (path := shutil.which(c))), None)
    if found is None:
        raise CannotBuild(f"no C++ compiler{f' {wanted!r}' if wanted else ''}")
    return found


def _first_error(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return next((line for line in lines if "error" in line.lower()), lines[-1] if lines else "no reason given")[:200]
