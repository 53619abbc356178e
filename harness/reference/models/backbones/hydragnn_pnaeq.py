"""PNAEq as HydraGNN has it (https://github.com/ORNL/HydraGNN), for the checkpoints that models/hydragnn.py loads.

It shares with HydraGNN's PaiNN what happens to an atom between layers (backbones/hydragnn.py). Messages depend on both
atoms of an edge and on its length, and pass through three linear layers, so that the fused operator, whose messages
depend on the sender alone, cannot compute them. The minimum, the maximum and the number of neighbours count every
neighbour alike, whatever its distance, so that the energy jumps where a neighbour passes the cutoff; where two messages
are the extreme one, both get half of the gradient.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import relu, silu

from harness.reference.data.batch import Batch
from harness.reference.data.structure import MAX_ATOMIC_NUMBER
from harness.reference.models.backbones.hydragnn import DISTANCE_EPSILON
from harness.reference.models.backbones.painn import Edges, RadialBasis, Update
from harness.reference.models.conditioning import Concatenation
from harness.reference.models.config import ModelConfig

# Mean, minimum, maximum and standard deviation, under five scalers.
STATISTICS = 20
MIN_VARIANCE = 1e-5  # below it, the standard deviation is 0


class Aggregation(nn.Module):
    """Statistics of the messages to an atom, scaled by functions of its number of neighbours."""

    mean_degree: Tensor
    mean_log_degree: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mix = nn.Linear((STATISTICS + 1) * width, width)
        self.register_buffer("mean_degree", torch.ones(1))
        self.register_buffer("mean_log_degree", torch.ones(1))

    def forward(self, s: Tensor, message: Tensor, receiver: Tensor) -> Tensor:
        """Return the mixed statistics [n, F] of the messages [e, F] to atoms with the features s [n, F]."""
        zero = torch.zeros_like(s)
        index = receiver.unsqueeze(-1).expand_as(message)
        degree = zero[:, :1].index_add(0, receiver, torch.ones_like(message[:, :1]))
        count = degree.clamp(min=1.0)
        mean = zero.index_add(0, receiver, message) / count
        variance = zero.index_add(0, receiver, message * message) / count - mean * mean
        std = variance.clamp(min=MIN_VARIANCE).sqrt()
        std = std.masked_fill(std <= math.sqrt(MIN_VARIANCE), 0.0)
        low, high = (zero.scatter_reduce(0, index, message, kind, include_self=False) for kind in ("amin", "amax"))
        values = torch.cat([mean, low, high, std], dim=-1)
        logs = torch.log(degree + 1.0) / self.mean_log_degree, self.mean_log_degree / torch.log(count + 1.0)
        scales = (*logs, degree / self.mean_degree, self.mean_degree / count)
        mixed: Tensor = self.mix(torch.cat([s, values, *(values * scale for scale in scales)], dim=-1))
        return mixed


class Message(nn.Module):
    """Messages to scalars and to vectors of an atom, from its own features and those of its neighbours."""

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
        sent, heard = s.index_select(0, edges.sender), s.index_select(0, edges.receiver)
        pair = torch.cat([heard, sent, torch.tanh(self.distance(edges.radial))], dim=-1)
        parts = self.phi(self.pair(pair)) * self.filter(edges.radial)
        to_v, along, to_s = parts.to(s.dtype).chunk(3, dim=-1)
        vectors = v.index_select(1, edges.sender) * to_v + along * torch.stack(edges.unit)
        mixed = self.aggregation(s, to_s, edges.receiver).to(s.dtype)
        return s + mixed, v.index_add(1, edges.receiver, vectors)


class HydraGNNPNAEq(nn.Module):
    """Encode atoms and edges as scalar features of atoms; with biases of vectors they depend on the orientation."""

    numbers: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert config.num_radial is not None
        assert config.norm_epsilon is not None
        assert config.hydragnn is not None
        width, count, epsilon = config.hidden_dim, config.num_conv_layers, config.norm_epsilon
        bias = config.hydragnn.vector_bias
        widths = [1, *[width] * (count - 1)]
        self.activate = relu if config.hydragnn.activation == "relu" else silu
        self.register_buffer("numbers", torch.arange(MAX_ATOMIC_NUMBER + 1.0).unsqueeze(-1), persistent=False)
        self.radial = RadialBasis(config.cutoff, config.num_radial)
        self.messages = nn.ModuleList(Message(n, config.num_radial) for n in widths)
        self.updates = nn.ModuleList(Update(n, epsilon, vector_bias=bias) for n in widths)
        self.scalars = nn.ModuleList(
            nn.Sequential(nn.Linear(n, width), nn.Tanh(), nn.Linear(width, width)) for n in widths
        )
        self.vectors = nn.ModuleList(nn.Linear(n, width, bias=bias) for n in widths[:-1])
        self.condition = Concatenation(width) if config.hydragnn.conditioning else None

    def forward(self, batch: Batch, vector: Tensor) -> Tensor:
        """Return the features s [n, F].

        Args:
            batch: The structures.
            vector: [e, 3] from receiver to sender in angstrom; messages go the other way, as in backbones/hydragnn.py.
        """
        r = torch.linalg.vector_norm(vector, dim=-1, keepdim=True)
        basis, envelope = self.radial(r)
        direction = -vector / (r + DISTANCE_EPSILON)
        edges = Edges(batch.receiver, batch.sender, basis * envelope, direction.split(1, dim=1))
        s = self.numbers[batch.numbers]
        v = s.new_zeros(3, *s.shape)
        last = len(self.messages) - 1
        for k, (message, update, mix) in enumerate(zip(self.messages, self.updates, self.scalars, strict=True)):
            s, v = message(s, v, edges)
            s, v = update(s, v, scalars_only=k == last)
            s = mix(s)
            if k < last:
                v = self.vectors[k](v).to(vector.dtype)
            if self.condition is not None:
                s = self.condition(s, batch.charge, batch.multiplicity, batch.graph)
            s = self.activate(s).to(vector.dtype)
        return s
