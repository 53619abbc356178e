"""HydraGNN's variant of PNAEq (https://github.com/ORNL/HydraGNN), for the checkpoints that models/hydragnn.py loads.

The layers between messages are those of HydraGNN's PaiNN (backbones/hydragnn.py). A message depends on both atoms of an
edge and on its length, and passes through three linear layers. The fused operator cannot compute such messages, since
it supports only messages that depend on the sender alone.

The minimum, the maximum and the number of neighbours give every neighbour the same weight, whatever its distance.
Therefore the energy jumps when a neighbour crosses the cutoff. If two messages are equal extremes, each gets half of
the gradient.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from harness.reference.data.batch import Batch
from harness.reference.models.backbones.hydragnn import DISTANCE_EPSILON, HydraGNNEncoder
from harness.reference.models.backbones.painn import Edges
from harness.reference.models.config import ModelConfig
from harness.reference.models.edge_groups import group_edges
from harness.reference.ops.segment_sums import Grouping, gather, segment_sum

STATISTICS = 20  # mean, minimum, maximum and standard deviation, each with five scalers
MIN_VARIANCE = 1e-5  # below it, the standard deviation is 0


class Aggregation(nn.Module):
    """Statistics of the messages to an atom, scaled by functions of its number of neighbours.

    Args:
        width: The number of features F.
    """

    mean_degree: Tensor
    mean_log_degree: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mix = nn.Linear((STATISTICS + 1) * width, width)
        self.register_buffer("mean_degree", torch.ones(1))
        self.register_buffer("mean_log_degree", torch.ones(1))

    def forward(self, s: Tensor, message: Tensor, receivers: Grouping) -> Tensor:
        """Return the mixed statistics [n, F] of the messages [e, F] to atoms with the features s [n, F]."""
        zero = torch.zeros_like(s)
        index = receivers.group.unsqueeze(-1).expand_as(message)
        degree = receivers.start.diff().unsqueeze(-1).to(s.dtype)
        count = degree.clamp(min=1.0)
        mean = segment_sum(message, receivers) / count
        variance = segment_sum(message * message, receivers) / count - mean * mean
        std = variance.clamp(min=MIN_VARIANCE).sqrt()
        std = std.masked_fill(std <= math.sqrt(MIN_VARIANCE), 0.0)
        low, high = (zero.scatter_reduce(0, index, message, kind, include_self=False) for kind in ("amin", "amax"))
        values = torch.cat([mean, low, high, std], dim=-1)
        logs = torch.log(degree + 1.0) / self.mean_log_degree, self.mean_log_degree / torch.log(count + 1.0)
        scales = (*logs, degree / self.mean_degree, self.mean_degree / count)
        mixed: Tensor = self.mix(torch.cat([s, values, *(values * scale for scale in scales)], dim=-1))
        return mixed


class Message(nn.Module):
    """Messages to the scalars and vectors of an atom, from its features and those of its neighbours.

    Args:
        width: The number of features F.
        n_radial: The number of radial basis functions.
    """

    def __init__(self, width: int, n_radial: int) -> None:
        super().__init__()
        self.distance = nn.Linear(n_radial, width)
        self.pair = nn.Linear(3 * width, width)
        self.phi = nn.Sequential(
            nn.Linear(width, width), nn.Tanh(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 3 * width)
        )
        self.filter = nn.Linear(n_radial, 3 * width, bias=False)
        self.aggregation = Aggregation(width)

    def forward(self, s: Tensor, v: Tensor, edges: Edges) -> tuple[Tensor, Tensor]:
        """Return s [n, F] and v [3, n, F] with their messages added."""
        sender, receiver = gather(s, edges.senders), gather(s, edges.receivers)
        pair = torch.cat([receiver, sender, torch.tanh(self.distance(edges.radial))], dim=-1)
        parts = self.phi(self.pair(pair)) * self.filter(edges.radial)
        vector_scale, direction_scale, scalar_message = parts.to(s.dtype).chunk(3, dim=-1)
        vectors = gather(v, edges.senders, 1) * vector_scale + direction_scale * torch.stack(edges.unit)
        mixed = self.aggregation(s, scalar_message, edges.receivers).to(s.dtype)
        return s + mixed, v + segment_sum(vectors, edges.receivers, 1)


class HydraGNNPNAEq(HydraGNNEncoder):
    """HydraGNN's PNAEq; with vector biases, the scalar features depend on the orientation of a structure."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config, Message)

    def forward(self, batch: Batch, vector: Tensor) -> Tensor:
        """Return the scalar features s [n, F] of the atoms.

        Args:
            batch: The structures.
            vector: [e, 3] from receiver to sender in angstrom; messages go the other way, as in backbones/hydragnn.py.
        """
        r = torch.linalg.vector_norm(vector, dim=-1, keepdim=True)
        basis, envelope = self.radial(r)
        direction = -vector / (r + DISTANCE_EPSILON)
        edges = Edges(*group_edges(batch), basis * envelope, direction.split(1, dim=1))
        s = self.numbers[batch.numbers]
        v = s.new_zeros(3, *s.shape)
        for k, message in enumerate(self.messages):
            s, v = message(s, v, edges)
            s, v = self.finish_layer(k, s, v, batch, vector.dtype)
        return s
