"""Consistency of ranks with one process: their exchanged gradient, and their parameters after training."""

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
    """Compare the exchanged gradient of one small batch with that which rank 0 computes alone; collective.

    Ranks beyond the first CHECKED_RANKS take part with weight 0.

    Returns:
        The largest difference relative to the largest gradient, and the numbers of ranks and graphs; 0 on other ranks.

    Raises:
        InputError: The gradient is not finite, or 0.
    """
    rank_info = team.rank_info
    counted = min(rank_info.size, CHECKED_RANKS)
    parts = [feed.select_indices(0, rank)[:CHECKED_GRAPHS] for rank in range(counted)]
    indices = parts[rank_info.rank] if rank_info.rank < counted else parts[0]
    weight = rank_info.size / counted if rank_info.rank < counted else 0.0
    parameters = [p for p in replica.parameters() if p.requires_grad]
    batch, labels = feed.batch(indices, team.device)
    (weight * replace(objective, graphs=len(indices))(replica(batch, labels), batch.head)).backward()
    exchanged = flatten([p.grad for p in parameters if p.grad is not None])
    if rank_info.rank > 0:
        return 0.0, 0, 0
    combined = SampleIndices(np.concatenate([p.dataset for p in parts]), np.concatenate([p.index for p in parts]))
    # autograd.grad, not backward(), whose DDP hooks would wait for the other ranks.
    batch, labels = feed.batch(combined, team.device)
    loss = replace(objective, graphs=len(combined))(replica.module(batch, labels), batch.head)
    alone = flatten(torch.autograd.grad(loss, parameters))
    error = float((exchanged - alone).abs().max() / alone.abs().max())
    if not math.isfinite(error):
        raise InputError(f"the gradient of the untrained model is not finite, or 0, over {len(combined)} graphs")
    return error, counted, len(combined)


def parameter_divergence(model: nn.Module, team: ProcessGroup) -> float:
    """Return the largest difference of any rank's parameters from those of rank 0, relative to the largest; collective.

    Raises:
        InputError: The parameters of a rank are not finite.
    """
    local = flatten([p.detach() for p in model.parameters()])
    first = team.broadcast(local)
    # A maximum over ranks may ignore NaN, but never an infinity.
    difference = ((local - first).abs().max() / first.abs().max()).nan_to_num(nan=math.inf)
    divergence = float(team.all_reduce_max(difference.reshape(1)))
    if not math.isfinite(divergence):
        raise InputError("the parameters are no longer finite after training")
    return divergence
