"""Compile C++ operators on first use, and cache the libraries under a fingerprint of their sources.

`python -m harness.reference.ops.jit_build` compiles all of them; it needs no package but torch.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

FLAGS = (
    "-std=c++20", "-O3", "-march=native", "-ffp-contract=fast", "-fno-math-errno", "-fopenmp", "-fPIC", "-shared",
    f"-D_GLIBCXX_USE_CXX11_ABI={int(torch._C._GLIBCXX_USE_CXX11_ABI)}",
)  # fmt: skip
# A library ends with the SHA-256 digest of its other bytes, which the loader ignores.
DIGEST_BYTES = hashlib.sha256().digest_size


class BuildError(RuntimeError):
    """There is no compiler, the compiler fails, or the library cannot be loaded; the message gives the reason."""


@functools.cache
def load(folder: Path) -> None:
    """Register the operators of folder/operators.cpp with torch, and compile them unless the cache has a valid library.

    The library is loaded from a copy on this node, so that only one process of each node reads the cache; nodes may
    share the cache. If the cache cannot be written, or the library cannot be loaded, the library is built in a
    temporary folder for this process alone.

    Raises:
        BuildError: The library cannot be built or loaded.
    """
    name = get_library_name(folder)
    try:
        with _lock_node_folder() as node_folder:
            copy = node_folder / name
            if not _has_valid_digest(copy):
                with _replace(copy) as part:
                    shutil.copyfile(build(folder), part)
        torch.ops.load_library(copy)
    except OSError:
        try:
            with tempfile.TemporaryDirectory(prefix="gfm-harness-") as temporary:
                _compile(folder / "operators.cpp", Path(temporary) / name)
                torch.ops.load_library(Path(temporary) / name)
        except OSError as error:
            raise BuildError(f"the operators of {folder.name} cannot be loaded: {error}") from error


def build(folder: Path) -> Path:
    """Compile the operators of a folder, unless the cache has a valid library, and return the path of the library."""
    library = get_cache_folder() / get_library_name(folder)
    if not _has_valid_digest(library):
        library.parent.mkdir(parents=True, exist_ok=True)
        _compile(folder / "operators.cpp", library)
    return library


def get_library_name(folder: Path) -> str:
    """Return the name of the library of a folder, which depends on everything that the library depends on."""
    return f"{folder.name}-{compute_fingerprint(folder)}.so"


def get_cache_folder() -> Path:
    """Return the folder of compiled libraries."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gfm-harness"


def compute_fingerprint(folder: Path) -> str:
    """Return a hash of 20 hexadecimal digits over the sources, the flags, the version of torch and the processor.

    The sources are the .cpp files of the folder, and the headers of all sibling folders, which they may include.
    """
    paths = sorted([*folder.parent.glob("*/*.h"), *folder.glob("*.cpp")])
    sources = [path.read_text(encoding="utf-8") for path in paths]
    content = [*sources, *FLAGS, torch.__version__, _describe_processor()]
    return hashlib.sha256("\n".join(content).encode()).hexdigest()[:20]


def _describe_processor() -> str:
    """Return a description of the processor, as -march=native depends on it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine() + platform.processor()
    prefixes = ("model name", "flags", "CPU part", "Features", "cpu\t")
    return "\n".join(sorted({line for line in lines if line.startswith(prefixes)}))


@contextmanager
def _lock_node_folder() -> Iterator[Path]:
    """Yield the folder of this user's libraries on the disk of this node, while no other process is in this context.

    Raises:
        OSError: The folder cannot be used, or belongs to another user.
    """
    folder = Path(tempfile.gettempdir()) / f"gfm-harness-libraries-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise PermissionError(f"{folder} belongs to another user")
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder


def _has_valid_digest(path: Path) -> bool:
    """Return whether the file ends with a digest of its content; loading a truncated library would crash."""
    try:
        content = path.read_bytes()
    except OSError:
        return False
    return hashlib.sha256(content[:-DIGEST_BYTES]).digest() == content[-DIGEST_BYTES:]


def _compile(source: Path, path: Path) -> None:
    """Compile a library, and move it to its path with its digest in one step, so that no process loads half of it."""
    compiler = _find_compiler()
    root = Path(torch.__file__).parent
    with _replace(path) as part:
        command = [
            compiler, *FLAGS, str(source), "-o", part, f"-I{root}/include", f"-I{root}/include/torch/csrc/api/include",
            f"-L{root}/lib", "-ltorch_cpu", "-lc10",
        ]  # fmt: skip
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            raise BuildError(f"{Path(compiler).name} fails: {_find_first_error(result.stderr)}")
        with Path(part).open("r+b") as file:
            digest = hashlib.sha256(file.read()).digest()
            file.write(digest)


@contextmanager
def _replace(path: Path) -> Iterator[str]:
    """Yield the path of a temporary file, which replaces the file at `path` at the end unless there is an error."""
    handle, part = tempfile.mkstemp(suffix=".so", prefix=f"{path.stem}-", dir=path.parent)
    os.close(handle)
    try:
        yield part
        os.replace(part, path)
    finally:
        Path(part).unlink(missing_ok=True)


def _find_compiler() -> str:
    """Return the path of the compiler that CXX names, or else of the first common one."""
    requested = os.environ.get("CXX")
    names = [requested] if requested else ["c++", "g++", "clang++"]
    path = next((path for name in names if (path := shutil.which(name))), None)
    if path is None:
        raise BuildError(f"no C++ compiler{f' {requested!r}' if requested else ''}")
    return path


def _find_first_error(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return next((line for line in lines if "error" in line.lower()), lines[-1] if lines else "no reason given")[:200]


def main() -> None:
    """Compile all operators."""
    for path in sorted(Path(__file__).parent.glob("*/operators.cpp")):
        build(path.parent)


if __name__ == "__main__":
    main()
