"""Mistakes in suites and systems, and the errors that the harness must report for them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Mistake:
    """A mistake: `old` in a valid file becomes `new` (without `old`, `new` is appended), with the expected messages."""

    old: str
    new: str
    expected: tuple[str, ...]

    def apply(self, good: str) -> str:
        """Return the valid text with the mistake in it."""
        if not self.old:
            return f"{good}{self.new}\n"
        assert self.old in good
        return good.replace(self.old, self.new, 1) if self.new else good.replace(f"{self.old}\n", "", 1)

    def list_messages(self, file: str, text: str) -> list[str]:
        """Return the lines that stderr must contain."""
        messages = []
        for line in self.expected:
            number = int(line.split(":")[0])
            source = [*text.split("\n"), ""][number - 1].rstrip()
            printable = "".join(ch if ch.isprintable() else "?" for ch in source)[:120]
            messages += [f"error: {file}:{line}", *([f"    {number} | {printable}"] if printable else [])]
        return messages


def load_mistakes(name: str) -> list[Mistake]:
    """Load tests/config/bad_input/NAME.txt: removed lines begin with -, added ones with +, messages with >."""
    return list(_parse_mistakes((ROOT / "tests" / "config" / "bad_input" / f"{name}.txt").read_text("utf-8")))


def _parse_mistakes(text: str) -> Iterator[Mistake]:
    for block in text.split("\n\n"):
        lines = block.strip("\n").split("\n")
        old, new, messages = ([line[2:] for line in lines if line.startswith(sign)] for sign in ("- ", "+ ", "> "))
        assert len(old) + len(new) + len(messages) == len(lines)
        yield Mistake("\n".join(old), "\n".join(new), tuple(messages))


def format_id(mistake: Mistake) -> str:
    """Return the id of the test of a mistake."""
    return (mistake.new or mistake.old).strip()[:60]
