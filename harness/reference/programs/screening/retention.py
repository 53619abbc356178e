"""Which candidates' results are kept: all of them, the best by some column, or those within bounds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from harness.reference.errors import InputError
from harness.reference.programs.screening.scoring import COLUMNS, Scores


@dataclass(frozen=True)
class Keeping:
    """what: "all", "top" (the `count` lowest, or highest, by a column) or "within" (column between low and high).

    most_distance: candidates that lie further from the training sets are not kept.
    """

    what: Literal["all", "top", "within"] = "top"
    by: str = "beyond_ev_per_atom"
    count: int = 1000
    highest: bool = False
    low: float = -np.inf
    high: float = np.inf
    most_distance: float = np.inf

    def __post_init__(self) -> None:
        if self.by not in COLUMNS:
            raise InputError(f"by {self.by!r}: there are {', '.join(COLUMNS)}")
        if self.count < 1 or not self.low <= self.high:
            raise InputError(f"count {self.count}, low {self.low}, high {self.high}: expected 1 or more, low to high")

    def of(self, scores: Scores) -> Scores:
        """What is kept of some results; of the best, the lower index wins a tie."""
        if self.most_distance < np.inf:
            scores = scores[scores.column("distance") <= self.most_distance]
        if self.what == "all":
            return scores
        values = scores.column(self.by)
        if self.what == "within":
            return scores[(values >= self.low) & (values <= self.high)]
        order = np.lexsort((scores.index, -values if self.highest else values))
        best: NDArray[np.int64] = np.sort(order[: self.count])
        return scores[best]

    def ranked(self, scores: Scores) -> Scores:
        """Best first."""
        values = scores.column(self.by)
        return scores[np.lexsort((scores.index, -values if self.highest else values))]
