"""Fine-tune one model on the few labels of a task, with early stopping on validation labels.

A baseline (a linear model of composition, or the mean) is subtracted from the target, and errors in the loss are
divided by the mean magnitude of the residuals. Both are fitted to training labels alone.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from harness.protocol.programs.transfer import Budget
from harness.reference.data.batch import Batch, build_batch
from harness.reference.data.neighbours import NeighbourList
from harness.reference.data.structure import Array
from harness.reference.errors import NotFinite
from harness.reference.models.foundation import FoundationModel
from harness.reference.programs.transfer.target_scaling import TargetScaling
from harness.reference.training.loss import backpropagate

EVALUATION_BATCH = 64
WARM_UP_STEPS = 20
CLIP_NORM = 10.0


class TaskBatch(NamedTuple):
    """A batch of a task with labels.

    Attributes:
        batch: The structures.
        target: [g] values minus the baseline: that of the composition, or the mean of an intensive target
            (`TargetScaling`).
        forces: [n, 3], or None if the task has none.
        pooled: [g, F] features of a frozen encoder, or None if it must run.
    """

    batch: Batch
    target: Tensor
    forces: Tensor | None
    pooled: Tensor | None


@dataclass(frozen=True)
class FitResult:
    """The result of a training run.

    Attributes:
        steps: Number of steps.
        best_step: The step with the lowest validation loss, whose weights the model has.
        seconds: Duration.
        skipped_steps: Number of steps that were skipped because their gradient was not finite.
    """

    steps: int
    best_step: int
    seconds: float
    skipped_steps: int = 0


class TaskData:
    """Structures of a task with their labels, in batches.

    Args:
        graphs: The structures with their neighbours.
        residuals: [s] values minus the baseline.
        with_forces: Whether batches include forces.
        with_triplets: Whether batches include pairs of edges.
        like: A tensor with the data type and the device of the batches.
    """

    def __init__(
        self, graphs: Sequence[NeighbourList], residuals: Array, *, with_forces: bool, with_triplets: bool, like: Tensor
    ) -> None:
        self.graphs, self.residuals, self.like = list(graphs), residuals, like
        self.with_forces, self.with_triplets = with_forces, with_triplets
        self.cached_features: Tensor | None = None

    def __len__(self) -> int:
        return len(self.graphs)

    def batch(self, indices: NDArray[np.int64]) -> TaskBatch:
        """Return the structures at these positions as one batch."""
        graphs = [self.graphs[k] for k in indices]
        batch = build_batch(graphs, with_triplets=self.with_triplets).to(self.like.device, self.like.dtype)
        batch = batch._replace(head=torch.zeros_like(batch.head))
        forces = None
        if self.with_forces:
            labels = [g.structure.forces for g in graphs]
            forces = torch.from_numpy(np.concatenate([f for f in labels if f is not None])).to(self.like)
        pooled = (
            None
            if self.cached_features is None
            else self.cached_features[torch.from_numpy(indices).to(self.like.device)]
        )
        return TaskBatch(batch, torch.from_numpy(self.residuals[indices]).to(self.like), forces, pooled)

    def batches(self) -> Iterator[TaskBatch]:
        """Yield all structures in order."""
        for first in range(0, len(self), EVALUATION_BATCH):
            yield self.batch(np.arange(first, min(len(self), first + EVALUATION_BATCH)))

    def random_batches(self, size: int, steps: int, rng: np.random.Generator) -> Iterator[TaskBatch]:
        """Yield random batches of at most `size` structures, in passes over all structures.

        A batch that spans two passes contains no structure twice, so it may be smaller.
        """
        order: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        size = min(size, len(self))
        for _ in range(steps):
            if len(order) < size:
                order = np.concatenate([order, rng.permutation(len(self))])
            indices, order = np.unique(order[:size]), order[size:]
            yield self.batch(indices)

    @torch.no_grad()
    def cache_features(self, model: FoundationModel) -> None:
        """Store the pooled features of all structures, so that a frozen encoder runs once."""
        self.cached_features = torch.cat(
            [model.encode(b.batch, b.batch.positions, b.batch.shift) for b in self.batches()]
        )


def predict(
    model: FoundationModel, scaling: TargetScaling, labelled: TaskBatch, *, create_graph: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Predict values minus the baseline [g], and forces [n, 3] if the batch has some."""
    batch = labelled.batch
    if labelled.forces is None:
        pooled = labelled.pooled
        if pooled is None:
            pooled = model.encode(batch, batch.positions, batch.shift)
        return _predict_value(model, scaling, pooled, batch), None
    with torch.enable_grad():
        positions = batch.positions.detach().requires_grad_()
        value = _predict_value(model, scaling, model.encode(batch, positions, batch.shift), batch)
        (gradient,) = torch.autograd.grad(value.sum(), positions, create_graph=create_graph)
    return value, -gradient


