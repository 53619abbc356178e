"""Where a training step's time goes: the same step once more, cut where one kind of work ends and the next begins.

Nothing is prefetched and no gradient exchanged here, so that each region is one kind of work; on a device the marks are
events in its queue, which cost nothing while it works.
"""

from __future__ import annotations

import time
from itertools import pairwise

import torch
from torch import Tensor

from harness.reference.datasets.collection import DatasetCollection
from harness.reference.distributed.group import synchronize
from harness.reference.models.foundation import FoundationModel
from harness.reference.storage.sampling.sampler import SampleIndices
from harness.reference.training.loader import BatchLoader, Stopwatch
from harness.reference.training.loss import MultiTaskLoss, compare_with_labels


def time_regions(
    model: FoundationModel,
    *,
    objective: MultiTaskLoss,
    optimizer: torch.optim.Optimizer,
    feed: BatchLoader,
    drawn: SampleIndices,
    device: torch.device,
) -> Tensor:
    """Seconds of each of REGIONS in one step on what was drawn, [7]."""
    corpus: DatasetCollection = feed.corpus
    times = [time.perf_counter()]
    records = corpus.records(drawn)
    times.append(time.perf_counter())
    graphs = corpus.build_graphs(drawn, records)
    times.append(time.perf_counter())
    batch, labels = feed.collate(graphs, device)
    synchronize(device)
    times.append(time.perf_counter())
    optimizer.zero_grad()
    watch = Stopwatch(device)
    watch.mark()
    positions = batch.positions.detach().requires_grad_()
    beyond = model.residual_energies(model.encode(batch, positions, batch.shift), batch)
    own = beyond.gather(1, model.head_slot[batch.head].unsqueeze(1)).squeeze(1)
    watch.mark()
    (slope,) = torch.autograd.grad(own.sum(), positions, create_graph=True)
    watch.mark()
    objective(compare_with_labels(own, -slope, batch, labels), batch.head).backward()
    watch.mark()
    optimizer.step()
    watch.mark()
    synchronize(device)
    host = [after - before for before, after in pairwise(times)]
    return torch.tensor([*host, *watch.laps()], dtype=torch.float64)
