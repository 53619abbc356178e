"""Operators are compiled once, on first use, even if the cache is damaged, read-only or shared."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from harness.reference.ops import jit_build, messages
from harness.reference.ops.jit_build import BuildError
from harness.reference.programs.ladder.stages import fused_messages
from tests.reference.conftest import make_batch, make_model, make_molecule

# The library appends a character to a file when it is loaded.
LIBRARY_SOURCE = """
#include <cstdio>
#include <cstdlib>
struct LoadCounter {
  LoadCounter() { std::FILE* f = std::fopen(std::getenv("LOADS_FILE"), "a"); std::fputs("x", f); std::fclose(f); }
} load_counter;
"""


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "small"
    folder.mkdir()
    (folder / "operators.cpp").write_text(LIBRARY_SOURCE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("LOADS_FILE", str(tmp_path / "loads"))
    return folder


def load_in_new_process(sources: Path) -> subprocess.CompletedProcess[str]:
    """Load the library in a new process, since dlopen reuses a library that is already loaded."""
    script = f"""
        from pathlib import Path
        from harness.reference.ops import jit_build
        jit_build.load(Path({str(sources)!r}))
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def count_loads(sources: Path) -> int:
    """Return how often the library has been loaded."""
    return len((sources.parent / "loads").read_text())


def list_cached_files(sources: Path) -> list[Path]:
    return sorted((sources.parent / "cache").rglob("*.*"))


def get_node_folder(sources: Path) -> Path:
    return sources.parent / f"gfm-harness-libraries-{os.getuid()}"


def test_a_library_is_compiled_once_and_then_loaded_from_the_cache(
    sources: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load_in_new_process(sources).returncode == 0
    (path,) = list_cached_files(sources)
    assert path.parent == sources.parent / "cache" / "gfm-harness"
    before = path.stat().st_mtime_ns
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert load_in_new_process(sources).returncode == 0
    assert count_loads(sources) == 2
    assert path.stat().st_mtime_ns == before


def test_a_node_reads_the_cache_once(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other ranks of a node load its copy, so that they do not open files on a disk that all nodes share."""
    assert load_in_new_process(sources).returncode == 0
    (cached,) = list_cached_files(sources)
    (copy,) = get_node_folder(sources).glob("*.so")
    assert copy.read_bytes() == cached.read_bytes()
    cached.unlink()
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert load_in_new_process(sources).returncode == 0
    assert count_loads(sources) == 2


def test_a_damaged_library_is_rebuilt(sources: Path) -> None:
    """The file is empty, truncated or has one changed byte; loading such a file can end the process."""
    assert load_in_new_process(sources).returncode == 0
    (path,) = list_cached_files(sources)
    intact = path.read_bytes()
    for damaged in (b"", intact[:5000], intact[:5000] + bytes([intact[5000] ^ 1]) + intact[5001:]):
        for file in (path, get_node_folder(sources) / path.name):
            file.unlink()
            file.write_bytes(damaged)
        assert load_in_new_process(sources).returncode == 0
        assert jit_build._has_valid_digest(path)
    assert count_loads(sources) == 4


def test_a_cache_that_cannot_be_written_is_bypassed(sources: Path) -> None:
    """A file has the name of the cache folder, so that not even root can write the cache."""
    (sources.parent / "cache").write_text("")
    assert load_in_new_process(sources).returncode == 0
    assert count_loads(sources) == 1
    assert list(sources.parent.glob("gfm-harness-*")) == [get_node_folder(sources)]


def test_file_with_a_valid_digest_that_is_no_library_is_bypassed(sources: Path) -> None:
    assert load_in_new_process(sources).returncode == 0
    (path,) = list_cached_files(sources)
    copy = get_node_folder(sources) / path.name
    copy.unlink()
    copy.write_bytes(b"no library" + jit_build.hashlib.sha256(b"no library").digest())
    assert load_in_new_process(sources).returncode == 0
    assert count_loads(sources) == 2


def test_concurrent_builds_do_not_interfere(sources: Path) -> None:
    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(load_in_new_process, [sources] * 3))
    assert [d.returncode for d in results] == [0, 0, 0], results
    assert count_loads(sources) == 3
    (path,) = list_cached_files(sources)
    assert jit_build._has_valid_digest(path)


def test_fingerprint_depends_on_sources_flags_torch_and_processor(
    sources: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fingerprints = {jit_build.compute_fingerprint(sources)}
    monkeypatch.setattr(jit_build, "FLAGS", (*jit_build.FLAGS, "-DOTHER"))
    fingerprints.add(jit_build.compute_fingerprint(sources))
    monkeypatch.setattr(torch, "__version__", "0.0")
    fingerprints.add(jit_build.compute_fingerprint(sources))
    monkeypatch.setattr(jit_build, "_describe_processor", lambda: "another")
    fingerprints.add(jit_build.compute_fingerprint(sources))
    (sources / "more.h").write_text("")
    fingerprints.add(jit_build.compute_fingerprint(sources))
    assert len(fingerprints) == 5


def test_compiler_error_is_reported_with_its_location(sources: Path) -> None:
    (sources / "operators.cpp").write_text("int wrong = ;")
    with pytest.raises(BuildError, match=r"fails: .*operators\.cpp:1:\d+: error: "):
        jit_build.load(sources)
    assert not list_cached_files(sources)


def test_without_a_compiler_the_stage_is_unavailable(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages, "SOURCES", sources)
    model, batch = make_model(), make_batch([make_molecule(3)])
    predict = fused_messages()
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(BuildError, match=r"^no C\+\+ compiler 'no-such-compiler'$"):
        predict(model, batch, model.gate(batch.composition))
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", os.devnull)
    with pytest.raises(BuildError, match=r"^no C\+\+ compiler$"):
        predict(model, batch, model.gate(batch.composition))


def test_no_operator_is_compiled_before_its_first_use(sources: Path) -> None:
    script = "import harness.reference.programs.ladder.stages as i; [s.predict() for s in i.LADDER]"
    subprocess.run([sys.executable, "-c", script], check=True)
    assert not (sources.parent / "cache").exists()
