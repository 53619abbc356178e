"""PaiNN as HydraGNN has it (https://github.com/ORNL/HydraGNN), for the checkpoints that models/hydragnn.py loads.

It differs from the paper's PaiNN: an atom enters as its atomic number, a single scalar, so that the first layer has the
width 1; after each layer, s passes through a small network, charge and multiplicity, and an activation, and v through a
linear map; directions are divided by the distance once more; and messages go from the atom that counts a neighbour
to that neighbour, which matters where the number of neighbours is limited.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import relu, silu

from harness.reference.data.batch import Batch
from harness.reference.data.structure import MAX_ATOMIC_NUMBER
from harness.reference.models.backbones.painn import Edges, Message, RadialBasis, Update, build_radial_features
from harness.reference.models.conditioning import Concatenation
from harness.reference.models.config import ModelConfig

DISTANCE_EPSILON = 1e-9  # angstrom, added to distances by which vectors are divided


class HydraGNNPaiNN(nn.Module):
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
        # whole numbers are exact in any type
        self.register_buffer("numbers", torch.arange(MAX_ATOMIC_NUMBER + 1.0).unsqueeze(-1), persistent=False)
        self.radial = RadialBasis(config.cutoff, config.num_radial)
        self.messages = nn.ModuleList(Message(n, config.num_radial) for n in widths)
        self.updates = nn.ModuleList(Update(n, epsilon, vector_bias=bias) for n in widths)
        self.scalars = nn.ModuleList(
            nn.Sequential(nn.Linear(n, width), nn.Tanh(), nn.Linear(width, width)) for n in widths
        )
        self.vectors = nn.ModuleList(nn.Linear(n, width, bias=bias) for n in widths[:-1])
        self.condition = Concatenation(width) if config.hydragnn.conditioning else None

    def forward(self, batch: Batch, vector: Tensor, *, fused: bool = False) -> Tensor:
        """Return the features s [n, F].

        Args:
            batch: The structures.
            vector: [e, 3] from receiver to sender in angstrom.
            fused: Whether the fused operator computes the messages.
        """
        r = torch.linalg.vector_norm(vector, dim=-1, keepdim=True)
        basis, envelope = self.radial(r)
        radial = build_radial_features(basis, envelope, fused=fused)
        direction = -vector / (r + DISTANCE_EPSILON) / r
        edges = Edges(batch.receiver, batch.sender, radial, direction.split(1, dim=1))
        s = self.numbers[batch.numbers]
        last = len(self.messages) - 1
        layers = zip(self.messages, self.updates, self.scalars, strict=True)
        for k, (message, update, mix) in enumerate(layers):
            assert isinstance(message, Message)
            if k == 0:
                s, v = message.forward_first(s, self.numbers, batch.numbers, edges, fused=fused)
            else:
                s, v = message(s, v, edges, fused=fused)
            s, v = update(s, v, scalars_only=k == last)
            s = mix(s)
            if k < last:
                v = self.vectors[k](v).to(vector.dtype)
            if self.condition is not None:
                s = self.condition(s, batch.charge, batch.multiplicity, batch.graph)
            s = self.activate(s).to(vector.dtype)
        return s
