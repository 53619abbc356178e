"""The retention of results: all of them, the best by some column, or those within bounds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from harness.protocol.programs.screening import Selection
from harness.reference.programs.screening.scoring import Scores


@dataclass(frozen=True)
class Retention:
    """The rule by which results are retained.

    Attributes:
        what: "all", "top" (the `count` lowest, or highest, by a column) or "within" (column between low and high).
        by: Name of the column.
        count: Number of results for "top".
        highest: Whether "top" retains the highest.
        low: Lower bound for "within".
        high: Upper bound for "within".
        most_distance: Largest distance from the training sets of a result that is retained.
    """

    what: Literal["all", "top", "within"] = "top"
    by: str = "beyond_ev_per_atom"
    count: int = 1000
    highest: bool = False
    low: float = -np.inf
    high: float = np.inf
    most_distance: float = np.inf

    @classmethod
    def from_parameters(cls, keep: Selection) -> Retention:
        """Return the retention of a case, with infinity for open bounds."""
        return cls(
            keep.what,
            keep.by,
            keep.count,
            keep.highest,
            -np.inf if keep.low is None else keep.low,
            np.inf if keep.high is None else keep.high,
            np.inf if keep.most_distance is None else keep.most_distance,
        )

    def select(self, scores: Scores) -> Scores:
        """Return the results to retain; among equal ones, the lower index is better."""
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
        """Return the results sorted by the column, best first."""
        values = scores.column(self.by)
        return scores[np.lexsort((scores.index, -values if self.highest else values))]
