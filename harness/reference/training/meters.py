"""Limits and progress of a training run, and mean errors of each head."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from harness.reference.datasets.catalog import HEADS
from harness.reference.models.foundation import FoundationModel
from harness.reference.training.loader import LabelledBatch
from harness.reference.training.loss import Errors, MultiTaskLoss, compare_with_labels, predict_own_head


@dataclass(frozen=True)
class TrainingLimits:
    """When a run stops and saves.

    Attributes:
        epochs: Maximum number of epochs.
        early_stopping_patience: Epochs without a better validation loss that end the run, or None.
        checkpoint_interval_s: Seconds between states on disk, in addition to the one after every epoch.
        time_limit_minutes: Wall time after which the run saves its state and ends, so that another can continue it.
    """

    epochs: int
    early_stopping_patience: int | None = None
    checkpoint_interval_s: float = 300.0
    time_limit_minutes: float | None = None


@dataclass
class ErrorMeter:
    """Accumulate the errors of energy and force, and the number of graphs, of each head: sums [heads, 3]."""

    sums: Tensor = field(default_factory=lambda: torch.zeros(len(HEADS), 3, dtype=torch.float64))

    def add(self, graph_errors: Errors, head: Tensor) -> None:
        """Add the errors of the graphs of a batch, whose heads are head [g]."""
        energy, force = (e.detach().double().cpu() for e in graph_errors)
        self.sums.index_add_(0, head.cpu(), torch.stack([energy, force, torch.ones_like(energy)], dim=1))

    def rows(self) -> dict[int, tuple[float, float, int]]:
        """Return the mean errors of energy and force, and the number of graphs, by head."""
        heads = self.sums[:, 2].nonzero().flatten().tolist()
        return {h: (*(self.sums[h, :2] / self.sums[h, 2]).tolist(), int(self.sums[h, 2])) for h in heads}

    def overall(self, shares: Tensor | None = None) -> tuple[float, float]:
        """Return the mean errors of energy and force over heads, weighted by shares [heads] or by graphs."""
        means, weights, _ = self._means_and_weights(shares)
        energy, force = (weights @ means).tolist()
        return energy, force

    def loss(self, objective: MultiTaskLoss, shares: Tensor | None = None) -> float:
        """Return the loss over heads, weighted by shares [heads] or by graphs."""
        means, weights, heads = self._means_and_weights(shares)
        return float(weights @ objective.per_graph(Errors(means[:, 0], means[:, 1]), heads))

    def _means_and_weights(self, shares: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return for the h heads with graphs the mean errors [h, 2], weights [h] that sum to 1, and the heads [h]."""
        heads = self.sums[:, 2].nonzero().flatten()
        weights = (self.sums[:, 2] if shares is None else shares)[heads]
        return self.sums[heads, :2] / self.sums[heads, 2:], weights / weights.sum(), heads


def measure_errors(model: FoundationModel, batches: Iterable[LabelledBatch]) -> ErrorMeter:
    """Return the errors of each head on labelled batches, each structure predicted by the head of its dataset."""
    meter = ErrorMeter()
    for batch, labels in batches:
        energy, forces = predict_own_head(model, batch, create_graph=False)
        meter.add(compare_with_labels(energy, forces, batch, labels), batch.head)
    return meter


@dataclass
class TrainingProgress:
    """The progress of a run.

    Attributes:
        step: Steps taken.
        epoch: Epochs completed.
        best: Best validation loss.
        since_best: Epochs since the best validation loss.
        skipped: Consecutive steps skipped because of a gradient that is not finite.
        seconds: Seconds spent in the current epoch.
        error_sums: Sums of the ErrorMeter of the current epoch.
        history: Events of the completed epochs, which a resumed run writes again.
    """

    step: int = 0
    epoch: int = 0
    best: float = math.inf
    since_best: int = 0
    skipped: int = 0
    seconds: float = 0.0
    error_sums: Tensor = field(default_factory=lambda: ErrorMeter().sums)
    history: list[dict[str, Any]] = field(default_factory=list)
