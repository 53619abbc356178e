"""Layers that make features depend on the charge and the spin of their structure."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from harness.reference.ops.products import apply_linear
from harness.reference.ops.segment_sums import Grouping, gather

EMBEDDING_SIZE = 16


class ChargeSpinEmbedding(nn.Module):
    """Embed (charge, 2S) of a structure; without biases, so that a neutral singlet has exactly the zero vector."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(2, EMBEDDING_SIZE, bias=False)

    def forward(self, charge: Tensor, multiplicity: Tensor) -> Tensor:
        """Return the embedding of each structure, [g, EMBEDDING_SIZE].

        Args:
            charge: [g] in e.
            multiplicity: [g] 2S + 1; 0 if it is unknown, which counts as 1.
        """
        unpaired = (multiplicity - 1.0).clamp(min=0.0)
        return silu(self.hidden(torch.stack([charge, unpaired], dim=-1)))


class FiLM(nn.Module):
    """Modulate features: x -> x (1 + gamma) + beta, with gamma and beta linear in the state.

    Source: feature-wise linear modulation, Perez et al., arXiv 1709.07871. The features of a neutral singlet remain
    unchanged, so that the backbone is the published one.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.film = nn.Linear(EMBEDDING_SIZE, 2 * features, bias=False)

    def forward(self, x: Tensor, state: Tensor, graphs: Grouping) -> Tensor:
        """Return the modulated features, [m, F].

        Args:
            x: [m, F] features of atoms or edges.
            state: [g, EMBEDDING_SIZE] from ChargeSpinEmbedding.
            graphs: The structure of each row.
        """
        gamma, beta = gather(self.film(state), graphs).chunk(2, dim=-1)
        return x + x * gamma + beta


class Concatenation(nn.Module):
    """Mix charge and multiplicity into features by one linear layer, as HydraGNN does."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.linear = nn.Linear(features + 2, features)

    def forward(self, x: Tensor, charge: Tensor, multiplicity: Tensor, graph: Tensor, *, fused: bool = False) -> Tensor:
        """Return the linear layer of (x, charge, 2S + 1), [m, F].

        Args:
            x: [m, F] features of atoms.
            charge: [g] in e.
            multiplicity: [g] 2S + 1; 0 if it is unknown, which counts as 1.
            graph: [m] the structure of each row.
            fused: Whether an operator of harness.reference.ops computes the linear layer.
        """
        state = torch.stack([charge, multiplicity.clamp(min=1.0)], dim=-1).to(x.dtype)
        return apply_linear(self.linear, torch.cat([x, state[graph]], dim=-1), fused=fused)
