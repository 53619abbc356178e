"""How tests let the harness judge a file, and what it must then say."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness.cli.main import main
from tests.conftest import ROOT

SUITE = """\
name: mine
title: A suite
program: ladder
parameters:
  workload: random
  checkpoint: painn-64
matrix:
  precision: [fp64, fp32]
"""
SYSTEM = """\
name: here
title: Here
scheduler: local
template: local.sh.j2
node: {ranks_per_node: 1}
launch: []
settings:
  threads: {help: threads, default: 1}
"""
# Of the processor: generous beside the few hundredths that most take, for machines slower than this.
SECONDS = 5.0
Judge = Callable[..., list[str]]


@pytest.fixture
def judge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Judge:
    """Run `harness WORDS` beside the given files and return what it says on stderr, all lines; the exit code is 2."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    (tmp_path / "local.sh.j2").write_text("true\n")

    def call(*words: str, **files: str | bytes) -> list[str]:
        for name, text in files.items():
            data = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
            (tmp_path / f"{name}.yaml").write_bytes(data)
        began = time.process_time()
        code = main(words)
        assert time.process_time() - began < SECONDS or sys.gettrace() is not None  # coverage takes its time
        said = capsys.readouterr().err
        assert code == 2, said
        lines = said.splitlines()
        assert all(line.startswith(("error: ", "    ")) for line in lines)
        assert all(line.isprintable() for line in lines)
        return lines

    return call


@dataclass(frozen=True)
class Slip:
    """One mistake: `old` of a good file becomes `new` (no old: new is appended), and what must be said of it."""

    old: str
    new: str
    expected: tuple[str, ...]

    def made_in(self, good: str) -> str:
        """The file with the mistake in it."""
        if not self.old:
            return f"{good}{self.new}\n"
        assert self.old in good
        return good.replace(self.old, self.new, 1) if self.new else good.replace(f"{self.old}\n", "", 1)

    def told(self, file: str, text: str) -> list[str]:
        """The lines that stderr must hold."""
        found = []
        for line in self.expected:
            number = int(line.split(":")[0])
            there = [*text.split("\n"), ""][number - 1].rstrip()
            shown = "".join(ch if ch.isprintable() else "?" for ch in there)[:120]
            found += [f"error: {file}:{line}", *([f"    {number} | {shown}"] if shown else [])]
        return found


def slips(name: str) -> list[Slip]:
    """Those of tests/config/bad_input/NAME.txt: removed lines begin with -, added ones with +, messages with >."""
    return list(_slips((ROOT / "tests" / "config" / "bad_input" / f"{name}.txt").read_text("utf-8")))


def _slips(text: str) -> Iterator[Slip]:
    for block in text.split("\n\n"):
        lines = block.strip("\n").split("\n")
        old, new, said = ([line[2:] for line in lines if line.startswith(sign)] for sign in ("- ", "+ ", "> "))
        assert len(old) + len(new) + len(said) == len(lines)
        yield Slip("\n".join(old), "\n".join(new), tuple(said))


def named(slip: Slip) -> str:
    """A slip as the name of a test."""
    return (slip.new or slip.old).strip()[:60]
