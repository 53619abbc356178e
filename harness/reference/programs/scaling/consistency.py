"""Whether ranks together compute what one process would: their exchanged gradient, and their parameters afterwards."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from harness.reference.distributed.group import ProcessGroup
from harness.reference.errors import InputError
from harness.reference.storage.sampling.sampler import SampleIndices
from harness.reference.training.loader import BatchLoader, flatten
from harness.reference.training.loss import MultiTaskLoss

CHECKED_RANKS = 64
CHECKED_GRAPHS = 2


def gradient_error(
    replica: DistributedDataParallel, objective: MultiTaskLoss, feed: BatchLoader, team: ProcessGroup
) -> tuple[float, int, int]:
    """How far the exchanged gradient of one small batch is from the one that rank 0 computes alone over all its graphs.

    Largest difference relative to the largest gradient (meaningful on rank 0), over how many ranks and graphs; of more
    than CHECKED_RANKS ranks, the others take part with weight 0.
    """
    place = team.rank_info
    counted = min(place.size, CHECKED_RANKS)
    parts = [feed.indices_for(0, rank)[:CHECKED_GRAPHS] for rank in range(counted)]
    own = parts[place.rank] if place.rank < counted else parts[0]
    weight = place.size / counted if place.rank < counted else 0.0
    parameters = [p for p in replica.parameters() if p.requires_grad]
    batch, labels = feed.batch(own, team.device)
    (weight * replace(objective, graphs=len(own))(replica(batch, labels), batch.head)).backward()
    exchanged = flatten([p.grad for p in parameters if p.grad is not None])
    if place.rank > 0:
        return 0.0, 0, 0
    together = SampleIndices(np.concatenate([p.dataset for p in parts]), np.concatenate([p.index for p in parts]))
    # Straight from the loss, not by backward(): the wrapper's hooks would wait for the other ranks.
    batch, labels = feed.batch(together, team.device)
    loss = replace(objective, graphs=len(together))(replica.module(batch, labels), batch.head)
    alone = flatten(torch.autograd.grad(loss, parameters))
    error = float((exchanged - alone).abs().max() / alone.abs().max())
    if not math.isfinite(error):
        raise InputError(f"the gradient of the untrained model is not finite, or 0, over {len(together)} graphs")
    return error, counted, len(together)


def parameter_divergence(model: nn.Module, team: ProcessGroup) -> float:
    """How far the parameters of any rank are from those of rank 0, relative to the largest of them.

    Raises InputError if a rank's parameters are no longer finite.
    """
    own = flatten([p.detach() for p in model.parameters()])
    first = team.broadcast(own)
    # A maximum over ranks may pass over what is not a number, never over an infinity.
    difference = ((own - first).abs().max() / first.abs().max()).nan_to_num(nan=math.inf)
    divergence = float(team.all_reduce_max(difference.reshape(1)))
    if not math.isfinite(divergence):
        raise InputError("the parameters are no longer finite after training")
    return divergence
