"""PaiNN: a polarizable atom interaction network.

Schuett, Unke, Gastegger, "Equivariant message passing for the prediction of tensorial properties and molecular
spectra", ICML 2021 (arXiv 2102.03150). Equation numbers are that paper's. F is the width, n atoms, e edges.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, silu

from harness.reference.batches import Batch
from harness.reference.models.condition import Condition, State
from harness.reference.models.config import ModelConfig
from harness.reference.structures import MAX_ATOMIC_NUMBER


class RadialBasis(nn.Module):
    """sin(k pi r / r_cut) / r for k = 1..K, and the cosine cutoff (section 3.2)."""

    orders: Tensor

    def __init__(self, cutoff: float, n_radial: int) -> None:
        super().__init__()
        self.cutoff = cutoff
        # whole numbers, exact in any type: pi / cutoff rounded once to single precision would stay so in double
        self.register_buffer("orders", torch.arange(1.0, n_radial + 1), persistent=False)

    def forward(self, r: Tensor) -> tuple[Tensor, Tensor]:
        """r: [e, 1] angstrom -> basis [e, K] in 1/angstrom, envelope [e, 1], 0 at and beyond the cutoff."""
        basis = torch.sin(r * (math.pi / self.cutoff) * self.orders) / r
        envelope = 0.5 * (torch.cos(r * (math.pi / self.cutoff)) + 1.0)
        return basis, torch.where(r < self.cutoff, envelope, torch.zeros_like(envelope))


class Message(nn.Module):
    """Eqs. 7 and 8: what an atom hears from its neighbours."""

    def __init__(self, width: int, n_radial: int) -> None:
        super().__init__()
        self.width = width
        self.phi_hidden = nn.Linear(width, width)
        self.phi = nn.Linear(width, 3 * width)
        self.filter = nn.Linear(n_radial, 3 * width)

    def first(
        self, table: Tensor, numbers: Tensor, sender: Tensor, basis: Tensor, envelope: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The message of the first layer, where v = 0 and s depends on the element alone.

        phi is evaluated once per element (table: [z, F]) and the term in v, the last third, is absent.
        Returns messages [e, F] for s and [e, F] for the direction to the sender.
        """
        two = 2 * self.width
        phi = linear(silu(self.phi_hidden(table)), self.phi.weight[:two], self.phi.bias[:two])
        weight = linear(basis, self.filter.weight[:two], self.filter.bias[:two]) * envelope
        to_s, along = (phi[numbers[sender]] * weight).split(self.width, dim=-1)
        return to_s, along

    def forward(self, s: Tensor, sender: Tensor, basis: Tensor, envelope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """s: [n, F] -> messages [e, F] for s, for the direction to the sender, and for the sender's v."""
        phi = self.phi(silu(self.phi_hidden(s)))
        weight = self.filter(basis) * envelope
        to_s, along, of_v = (phi[sender] * weight).split(self.width, dim=-1)
        return to_s, along, of_v


class Update(nn.Module):
    """Eqs. 9 and 10: an atom mixes its own scalars and vectors.

    epsilon keeps the norm of a vanishing vector differentiable. On symmetric sites v is rounding noise, which the norm
    passes on enlarged by 1/sqrt(epsilon): 1e-8 costs single precision 6e-4 of the largest force in crystals, 1e-5 3e-5.
    """

    def __init__(self, width: int, epsilon: float = 1e-8) -> None:
        super().__init__()
        self.width = width
        self.epsilon = epsilon
        self.mix = nn.Linear(width, 2 * width, bias=False)
        self.a_hidden = nn.Linear(2 * width, width)
        self.a = nn.Linear(width, 3 * width)

    def forward(self, s: Tensor, v: Tensor, *, scalars_only: bool = False) -> tuple[Tensor, Tensor]:
        """s: [n, F], v: [n, 3, F] -> the same, updated.

        scalars_only leaves v as it is: what reads only s need not pay for the last v.
        """
        vv, uv = self.mix(v).split(self.width, dim=-1)
        norm = torch.sqrt((vv * vv).sum(1) + self.epsilon)
        hidden = silu(self.a_hidden(torch.cat([s, norm], dim=-1)))
        dot = (vv * uv).sum(1)
        if scalars_only:
            rows = torch.cat([self.a.weight[: self.width], self.a.weight[2 * self.width :]])
            bias = torch.cat([self.a.bias[: self.width], self.a.bias[2 * self.width :]])
            a_ss, a_sv = linear(hidden, rows, bias).split(self.width, dim=-1)
            return s + a_ss + a_sv * dot, v
        a_ss, a_vv, a_sv = self.a(hidden).split(self.width, dim=-1)
        return s + a_ss + a_sv * dot, v + a_vv.unsqueeze(1) * uv


class PaiNN(nn.Module):
    """The encoder: atoms and edges -> scalar features per atom, invariant to rotation, translation, permutation."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert config.num_radial is not None
        assert config.norm_epsilon is not None
        width, layers = config.hidden_dim, config.num_conv_layers
        self.width = width
        self.embedding = nn.Embedding(MAX_ATOMIC_NUMBER + 1, width, padding_idx=0)
        self.radial = RadialBasis(config.cutoff, config.num_radial)
        self.messages = nn.ModuleList(Message(width, config.num_radial) for _ in range(layers))
        self.updates = nn.ModuleList(Update(width, config.norm_epsilon) for _ in range(layers))
        self.state = State()
        self.conditions = nn.ModuleList(Condition(width) for _ in range(layers))

    def forward(self, batch: Batch, vector: Tensor) -> Tensor:
        """vector [e, 3] from receiver to sender in angstrom -> s [n, F]."""
        receiver, sender = batch.receiver, batch.sender
        r = torch.linalg.vector_norm(vector, dim=-1, keepdim=True)
        unit = (vector / r).unsqueeze(-1)
        basis, envelope = self.radial(r)
        state = self.state(batch.charge, batch.multiplicity)
        s: Tensor = self.embedding(batch.numbers)
        v = s.new_zeros(s.shape[0], 3, self.width)
        last = len(self.messages) - 1
        for k, (message, update) in enumerate(zip(self.messages, self.updates, strict=True)):
            assert isinstance(message, Message)
            if k == 0:
                to_s, along = message.first(self.embedding.weight, batch.numbers, sender, basis, envelope)
                to_v = along.unsqueeze(1) * unit
            else:
                to_s, along, of_v = message(s, sender, basis, envelope)
                to_v = along.unsqueeze(1) * unit + of_v.unsqueeze(1) * v[sender]
            s = s.index_add(0, receiver, to_s)
            v = v.index_add(0, receiver, to_v)
            s, v = update(s, v, scalars_only=k == last)
            s = self.conditions[k](s, state, batch.graph)
        return s
