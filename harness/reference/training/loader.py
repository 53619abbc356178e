"""What one rank does in data-parallel training: its share of the structures, and its steps, timed."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from harness.reference.data.batch import Batch
from harness.reference.data.neighbours import Graph
from harness.reference.datasets.collection import Corpus
from harness.reference.datasets.statistics.reference_energies import ELEMENTS, State
from harness.reference.distributed.group import synchronize
from harness.reference.distributed.launch import Place
from harness.reference.models.foundation import FoundationModel
from harness.reference.storage.sampling.sampler import Drawn, Sampler
from harness.reference.training.loss import Labels, Objective, labelled

Labelled = tuple[Batch, Labels]
SCALE_FLOOR_EV = 0.05
EVERY_BATCH = 32


@dataclass(frozen=True)
class Feed:
    """Batches for every rank: what the sampler deals out, with neighbours and labels, on the device.

    references [heads, 119] eV, in double precision on the CPU: what comes off the energies.
    """

    corpus: Corpus
    sampler: Sampler
    dtype: torch.dtype
    references: Tensor
    with_triplets: bool = False
    balance: str = "none"

    def dealt(self, step: int, rank: int) -> Drawn:
        """What one rank takes at one step, counted from where the sampler stands: as many graphs, or as many atoms."""
        return self.sampler.batch(step, rank, self._atoms if self.balance == "atoms" else None)

    def _atoms(self, drawn: Drawn) -> NDArray[np.float64]:
        return self.corpus.atoms(drawn).astype(np.float64)

    def every(self, limit: int, device: torch.device, share: Place | None = None) -> Iterator[Labelled]:
        """The first `limit` structures of every set, or the share of one rank, in batches of one set each.

        Without those that hold an element which the training set lacks: nothing is known of it.
        """
        share = share or Place()
        for k, dataset in enumerate(self.corpus.datasets):
            mine = np.arange(share.rank, min(len(dataset.samples), limit), share.size)
            for first in range(0, len(mine), EVERY_BATCH):
                own = mine[first : first + EVERY_BATCH]
                graphs = self.corpus.graphs(Drawn(np.full(len(own), k), own))
                known = [g for g in graphs if dataset.references.knows(g.structure.numbers)]
                if known:
                    yield self.collated(known, device)

    def batch(self, drawn: Drawn, device: torch.device) -> Labelled:
        """What was drawn, as one batch."""
        return self.collated(self.corpus.graphs(drawn), device)

    def collated(self, graphs: Sequence[Graph], device: torch.device) -> Labelled:
        """Graphs as one batch with their labels."""
        batch, labels = labelled(graphs, self.references, self.dtype, with_triplets=self.with_triplets)
        return batch.to(device, self.dtype), Labels(*(t.to(device) for t in labels))


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


def adopted(model: FoundationModel, corpus: Corpus) -> Tensor:
    """Give each head its dataset's references; returns them, [heads, 119] eV in double precision."""
    table = torch.zeros(model.config.heads, ELEMENTS, dtype=torch.float64)
    for dataset in corpus.datasets:
        found = dataset.references
        model.adopt(
            dataset.head, found.energy_ev, max(found.mae_ev_per_atom, SCALE_FLOOR_EV), found.state > State.ABSENT
        )
        table[dataset.head] = torch.from_numpy(np.nan_to_num(found.energy_ev))
    return table


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
    objective: Objective,
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
            loss = objective(replica(batch, labels), batch.head)
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
            watch.mark()
    synchronize(device)
    seconds = time.perf_counter() - began
    steps, waited = (torch.tensor(times, dtype=torch.float64) for times in (watch.laps(), waits))
    busy = steps - waited if device.type == "cpu" else steps
    return Pass(seconds, steps, busy, waited, torch.stack(losses))
