"""Limits and progress of a training run, and mean errors of each head."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from harness.reference.data.batch import Batch
from harness.reference.datasets.catalog import HEADS
from harness.reference.models.foundation import FoundationModel
from harness.reference.training.loader import LabelledBatch
from harness.reference.training.loss import (
    Errors,
    Labels,
    MultiTaskLoss,
    compare_with_labels,
    find_known_forces,
    predict_own_head,
)


@dataclass(frozen=True)
class TrainingLimits:
    """When a run stops and saves.

    Attributes:
        epochs: Maximum number of epochs.
        early_stopping_patience: Number of epochs without a better validation loss after which the run ends; None if
            it runs all epochs.
        checkpoint_interval_s: Seconds between saved states, in addition to the state after every epoch.
        time_limit_minutes: Wall time after which the run saves its state and ends, so that another run can continue it.
            Several ranks agree on it only every AGREEMENT_STEPS steps, so that they may exceed it by as many steps.
    """

    epochs: int
    early_stopping_patience: int | None = None
    checkpoint_interval_s: float = 300.0
    time_limit_minutes: float | None = None


@dataclass
class ErrorMeter:
    """Mean errors of energy and forces for each head; a mean over nothing is None.

    Attributes:
        sums: [heads, 4] sum of the energy errors, sum of the force errors, number of graphs, and number of graphs with
            known forces.
    """

    sums: Tensor = field(default_factory=lambda: torch.zeros(len(HEADS), 4, dtype=torch.float64))

    def add(self, graph_errors: Errors, batch: Batch, labels: Labels) -> None:
        """Add the errors of the graphs of a batch."""
        columns = [*graph_errors, torch.ones_like(graph_errors.energy), find_known_forces(batch, labels)]
        self.sums.index_add_(0, batch.head.cpu(), torch.stack([c.detach().double().cpu() for c in columns], dim=1))

    def compute_head_means(self) -> dict[int, tuple[float, float | None, int]]:
        """Return the mean errors of energy and forces, and the number of graphs, of each head that has graphs."""
        rows = {head: row for head, row in enumerate(self.sums.tolist()) if row[2]}
        return {
            head: (energy / graphs, force / known if known else None, int(graphs))
            for head, (energy, force, graphs, known) in rows.items()
        }

    def compute_means(self, shares: Tensor | None = None) -> tuple[float | None, float | None]:
        """Return the mean errors of energy and forces over all heads.

        Args:
            shares: [heads] weight of each head; None for its number of graphs.
        """
        energy, force = (self._average(self.sums[:, k], self.sums[:, k + 2], shares) for k in (0, 1))
        return energy, force

    @staticmethod
    def _average(error_sums: Tensor, counts: Tensor, shares: Tensor | None) -> float | None:
        """Return the mean over the heads with a count and a share."""
        weights = counts if shares is None else shares * (counts > 0)
        heads = weights.nonzero().flatten()
        if not len(heads):
            return None
        return float(weights[heads] @ (error_sums / counts)[heads] / weights.sum())

    def compute_loss(self, objective: MultiTaskLoss, shares: Tensor | None = None) -> float | None:
        """Return the mean loss over all heads, in which unknown forces count as 0, as in the loss of a step.

        Args:
            objective: The loss.
            shares: As in `compute_means`.
        """
        graphs = self.sums[:, 2]
        means = self.sums[:, :2] / graphs.clamp_min(1).unsqueeze(1)
        losses = objective.per_graph(Errors(means[:, 0], means[:, 1]), torch.arange(len(means)))
        return self._average(losses * graphs, graphs, shares)


def measure_errors(model: FoundationModel, batches: Iterable[LabelledBatch]) -> ErrorMeter:
    """Return the errors of each head on labelled batches; the head of its dataset predicts each structure."""
    meter = ErrorMeter()
    for batch, labels in batches:
        energy, forces = predict_own_head(model, batch, create_graph=False)
        meter.add(compare_with_labels(energy, forces, batch, labels), batch, labels)
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
        waited_s: Seconds of waiting for data in the current epoch.
        error_sums: Sums of the ErrorMeter of the current epoch.
        history: Events of the completed epochs, which a resumed run writes again.
    """

    step: int = 0
    epoch: int = 0
    best: float = math.inf
    since_best: int = 0
    skipped: int = 0
    seconds: float = 0.0
    waited_s: float = 0.0
    error_sums: Tensor = field(default_factory=lambda: ErrorMeter().sums)
    history: list[dict[str, Any]] = field(default_factory=list)
