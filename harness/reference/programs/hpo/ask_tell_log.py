"""The order in which a search has asked for points and told results: what an optimizer's next point depends on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ASKED, TOLD = "asked", "told"


@dataclass(frozen=True)
class Order:
    """An append-only file of lines `asked 3 .`, `told 3 .`, with the numbers of trials."""

    path: Path

    def note(self, word: str, number: int) -> None:
        """Append a line; begun anew, so that a line before it that a full disk has torn stays by itself."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(f"\n{word} {number} .")

    def read(self) -> list[tuple[str, int]]:
        """The lines so far, torn ones left out; none if there is no file."""
        try:
            lines = self.path.read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return []
        words = [line.split() for line in lines]
        return [(w[0], int(w[1])) for w in words if len(w) == 3 and w[0] in (ASKED, TOLD) and w[2] == "."]
