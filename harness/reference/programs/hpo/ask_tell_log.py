"""The order of a search's calls of its optimizer, which determines the next point."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ASKED, TOLD = "asked", "told"


@dataclass(frozen=True)
class AskTellLog:
    """An append-only file with the lines `asked 3 .` and `told 3 .` for the calls of trial 3."""

    path: Path

    def append(self, call: str, trial: int) -> None:
        """Append a line; the newline comes first, so that a line cut off by a full disk damages no other."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(f"\n{call} {trial} .")

    def read(self) -> list[tuple[str, int]]:
        """Return the calls with their trials, without incomplete lines; none if there is no file."""
        try:
            lines = self.path.read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return []
        words = [line.split() for line in lines]
        return [(w[0], int(w[1])) for w in words if len(w) == 3 and w[0] in (ASKED, TOLD) and w[2] == "."]
