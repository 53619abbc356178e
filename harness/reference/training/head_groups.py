"""Task-parallel heads: each rank holds only the heads of its group's datasets, and the group shares their gradients.

Every rank trains on the datasets of its group. Encoder gradients are averaged over all ranks. A head's gradient is
summed over the ranks of its group and divided by the number of all ranks; this is the average over all ranks, since the
gradient is zero on the others. A step is therefore the same as with all heads on every rank, but takes less memory and
communication.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch import distributed as dist

from harness.reference.distributed.group import ProcessGroup
from harness.reference.models.foundation import FoundationModel
from harness.reference.storage.sampling.rank_assignment import Assignment


class HeadGroups:
    """The assignment of heads to groups of ranks; the constructor is collective.

    Args:
        assignment: The datasets of each group of ranks.
        heads: The head of each dataset, in their order.
        world: The ranks.

    Attributes:
        members: The ranks of each group.
        heads_of_groups: The heads of each group.
        index: Index of the group of this rank.
    """

    def __init__(self, assignment: Assignment, heads: Sequence[int], world: ProcessGroup) -> None:
        self.world = world
        self.members = [range(g.first, g.first + g.size) for g in assignment.groups]
        self.heads_of_groups = [[heads[d] for d in g.datasets] for g in assignment.groups]
        groups = [dist.new_group(list(ranks)) for ranks in self.members]
        self.index = next(k for k, ranks in enumerate(self.members) if world.rank in ranks)
        self._group = groups[self.index]

    @property
    def heads(self) -> list[int]:
        """The heads that this rank holds."""
        return self.heads_of_groups[self.index]

    @property
    def is_leader(self) -> bool:
        """Whether this rank is the first of its group."""
        return self.world.rank == self.members[self.index][0]

    def reduce_gradients(self, heads: nn.Module) -> None:
        """Sum the gradients of the heads over the group, and divide the sums by the number of all ranks."""
        gradients = [p.grad for p in heads.parameters() if p.grad is not None]
        if not gradients:
            return
        flat = torch.cat([g.reshape(-1) for g in gradients])
        dist.all_reduce(flat, group=self._group)
        flat /= self.world.size
        for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def compute_squared_norm(self, encoder: nn.Module, heads: nn.Module) -> Tensor:
        """Return the squared norm of the gradient of the encoder and of the heads of all ranks, a scalar."""
        local = _compute_squared_norm(heads) / len(self.members[self.index])
        of_heads = self.world.all_reduce_sum(local.reshape(1)).to(local.device, local.dtype).squeeze()
        return _compute_squared_norm(encoder) + of_heads

    def merge_into(self, model: FoundationModel, complete: FoundationModel) -> None:
        """Copy the heads of all ranks, and this rank's encoder, into a model that has all heads.

        Args:
            model: The model of this rank.
            complete: The model that receives the weights.
        """
        local = {name: value.cpu() for name, value in model.heads.state_dict().items()}
        state = complete.state_dict()
        for heads, ranks in zip(self.heads_of_groups, self.members, strict=True):
            for name, value in self.world.broadcast_object(local, ranks[0]).items():
                state[f"heads.{name}"][heads] = value
        state |= {n: v for n, v in model.state_dict().items() if n.startswith("encoder.")}
        complete.load_state_dict(state)


def _compute_squared_norm(module: nn.Module) -> Tensor:
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    return nn.utils.get_total_norm(gradients) ** 2
