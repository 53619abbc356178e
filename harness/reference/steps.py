"""What one rank does in data-parallel training: its share of the structures, its loss, and its steps, timed."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from harness.reference.graphs import Batch, neighbour_graph
from harness.reference.models.foundation import FoundationModel
from harness.reference.ranks import Place
from harness.reference.structures import Structure
from harness.reference.team import synchronize
from harness.reference.training import Labels, labelled, own_head

Labelled = tuple[Batch, Labels]


@dataclass(frozen=True)
class Pool:
    """All structures, and how they are dealt out and made into batches; cutoff in angstrom.

    Step by step each rank takes the next batch_size structures of an endless sequence of shuffled passes: one comes
    again only after all others have, and what all ranks take together depends on their total batch alone.
    """

    structures: tuple[Structure, ...]
    batch_size: int
    cutoff: float
    max_neighbours: int | None
    dtype: torch.dtype
    seed: int

    def dealt(self, step: int, place: Place) -> list[Structure]:
        """The structures of one rank at one step, counted from the start of training."""
        first = (step * place.size + place.rank) * self.batch_size
        count = len(self.structures)
        numbers = range(first, first + self.batch_size)
        return [self.structures[shuffled(count, self.seed, k // count)[k % count]] for k in numbers]

    def batch(self, structures: Sequence[Structure], device: torch.device) -> Labelled:
        """Structures with their neighbours and labels, on the device."""
        graphs = [neighbour_graph(s, cutoff=self.cutoff, max_neighbours=self.max_neighbours) for s in structures]
        batch, labels = labelled(graphs, self.dtype)
        there = (t.to(device) for t in (labels.energy, labels.forces, labels.known))
        return batch.to(device, self.dtype), Labels(*there)


@lru_cache(maxsize=4)
def shuffled(count: int, seed: int, turn: int) -> NDArray[np.int64]:
    """The order of the structures in one pass over them, [count]."""
    return np.random.default_rng((seed, turn)).permutation(count)


class GraphLoss(nn.Module):
    """The mean over graphs of |error of E/atom| + force_weight x mean |error of a force component|.

    Every graph weighs the same, whatever its size and whether its forces are known (if not, that term is 0). With as
    many graphs on every rank, the mean over ranks, which is what is exchanged, is therefore exactly the loss of all
    their graphs in one batch. The force gradient is taken here, inside what DistributedDataParallel wraps.
    """

    def __init__(self, model: FoundationModel, force_weight: float) -> None:
        super().__init__()
        self.model = model
        self.force_weight = force_weight

    def forward(self, batch: Batch, labels: Labels) -> Tensor:
        """The loss of a batch, a scalar; eV and angstrom."""
        energy, forces = own_head(self.model, batch, create_graph=True)
        energy_term = ((energy - labels.energy) / batch.atoms).abs()
        per_atom = ((forces - labels.forces) * labels.known).abs().mean(1)
        force_term = torch.zeros_like(energy).index_add(0, batch.graph, per_atom) / batch.atoms
        return (energy_term + self.force_weight * force_term).mean()


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """All numbers of all tensors in one row, whatever their layout."""
    return torch.cat([t.reshape(-1) for t in tensors])


def replicate(module: nn.Module) -> DistributedDataParallel:
    """The module with rank 0's parameters on every rank, gradients averaged; buffers, all constant, are left alone."""
    # Of one graph, the gradient of the last head layer's bias comes in an order of its own: 16 numbers to copy.
    warnings.filterwarnings("ignore", "Grad strides do not match", UserWarning)
    with warnings.catch_warnings():
        # Newer torch has another word for this option, older only this one.
        warnings.filterwarnings("ignore", ".*broadcast_buffers", FutureWarning)
        return DistributedDataParallel(module, broadcast_buffers=False, gradient_as_bucket_view=True)


class Stopwatch:
    """Marks along the work of a device, without waiting for it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._marks: list[Any] = []

    def mark(self) -> None:
        """Note that the work asked for so far ends here."""
        if self.device.type == "cpu":
            self._marks.append(time.perf_counter())
        else:
            event = torch.get_device_module(self.device).Event(enable_timing=True)
            event.record()
            self._marks.append(event)

    def laps(self) -> list[float]:
        """Seconds between one mark and the next, once the device has come to the last."""
        pairs = zip(self._marks[:-1], self._marks[1:], strict=True)
        if self.device.type == "cpu":
            return [after - before for before, after in pairs]
        return [before.elapsed_time(after) / 1e3 for before, after in pairs]


@dataclass(frozen=True)
class Pass:
    """What one rank keeps of one pass: its time in seconds, that of each step, [steps], and their losses, [steps]."""

    seconds: float
    steps: Tensor
    losses: Tensor


def one_pass(
    replica: DistributedDataParallel,
    optimizer: torch.optim.Optimizer,
    batches: Sequence[Labelled],
    device: torch.device,
    *,
    exchange: bool = True,
) -> Pass:
    """Train through the batches; without exchange each rank follows its own gradients."""
    watch = Stopwatch(device)
    losses = []
    synchronize(device)
    began = time.perf_counter()
    watch.mark()
    with nullcontext() if exchange else replica.no_sync():
        for batch, labels in batches:
            optimizer.zero_grad()
            loss = replica(batch, labels)
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
            watch.mark()
    synchronize(device)
    return Pass(time.perf_counter() - began, torch.tensor(watch.laps(), dtype=torch.float64), torch.stack(losses))
