"""Training one model on the few labels of a task, stopped by structures held out of these, never by the test."""

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
from harness.reference.models.foundation import FoundationModel
from harness.reference.programs.transfer.target_scaling import TargetScaling

EVALUATED_AT_ONCE = 64
WARM_UP = 20
CLIP = 10.0


class TaskBatch(NamedTuple):
    """Some structures of a task: batch, target beyond the scaling's baseline [g], forces [n, 3] or None.

    pooled: [g, F], the encoder's features, where it need not run.
    """

    batch: Batch
    target: Tensor
    forces: Tensor | None
    pooled: Tensor | None


@dataclass(frozen=True)
class Fitted:
    """How a training ended. steps: taken. best_step: whose weights were kept. error: the validation loss there."""

    steps: int
    best_step: int
    error: float
    seconds: float


class TaskData:
    """Structures of a task with their graphs and labels, handed out in pieces of the type and place of `like`."""

    def __init__(
        self, graphs: Sequence[NeighbourList], beyond: Array, *, with_forces: bool, with_triplets: bool, like: Tensor
    ) -> None:
        self.graphs, self.beyond, self.like = list(graphs), beyond, like
        self.with_forces, self.with_triplets = with_forces, with_triplets
        self.pooled: Tensor | None = None

    def __len__(self) -> int:
        return len(self.graphs)

    def piece(self, picked: NDArray[np.int64]) -> TaskBatch:
        """The structures at these places."""
        chosen = [self.graphs[k] for k in picked]
        batch = build_batch(chosen, with_triplets=self.with_triplets).to(self.like.device, self.like.dtype)
        batch = batch._replace(head=torch.zeros_like(batch.head))
        forces = None
        if self.with_forces:
            labels = [g.structure.forces for g in chosen]
            forces = torch.from_numpy(np.concatenate([f for f in labels if f is not None])).to(self.like)
        pooled = None if self.pooled is None else self.pooled[torch.from_numpy(picked).to(self.like.device)]
        return TaskBatch(batch, torch.from_numpy(self.beyond[picked]).to(self.like), forces, pooled)

    def in_order(self) -> Iterator[TaskBatch]:
        """All of them."""
        for first in range(0, len(self), EVALUATED_AT_ONCE):
            yield self.piece(np.arange(first, min(len(self), first + EVALUATED_AT_ONCE)))

    def at_random(self, size: int, steps: int, rng: np.random.Generator) -> Iterator[TaskBatch]:
        """Pieces of that many, or of all if there are fewer, each structure once before any comes twice."""
        order: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        size = min(size, len(self))
        for _ in range(steps):
            if len(order) < size:
                order = np.concatenate([order, rng.permutation(len(self))])
            picked, order = np.unique(order[:size]), order[size:]
            yield self.piece(picked)

    @torch.no_grad()
    def remember(self, model: FoundationModel) -> None:
        """Keep the pooled features, so that an encoder that stays as it is runs once."""
        parts = [model.encode(p.batch, p.batch.positions, p.batch.shift) for p in self.in_order()]
        self.pooled = torch.cat(parts)


def predicted(
    model: FoundationModel, scaling: TargetScaling, piece: TaskBatch, *, create_graph: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Target beyond the baseline, [g], and forces [n, 3] where the piece has some."""
    if piece.forces is None:
        pooled = piece.pooled
        if pooled is None:
            pooled = model.encode(piece.batch, piece.batch.positions, piece.batch.shift)
        return _value(model, scaling, pooled, piece.batch), None
    with torch.enable_grad():
        positions = piece.batch.positions.detach().requires_grad_()
        value = _value(model, scaling, model.encode(piece.batch, positions, piece.batch.shift), piece.batch)
        (slope,) = torch.autograd.grad(value.sum(), positions, create_graph=create_graph)
    return value, -slope


def _value(model: FoundationModel, scaling: TargetScaling, pooled: Tensor, batch: Batch) -> Tensor:
    if scaling.extensive:
        return model.residual_energies(pooled, batch).squeeze(1)
    return model.scale[0] * model.heads.forward_one(0, pooled / batch.atoms.unsqueeze(-1))


def loss_of(
    model: FoundationModel, scaling: TargetScaling, piece: TaskBatch, force_weight: float, *, train: bool
) -> Tensor:
    """Mean absolute errors in the scaling's units: of the value, per atom if extensive, and of force components."""
    value, forces = predicted(model, scaling, piece, create_graph=train)
    off = (value - piece.target).abs()
    if scaling.extensive:
        off = off / piece.batch.atoms
    loss = off.mean() / scaling.unit
    if forces is not None and piece.forces is not None:
        loss = loss + force_weight * (forces - piece.forces).abs().mean() / scaling.unit_force
    return loss


def validation_loss(model: FoundationModel, scaling: TargetScaling, shelf: TaskData, force_weight: float) -> float:
    """The loss over a shelf."""
    with torch.no_grad():
        parts = [
            (len(p.target), float(loss_of(model, scaling, p, force_weight, train=False))) for p in shelf.in_order()
        ]
    return sum(n * loss for n, loss in parts) / len(shelf)


def fit(
    model: FoundationModel,
    parameters: Sequence[nn.Parameter],
    *,
    scaling: TargetScaling,
    train: TaskData,
    validation: TaskData,
    budget: Budget,
    seed: int,
) -> Fitted:
    """Train the parameters, and leave the model with the weights of the lowest validation loss."""
    began = time.monotonic()
    rng = np.random.default_rng(seed)
    best, best_step = validation_loss(model, scaling, validation, budget.force_weight), 0
    kept = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.AdamW(parameters, lr=budget.learning_rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _share(step, budget.steps))
    step = stale = 0
    for step, piece in enumerate(train.at_random(budget.batch_size, budget.steps, rng), start=1):
        optimizer.zero_grad()
        loss_of(model, scaling, piece, budget.force_weight, train=True).backward()
        norm = nn.utils.clip_grad_norm_(parameters, CLIP)
        if torch.isfinite(norm):
            optimizer.step()
        schedule.step()
        if step % budget.every and step < budget.steps:
            continue
        error = validation_loss(model, scaling, validation, budget.force_weight)
        stale = 0 if error < best else stale + 1
        if error < best:
            best, best_step, kept = error, step, copy.deepcopy(model.state_dict())
        if stale >= budget.patience:
            break
    model.load_state_dict(kept)
    return Fitted(step, best_step, best, time.monotonic() - began)


def _share(step: int, steps: int) -> float:
    """Of the full learning rate: a short rise, then half a cosine."""
    return min(1.0, (step + 1) / WARM_UP) * 0.5 * (1.0 + math.cos(math.pi * step / max(1, steps)))
