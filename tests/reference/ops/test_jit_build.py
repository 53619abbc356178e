"""Operators compiled on first use: once, kept, and in spite of a cache that is broken, locked or shared."""

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
from tests.reference.conftest import batch_of, make_model, molecule

# a library that says in a file that it was loaded
TELLS = """
#include <cstdio>
#include <cstdlib>
struct Told {
  Told() { std::FILE* f = std::fopen(std::getenv("TOLD"), "a"); std::fputs("x", f); std::fclose(f); }
} told;
"""


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "small"
    folder.mkdir()
    (folder / "operators.cpp").write_text(TELLS)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("TOLD", str(tmp_path / "told"))
    return folder


def load(sources: Path) -> subprocess.CompletedProcess[str]:
    """In a process of its own, as dlopen gives back what a process has already."""
    script = f"""
        from pathlib import Path
        from harness.reference.ops import jit_build
        jit_build.load(Path({str(sources)!r}))
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def told(sources: Path) -> int:
    """How often the library has been loaded."""
    return len((sources.parent / "told").read_text())


def kept(sources: Path) -> list[Path]:
    return sorted((sources.parent / "cache").rglob("*.*"))


def test_it_is_compiled_once_and_then_taken_from_the_cache(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load(sources).returncode == 0
    (path,) = kept(sources)
    assert path.parent == sources.parent / "cache" / "gfm-harness"
    before = path.stat().st_mtime_ns
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert load(sources).returncode == 0
    assert told(sources) == 2
    assert path.stat().st_mtime_ns == before


def test_a_damaged_library_is_made_anew(sources: Path) -> None:
    """Empty, cut off, or with one byte changed: loading such a file can end the process."""
    assert load(sources).returncode == 0
    (path,) = kept(sources)
    sound = path.read_bytes()
    for damaged in (b"", sound[:5000], sound[:5000] + bytes([sound[5000] ^ 1]) + sound[5001:]):
        path.unlink()
        path.write_bytes(damaged)
        assert load(sources).returncode == 0
        assert jit_build._has_valid_digest(path)
    assert told(sources) == 4


def test_a_cache_that_cannot_be_written_is_done_without(sources: Path) -> None:
    """A file stands where the folder would, which stops the superuser too."""
    (sources.parent / "cache").write_text("")
    assert load(sources).returncode == 0
    assert told(sources) == 1
    assert not list(sources.parent.glob("gfm-harness-*"))


def test_a_sound_file_that_is_no_library_is_passed_by(sources: Path) -> None:
    assert load(sources).returncode == 0
    (path,) = kept(sources)
    path.unlink()
    path.write_bytes(b"no library" + jit_build.hashlib.sha256(b"no library").digest())
    assert load(sources).returncode == 0
    assert told(sources) == 2


def test_processes_at_once_do_not_disturb_each_other(sources: Path) -> None:
    with ThreadPoolExecutor(3) as pool:
        done = list(pool.map(load, [sources] * 3))
    assert [d.returncode for d in done] == [0, 0, 0], done
    assert told(sources) == 3
    (path,) = kept(sources)
    assert jit_build._has_valid_digest(path)


def test_other_sources_or_flags_are_another_library(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = {jit_build.fingerprint(sources)}
    monkeypatch.setattr(jit_build, "FLAGS", (*jit_build.FLAGS, "-DOTHER"))
    names.add(jit_build.fingerprint(sources))
    monkeypatch.setattr(torch, "__version__", "0.0")
    names.add(jit_build.fingerprint(sources))
    monkeypatch.setattr(jit_build, "_processor", lambda: "another")
    names.add(jit_build.fingerprint(sources))
    (sources / "more.h").write_text("")
    names.add(jit_build.fingerprint(sources))
    assert len(names) == 5


def test_a_source_that_does_not_compile_says_where(sources: Path) -> None:
    (sources / "operators.cpp").write_text("int wrong = ;")
    with pytest.raises(BuildError, match=r"fails: .*operators\.cpp:1:\d+: error: "):
        jit_build.load(sources)
    assert not kept(sources)


def test_without_a_compiler_the_stage_is_not_available(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages, "SOURCES", sources)
    model, batch = make_model(), batch_of([molecule(3)])
    predict = fused_messages()
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(BuildError, match=r"^no C\+\+ compiler 'no-such-compiler'$"):
        predict(model, batch, model.gate(batch.composition))
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", os.devnull)
    with pytest.raises(BuildError, match=r"^no C\+\+ compiler$"):
        predict(model, batch, model.gate(batch.composition))


def test_nothing_is_compiled_before_it_is_needed(sources: Path) -> None:
    script = "import harness.reference.programs.ladder.stages as i; [s.predict() for s in i.LADDER]"
    subprocess.run([sys.executable, "-c", script], check=True)
    assert not (sources.parent / "cache").exists()
