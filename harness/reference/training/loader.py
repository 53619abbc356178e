"""The batches of one rank in data-parallel training, and an epoch over them that times each step."""

from __future__ import annotations

import math
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
from harness.reference.data.neighbours import NeighbourList
from harness.reference.datasets.catalog import HEADS
from harness.reference.datasets.collection import DatasetCollection
from harness.reference.datasets.reference_energies import ELEMENT_SLOTS, ElementState
from harness.reference.distributed.group import synchronize
from harness.reference.distributed.launch import RankInfo
from harness.reference.models.foundation import FoundationModel
from harness.reference.storage.sampling.sampler import MixtureSampler, SampleIndices
from harness.reference.training.loss import Labels, MultiTaskLoss, backpropagate, collate_labelled

LabelledBatch = tuple[Batch, Labels]

MIN_SCALE_EV = 0.05  # the smallest scale of a head's output, as a dataset may have little variation
EVALUATION_BATCH = 32


@dataclass(frozen=True)
class BatchLoader:
    """A loader of batches with neighbours and labels, of the structures that the sampler assigns to each rank.

    Attributes:
        collection: The datasets.
        sampler: Samples structures, and assigns them to ranks.
        dtype: Type of batches and labels.
        references: [heads, 119] eV in double precision on the CPU, subtracted from the energies.
        with_triplets: Whether batches include pairs of edges.
        balance: "none" for equal numbers of graphs per rank, "atoms" for similar numbers of atoms.
    """

    collection: DatasetCollection
    sampler: MixtureSampler
    dtype: torch.dtype
    references: Tensor
    with_triplets: bool = False
    balance: str = "none"

    @property
    def steps_per_epoch(self) -> int:
        """The number of steps of a whole epoch."""
        return math.ceil(self.sampler.length / (self.sampler.ranks * self.sampler.batch_size))

    @property
    def head_weights(self) -> Tensor:
        """The number of structures of each head per epoch, [heads], which is the weight of its validation set."""
        weights = torch.zeros(len(HEADS), dtype=torch.float64)
        for dataset, draws in zip(self.collection.datasets, self.sampler.draws.tolist(), strict=True):
            weights[dataset.head] += draws
        return weights

    def select_indices(self, step: int, rank: int) -> SampleIndices:
        """Return the structures of one rank at one step.

        Args:
            step: The step, counted from the position of the sampler.
            rank: The rank.
        """
        return self.sampler.select_batch(step, rank, self._count_atoms if self.balance == "atoms" else None)

    def _count_atoms(self, indices: SampleIndices) -> NDArray[np.float64]:
        return self.collection.count_atoms(indices).astype(np.float64)

    def iter_evaluation_batches(
        self,
        limit: int,
        device: torch.device,
        share: RankInfo | None = None,
        known_elements: NDArray[np.bool_] | None = None,
    ) -> Iterator[LabelledBatch]:
        """Yield the first structures of every dataset, in batches of one dataset each.

        Structures with elements that the training set of their head lacks are omitted.

        Args:
            limit: Maximum number of structures of each dataset.
            device: The device of the batches.
            share: The rank whose share of the structures is yielded; None for all structures.
            known_elements: [heads, 119] whether the model was trained on an element; structures with others are omitted
                too. None: the model was trained on this training set.
        """
        share = share or RankInfo()
        for k, dataset in enumerate(self.collection.datasets):
            indices = np.arange(share.rank, min(len(dataset.samples), limit), share.size)
            for first in range(0, len(indices), EVALUATION_BATCH):
                selected = indices[first : first + EVALUATION_BATCH]
                graphs = self.collection.load_graphs(SampleIndices(np.full(len(selected), k), selected))
                known = [g for g in graphs if dataset.references.knows(g.structure.numbers)]
                if known_elements is not None:
                    known = [g for g in known if known_elements[dataset.head, g.structure.numbers].all()]
                if known:
                    yield self.collate(known, device)

    def load_batch(self, indices: SampleIndices, device: torch.device) -> LabelledBatch:
        """Load structures as one batch with labels."""
        return self.collate(self.collection.load_graphs(indices), device)

    def collate(self, graphs: Sequence[NeighbourList], device: torch.device) -> LabelledBatch:
        """Collate graphs into one batch with labels on a device."""
        batch, labels = collate_labelled(graphs, self.references, self.dtype, with_triplets=self.with_triplets)
        return batch.to(device, self.dtype), Labels(*(t.to(device) for t in labels))