def _predict_value(model: FoundationModel, scaling: TargetScaling, pooled: Tensor, batch: Batch) -> Tensor:
    if scaling.extensive:
        return model.residual_energies(pooled, batch).squeeze(1)
    return model.scale[0] * model.heads.forward_one(0, model.select_features(pooled) / batch.n_atoms.unsqueeze(-1))


def compute_loss(
    model: FoundationModel, scaling: TargetScaling, labelled: TaskBatch, force_weight: float, *, train: bool
) -> Tensor:
    """Return the MAE of values, per atom if extensive, plus force_weight times that of force components, a scalar.

    Both are in the units of the scaling.
    """
    value, forces = predict(model, scaling, labelled, create_graph=train)
    error = (value - labelled.target).abs()
    if scaling.extensive:
        error = error / labelled.batch.n_atoms
    loss = error.mean() / scaling.unit
    if forces is not None and labelled.forces is not None:
        loss = loss + force_weight * (forces - labelled.forces).abs().mean() / scaling.unit_force
    return loss


def compute_validation_loss(
    model: FoundationModel, scaling: TargetScaling, data: TaskData, force_weight: float
) -> float:
    """Return the mean loss over all structures of the data."""
    with torch.no_grad():
        parts = [
            (len(b.target), float(compute_loss(model, scaling, b, force_weight, train=False))) for b in data.batches()
        ]
    return sum(n * loss for n, loss in parts) / len(data)


def fit(
    model: FoundationModel,
    parameters: Sequence[nn.Parameter],
    *,
    scaling: TargetScaling,
    train: TaskData,
    validation: TaskData,
    budget: Budget,
    seed: int,
) -> FitResult:
    """Train the parameters, and restore the weights of the lowest validation loss.

    Args:
        model: The model, changed in place.
        parameters: The parameters to train.
        scaling: The scaling of the target.
        train: Training structures.
        validation: Validation structures.
        budget: Number of steps, batch size, learning rate, force weight, validation interval and patience, which is a
            number of validations.
        seed: Seed of the batches.

    Raises:
        NotFinite: No validation loss is finite.
    """
    started = time.monotonic()
    rng = np.random.default_rng(seed)
    best, best_step = compute_validation_loss(model, scaling, validation, budget.force_weight), 0
    if math.isnan(best):
        best = math.inf  # so that any number is lower
    best_state = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.AdamW(parameters, lr=budget.learning_rate, weight_decay=1e-2, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: _compute_learning_rate_factor(step, budget.steps)
    )
    step = stale = skipped_steps = 0
    for step, labelled in enumerate(train.random_batches(budget.batch_size, budget.steps, rng), start=1):
        optimizer.zero_grad()
        backpropagate(compute_loss(model, scaling, labelled, budget.force_weight, train=True), model)
        norm = nn.utils.clip_grad_norm_(parameters, CLIP_NORM)
        if torch.isfinite(norm):
            optimizer.step()
        else:
            skipped_steps += 1
        schedule.step()
        if step % budget.validation_interval_steps and step < budget.steps:
            continue
        error = compute_validation_loss(model, scaling, validation, budget.force_weight)
        stale = 0 if error < best else stale + 1
        if error < best:
            best, best_step, best_state = error, step, copy.deepcopy(model.state_dict())
        if stale >= budget.early_stopping_patience:
            break
    if not math.isfinite(best):
        raise NotFinite(f"no validation loss is finite in {step} steps")
    model.load_state_dict(best_state)
    return FitResult(step, best_step, time.monotonic() - started, skipped_steps)


def _compute_learning_rate_factor(step: int, steps: int) -> float:
    """Return the factor of the learning rate at a step: a linear warm-up times a cosine decay to zero."""
    return min(1.0, (step + 1) / WARM_UP_STEPS) * 0.5 * (1.0 + math.cos(math.pi * step / max(1, steps)))
