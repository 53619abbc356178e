"""The time of the regions of a training step: a step is repeated with time marks between its kinds of work.

There is no prefetch and no exchange of gradients, so that each region is one kind of work. On a device the marks are
events in its queue, which do not interrupt its work.
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
    indices: SampleIndices,
    device: torch.device,
) -> Tensor:
    """Take one step, and return the seconds of each of REGIONS, [7].

    Args:
        model: The model.
        objective: The loss.
        optimizer: The optimizer.
        feed: Loads the batch.
        indices: The structures of the batch.
        device: The device of the model.
    """
    corpus: DatasetCollection = feed.corpus
    times = [time.perf_counter()]
    records = corpus.records(indices)
    times.append(time.perf_counter())
    graphs = corpus.build_graphs(indices, records)
    times.append(time.perf_counter())
    batch, labels = feed.collate(graphs, device)
    synchronize(device)
    times.append(time.perf_counter())
    optimizer.zero_grad()
    watch = Stopwatch(device)
    watch.mark()
    positions = batch.positions.detach().requires_grad_()
    residuals = model.residual_energies(model.encode(batch, positions, batch.shift), batch)
    energy = residuals.gather(1, model.head_slot[batch.head].unsqueeze(1)).squeeze(1)
    watch.mark()
    (slope,) = torch.autograd.grad(energy.sum(), positions, create_graph=True)
    watch.mark()
    objective(compare_with_labels(energy, -slope, batch, labels), batch.head).backward()
    watch.mark()
    optimizer.step()
    watch.mark()
    synchronize(device)
    host = [after - before for before, after in pairwise(times)]
    return torch.tensor([*host, *watch.laps()], dtype=torch.float64)