def flatten(tensors: Sequence[Tensor]) -> Tensor:
    """Concatenate the elements of all tensors, of any shape and layout, into one vector."""
    return torch.cat([t.reshape(-1) for t in tensors])


def wrap_ddp(module: nn.Module) -> DistributedDataParallel:
    """Wrap a module in DistributedDataParallel; its buffers are constants, so they are not broadcast."""
    # With one graph, the gradient of the last head layer's bias has other strides, and DDP copies its 16 elements. It
    # warns later, in the backward pass, so that the filter must persist.
    warnings.filterwarnings("ignore", "Grad strides do not match", UserWarning)
    with warnings.catch_warnings():
        # Newer torch renamed this option.
        warnings.filterwarnings("ignore", ".*broadcast_buffers", FutureWarning)
        return DistributedDataParallel(module, broadcast_buffers=False, gradient_as_bucket_view=True)


def set_reference_energies(model: FoundationModel, collection: DatasetCollection) -> Tensor:
    """Set the reference energies, the scale and the known elements of each dataset's head.

    Returns:
        The reference energies of all heads, [heads, 119] eV in double precision.
    """
    table = torch.zeros(model.config.heads, ELEMENT_SLOTS, dtype=torch.float64)
    for dataset in collection.datasets:
        references = dataset.references
        scale = max(references.mae_ev_per_atom, MIN_SCALE_EV)
        model.set_head_data(dataset.head, references.energy_ev, scale, references.state > ElementState.ABSENT)
        table[dataset.head] = torch.from_numpy(np.nan_to_num(references.energy_ev))
    return table


class Stopwatch:
    """A stopwatch for asynchronous devices: its marks are set without waiting for the device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._marks: list[Any] = []

    def mark(self) -> None:
        """Set a mark at the end of the work submitted so far."""
        if self.device.type == "cpu":
            self._marks.append(time.perf_counter())
        else:
            event = torch.get_device_module(self.device).Event(enable_timing=True)
            event.record()
            self._marks.append(event)

    def laps(self) -> list[float]:
        """Return the seconds between consecutive marks; the device must have reached the last mark."""
        pairs = zip(self._marks[:-1], self._marks[1:], strict=True)
        if self.device.type == "cpu":
            return [after - before for before, after in pairs]
        return [before.elapsed_time(after) / 1e3 for before, after in pairs]


@dataclass(frozen=True)
class EpochTiming:
    """The timing of one epoch of one rank.

    Attributes:
        seconds: Duration of the epoch.
        steps: [steps] seconds of each step.
        busy: [steps] seconds of each step minus the wait for data. On an accelerator, which computes while the host
            waits, nothing is subtracted.
        waits: [steps] seconds of waiting for data before each step.
        losses: [steps] loss of each step.
    """

    seconds: float
    steps: Tensor
    busy: Tensor
    waits: Tensor
    losses: Tensor


def time_batches(batches: Iterable[LabelledBatch], waits: list[float]) -> Iterator[LabelledBatch]:
    """Yield the batches, and append the seconds of waiting for each to `waits`."""
    source = iter(batches)
    while True:
        started = time.perf_counter()
        try:
            batch = next(source)
        except StopIteration:
            return
        waits.append(time.perf_counter() - started)
        yield batch


def time_epoch(
    replica: DistributedDataParallel,
    objective: MultiTaskLoss,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[LabelledBatch],
    device: torch.device,
    *,
    exchange: bool = True,
) -> EpochTiming:
    """Train on all batches, and time each step.

    Args:
        replica: The module wrapped by `wrap_ddp`.
        objective: The loss.
        optimizer: The optimizer.
        batches: The batches of this rank.
        device: The device of the batches.
        exchange: Whether gradients are averaged over ranks; otherwise each rank uses its own.
    """
    watch = Stopwatch(device)
    losses: list[Tensor] = []
    waits: list[float] = []
    synchronize(device)
    started = time.perf_counter()
    watch.mark()
    with nullcontext() if exchange else replica.no_sync():
        for batch, labels in time_batches(batches, waits):
            optimizer.zero_grad()
            loss = objective(replica(batch, labels), batch.head)
            backpropagate(loss, replica)
            optimizer.step()
            losses.append(loss.detach())
            watch.mark()
    synchronize(device)
    seconds = time.perf_counter() - started
    steps, waited = (torch.tensor(times, dtype=torch.float64) for times in (watch.laps(), waits))
    busy = steps - waited if device.type == "cpu" else steps
    return EpochTiming(seconds, steps, busy, waited, torch.stack(losses))
