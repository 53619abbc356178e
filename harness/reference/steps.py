"""What one rank does in data-parallel training: its share of the structures, its loss, and its steps, timed."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from harness.reference.batches import Batch
from harness.reference.corpus import Corpus
from harness.reference.models.foundation import FoundationModel
from harness.reference.store.sampling import Drawn, Sampler
from harness.reference.team import synchronize
from harness.reference.training import Labels, labelled, own_head

Labelled = tuple[Batch, Labels]


@dataclass(frozen=True)
class Feed:
    """Batches for every rank: what the sampler deals out, with neighbours and labels, on the device."""

    corpus: Corpus
    sampler: Sampler
    dtype: torch.dtype

    def dealt(self, step: int, rank: int) -> Drawn:
        """What one rank takes at one step, counted from the start of training."""
        return self.sampler.batch(step, rank)

    def batch(self, drawn: Drawn, device: torch.device) -> Labelled:
        """What was drawn, as one batch."""
        batch, labels = labelled(self.corpus.graphs(drawn), self.dtype)
        there = (t.to(device) for t in (labels.energy, labels.forces, labels.known))
        return batch.to(device, self.dtype), Labels(*there)


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
    """What one rank keeps of one pass: its time in seconds; of each step its time, its wait for data, its loss.

    busy: time without the wait; on a device, whose work goes on while the host waits, the whole time.
    """

    seconds: float
    steps: Tensor
    busy: Tensor
    waits: Tensor
    losses: Tensor


def waiting(batches: Iterable[Labelled], waits: list[float]) -> Iterator[Labelled]:
    """The batches, the seconds that each let itself be waited for being noted."""
    source = iter(batches)
    while True:
        began = time.perf_counter()
        try:
            batch = next(source)
        except StopIteration:
            return
        waits.append(time.perf_counter() - began)
        yield batch


def one_pass(
    replica: DistributedDataParallel,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[Labelled],
    device: torch.device,
    *,
    exchange: bool = True,
) -> Pass:
    """Train through the batches; without exchange each rank follows its own gradients."""
    watch = Stopwatch(device)
    losses: list[Tensor] = []
    waits: list[float] = []
    synchronize(device)
    began = time.perf_counter()
    watch.mark()
    with nullcontext() if exchange else replica.no_sync():
        for batch, labels in waiting(batches, waits):
            optimizer.zero_grad()
            loss = replica(batch, labels)
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
            watch.mark()
    synchronize(device)
    seconds = time.perf_counter() - began
    steps, waited = (torch.tensor(times, dtype=torch.float64) for times in (watch.laps(), waits))
    busy = steps - waited if device.type == "cpu" else steps
    return Pass(seconds, steps, busy, waited, torch.stack(losses))
