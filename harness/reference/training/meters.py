"""How long a run is, what it has come to so far, and means of errors over what has been seen."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from harness.reference.datasets.heads import HEADS
from harness.reference.training.loss import Errors, Objective


@dataclass(frozen=True)
class Length:
    """epochs: at most. stop_after: epochs without a better validation loss that end the run, or None.
    checkpoint_s: seconds between states on disk, besides the one after every epoch. minutes: of wall time, after which
    the run leaves its state and ends, for another to go on."""

    epochs: int
    stop_after: int | None = None
    checkpoint_s: float = 300.0
    minutes: float | None = None


@dataclass
class Means:
    """Sums over the graphs of each head, over what has been seen: errors of energy and force, and how many."""

    sums: Tensor = field(default_factory=lambda: torch.zeros(len(HEADS), 3, dtype=torch.float64))

    def add(self, of_graphs: Errors, head: Tensor) -> None:
        """Count a batch in."""
        energy, force = (e.detach().double().cpu() for e in of_graphs)
        self.sums.index_add_(0, head.cpu(), torch.stack([energy, force, torch.ones_like(energy)], dim=1))

    def rows(self) -> dict[int, tuple[float, float, int]]:
        """Head -> mean errors of energy and force, structures."""
        seen = self.sums[:, 2].nonzero().flatten().tolist()
        return {h: (*(self.sums[h, :2] / self.sums[h, 2]).tolist(), int(self.sums[h, 2])) for h in seen}

    def overall(self, shares: Tensor | None = None) -> tuple[float, float]:
        """Mean errors of energy and force, every head counting by its share [heads], or by its graphs."""
        means, weights, _ = self._of_heads(shares)
        energy, force = (weights @ means).tolist()
        return energy, force

    def loss(self, objective: Objective, shares: Tensor | None = None) -> float:
        """The objective, every head counting by its share [heads], or by its graphs."""
        means, weights, heads = self._of_heads(shares)
        return float(weights @ objective.each(Errors(means[:, 0], means[:, 1]), heads))

    def _of_heads(self, shares: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Of the heads that were seen: mean errors [h, 2], weights [h] that sum to 1, and which they are [h]."""
        heads = self.sums[:, 2].nonzero().flatten()
        weights = (self.sums[:, 2] if shares is None else shares)[heads]
        return self.sums[heads, :2] / self.sums[heads, 2:], weights / weights.sum(), heads


@dataclass
class Progress:
    """Where a run stands. skipped: steps in a row whose gradient was no number. history: the events of the epochs
    behind it, which a run that goes on writes again."""

    step: int = 0
    epoch: int = 0
    best: float = math.inf
    since_best: int = 0
    skipped: int = 0
    seconds: float = 0.0
    means: Tensor = field(default_factory=lambda: Means().sums)
    history: list[dict[str, Any]] = field(default_factory=list)
