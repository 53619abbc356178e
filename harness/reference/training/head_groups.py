"""Task-parallel heads: each rank keeps the heads of its own datasets alone, whose gradients its group shares.

Every rank serves the datasets of its group. Encoder gradients are averaged over all ranks; a head's gradient is summed
over the ranks of its group and divided by the number of all ranks, which is what the average over all would be, since
the others have none. The step is therefore that of heads on every rank, with less memory and less to exchange.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch import distributed as dist

from harness.reference.distributed.group import Team
from harness.reference.models.foundation import FoundationModel
from harness.reference.storage.sampling.rank_assignment import Assignment


class HeadGroups:
    """Who keeps which heads; collective, so all ranks must make it. heads: branch of each dataset, in their order."""

    def __init__(self, assignment: Assignment, heads: Sequence[int], team: Team) -> None:
        self.team = team
        self.members = [range(g.first, g.first + g.size) for g in assignment.groups]
        self.kept = [[heads[d] for d in g.datasets] for g in assignment.groups]
        groups = [dist.new_group(list(ranks)) for ranks in self.members]
        self.own = next(k for k, ranks in enumerate(self.members) if team.place.rank in ranks)
        self._group = groups[self.own]

    @property
    def heads(self) -> list[int]:
        """The heads that this rank keeps."""
        return self.kept[self.own]

    @property
    def leads(self) -> bool:
        """Whether this rank is the first of its group."""
        return self.team.place.rank == self.members[self.own][0]

    def reduce(self, heads: nn.Module) -> None:
        """Share the gradients of the heads within the group."""
        gradients = [p.grad for p in heads.parameters() if p.grad is not None]
        if not gradients:
            return
        flat = torch.cat([g.reshape(-1) for g in gradients])
        dist.all_reduce(flat, group=self._group)
        flat /= self.team.place.size
        for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def squared_norm(self, encoder: nn.Module, heads: nn.Module) -> Tensor:
        """Of the gradient of encoder and all heads, wherever they are kept."""
        own = _squared(heads) / len(self.members[self.own])
        return _squared(encoder) + self.team.total(own.reshape(1)).to(own.device, own.dtype).squeeze()

    def whole(self, model: FoundationModel, complete: FoundationModel) -> None:
        """Put the heads of all ranks, with this rank's encoder, into a model that has all heads."""
        own = {name: value.cpu() for name, value in model.heads.state_dict().items()}
        state = complete.state_dict()
        for kept, ranks in zip(self.kept, self.members, strict=True):
            for name, value in self.team.told_by(ranks[0], own).items():
                state[f"heads.{name}"][kept] = value
        state |= {n: v for n, v in model.state_dict().items() if n.startswith("encoder.")}
        complete.load_state_dict(state)


def _squared(module: nn.Module) -> Tensor:
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    return nn.utils.get_total_norm(gradients) ** 2
