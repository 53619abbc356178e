"""HydraGNN's variant of PaiNN (https://github.com/ORNL/HydraGNN), for the checkpoints that models/hydragnn.py loads.

It differs from the paper's PaiNN:
- The initial feature of an atom is its atomic number, so that the first layer has the width 1.
- After each layer, the scalars s pass through a small network, through the conditioning on charge and spin, and through
  an activation; the vectors v pass through a linear layer.
- Directions are divided by the distance once more.
- Messages go from an atom to the atoms in its neighbour list, not in the opposite direction. This matters if the number
  of neighbours is limited.
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
from harness.reference.models.edge_groups import group_edges
from harness.reference.ops.products import apply_linear

DISTANCE_EPSILON = 1e-9  # angstrom, added to distances by which vectors are divided


class HydraGNNEncoder(nn.Module):
    """The layers that HydraGNN's networks have in common; a subclass adds the messages.

    Args:
        config: The configuration of the model.
        message_type: The class of the messages, which is built from a width and the number of radial functions.
    """

    numbers: Tensor

    def __init__(self, config: ModelConfig, message_type: type[nn.Module]) -> None:
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
        self.messages = nn.ModuleList(message_type(n, config.num_radial) for n in widths)
        self.updates = nn.ModuleList(Update(n, epsilon, vector_bias=bias) for n in widths)
        self.scalars = nn.ModuleList(
            nn.Sequential(nn.Linear(n, width), nn.Tanh(), nn.Linear(width, width)) for n in widths
        )
        self.vectors = nn.ModuleList(nn.Linear(n, width, bias=bias) for n in widths[:-1])
        self.condition = Concatenation(width) if config.hydragnn.conditioning else None

    def finish_layer(
        self, k: int, s: Tensor, v: Tensor, batch: Batch, dtype: torch.dtype, *, fused: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Return s [n, F] and v [3, n, F] after the update, the mixing and the activation of layer k.

        Args:
            k: The index of the layer; v of the last layer is not used.
            s: The scalars with their messages.
            v: The vectors with their messages.
            batch: The structures.
            dtype: The floating-point type of the results.
            fused: Whether an operator of harness.reference.ops computes the linear layers.
        """
        is_last = k == len(self.messages) - 1
        s, v = self.updates[k](s, v, scalars_only=is_last, fused=fused)
        scalars = self.scalars[k]
        assert isinstance(scalars, nn.Sequential)
        for layer in scalars:
            s = apply_linear(layer, s, fused=fused) if isinstance(layer, nn.Linear) else layer(s)
        if not is_last:
            vectors = self.vectors[k]
            assert isinstance(vectors, nn.Linear)
            v = apply_linear(vectors, v, fused=fused).to(dtype)
        if self.condition is not None:
            s = self.condition(s, batch.charge, batch.multiplicity, batch.graph, fused=fused)
        return self.activate(s).to(dtype), v


class HydraGNNPaiNN(HydraGNNEncoder):
    """HydraGNN's PaiNN; with vector biases, the scalar features depend on the orientation of a structure."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config, Message)

    def forward(self, batch: Batch, vector: Tensor, *, fused: bool = False) -> Tensor:
        """Return the scalar features s [n, F] of the atoms.

        Args:
            batch: The structures.
            vector: [e, 3] from receiver to sender in angstrom.
            fused: Whether operators of harness.reference.ops compute the messages and the linear layers.
        """
        r = torch.linalg.vector_norm(vector, dim=-1, keepdim=True)
        basis, envelope = self.radial(r)
        radial = build_radial_features(basis, envelope, fused=fused)
        direction = -vector / (r + DISTANCE_EPSILON) / r
        edges = Edges(*group_edges(batch), radial, direction.split(1, dim=1))
        s = self.numbers[batch.numbers]
        for k, message in enumerate(self.messages):
            assert isinstance(message, Message)
            if k == 0:
                s, v = message.forward_first(s, self.numbers, batch.numbers, edges, fused=fused)
            else:
                s, v = message(s, v, edges, fused=fused)
            s, v = self.finish_layer(k, s, v, batch, vector.dtype, fused=fused)
        return s
