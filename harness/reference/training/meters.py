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
        early_stopping_patience: Number of epochs without a better validation loss after which the run ends; None if
            it runs all epochs.
        checkpoint_interval_s: Seconds between saved states, in addition to the state after every epoch.
        time_limit_minutes: Wall time after which the run saves its state and ends, so that another run can continue it.
    """

    epochs: int
    early_stopping_patience: int | None = None
    checkpoint_interval_s: float = 300.0
    time_limit_minutes: float | None = None


@dataclass
class ErrorMeter:
    """Mean errors of energy and forces for each head.

    Attributes:
        sums: [heads, 3] sum of the energy errors, sum of the force errors, and number of graphs.
    """

    sums: Tensor = field(default_factory=lambda: torch.zeros(len(HEADS), 3, dtype=torch.float64))

    def add(self, graph_errors: Errors, head: Tensor) -> None:
        """Add the errors of the g graphs of a batch, with the head of each graph in head [g]."""
        energy, force = (e.detach().double().cpu() for e in graph_errors)
        self.sums.index_add_(0, head.cpu(), torch.stack([energy, force, torch.ones_like(energy)], dim=1))

    def compute_head_means(self) -> dict[int, tuple[float, float, int]]:
        """Return the mean errors of energy and forces, and the number of graphs, of each head that has graphs."""
        heads = self.sums[:, 2].nonzero().flatten().tolist()
        return {h: (*(self.sums[h, :2] / self.sums[h, 2]).tolist(), int(self.sums[h, 2])) for h in heads}

    def compute_means(self, shares: Tensor | None = None) -> tuple[float, float]:
        """Return the mean errors of energy and forces over all heads.

        Args:
            shares: [heads] weight of each head; None for its number of graphs.
        """
        means, weights, _ = self._compute_means_and_weights(shares)
        energy, force = (weights @ means).tolist()
        return energy, force

    def compute_loss(self, objective: MultiTaskLoss, shares: Tensor | None = None) -> float:
        """Return the mean loss over all heads.

        Args:
            objective: The loss.
            shares: As in `compute_means`.
        """
        means, weights, heads = self._compute_means_and_weights(shares)
        return float(weights @ objective.per_graph(Errors(means[:, 0], means[:, 1]), heads))

    def _compute_means_and_weights(self, shares: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return the mean errors [h, 2], weights [h] that sum to 1, and indices [h] of the h heads with graphs."""
        heads = self.sums[:, 2].nonzero().flatten()
        weights = (self.sums[:, 2] if shares is None else shares)[heads]
        return self.sums[heads, :2] / self.sums[heads, 2:], weights / weights.sum(), heads


def measure_errors(model: FoundationModel, batches: Iterable[LabelledBatch]) -> ErrorMeter:
    """Return the errors of each head on labelled batches; the head of its dataset predicts each structure."""
    meter = ErrorMeter()
    for batch, labels in batches:
        energy, forces = predict_own_head(model, batch, create_graph=False)
        meter.add(compare_with_labels(energy, forces, batch, labels), batch.head)
    return meter


@dataclass
class TrainingProgress:
    """The progress of a run.

    Attributes:
        step: Number of steps taken.
        epoch: Number of epochs completed.
        best: Best validation loss.
        since_best: Number of epochs since the best validation loss.
        skipped: Number of consecutive steps that were skipped because their gradient was not finite.
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
