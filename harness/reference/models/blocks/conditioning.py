"""Charge and spin: every layer's features are scaled and shifted by the state of the structure they belong to."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

STATE = 16


class State(nn.Module):
    """(charge, 2S) of a structure -> a vector that is exactly zero for a neutral singlet; no biases."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(2, STATE, bias=False)

    def forward(self, charge: Tensor, multiplicity: Tensor) -> Tensor:
        """charge [g] in e, multiplicity 2S + 1 [g] (0: unknown, taken for 1) -> [g, STATE]."""
        unpaired = (multiplicity - 1.0).clamp(min=0.0)
        return silu(self.hidden(torch.stack([charge, unpaired], dim=-1)))


class Condition(nn.Module):
    """x -> x (1 + gamma) + beta with gamma, beta linear in the state (Perez et al., arXiv 1709.07871).

    A neutral singlet's features pass unchanged: for it the backbone is that of its paper.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.film = nn.Linear(STATE, 2 * features, bias=False)

    def forward(self, x: Tensor, state: Tensor, graph: Tensor) -> Tensor:
        """x [m, F], state [g, STATE], graph [m] (whose structure each row is of) -> [m, F]."""
        gamma, beta = self.film(state)[graph].chunk(2, dim=-1)
        return x + x * gamma + beta
