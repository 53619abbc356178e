"""PaiNN: a polarizable atom interaction network.

Schuett, Unke, Gastegger, "Equivariant message passing for the prediction of tensorial properties and molecular
spectra", ICML 2021 (arXiv 2102.03150). Equation numbers are that paper's. F is the width, n atoms, e edges.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, silu

from harness.reference.data.batch import Batch
from harness.reference.data.structure import MAX_ATOMIC_NUMBER
from harness.reference.models.blocks.conditioning import Condition, State
from harness.reference.models.blocks.radial_filter import Edges, columns, filter_weight, filters, fused_messages
from harness.reference.models.config import ModelConfig


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
    """Eqs. 7 and 8: what an atom hears from its neighbours.

    fused: by one operator that keeps edges out of memory (harness.reference.ops). Otherwise each part of a filter,
    and each of x, y and z, is a tensor [e, F] of its own: memory traffic is the limit here, and so nothing is split,
    joined or held three times over on edges, nor in their gradients.
    """

    def __init__(self, width: int, n_radial: int) -> None:
        super().__init__()
        self.width = width
        self.phi_hidden = nn.Linear(width, width)
        self.phi = nn.Linear(width, 3 * width)
        self.filter = nn.Linear(n_radial, 3 * width)

    def filter_weight(self, radial: Tensor, parts: int) -> Tensor:
        """What radial [e, C] is multiplied with for the first parts of W: [C, parts F]."""
        rows = slice(0, parts * self.width)
        return filter_weight(self.filter.weight[rows], self.filter.bias[rows], radial)

    def filters(self, radial: Tensor, parts: int) -> tuple[Tensor, ...]:
        """radial [e, C] -> the first parts of W, [e, F] each."""
        return filters(radial, self.filter_weight(radial, parts).split(self.width, dim=1))

    def first(
        self, s: Tensor, table: Tensor, numbers: Tensor, edges: Edges, *, fused: bool = False
    ) -> tuple[Tensor, Tensor]:
        """The first layer's, where v = 0 and s [n, F] depends on the element alone -> s, v as of forward.

        phi is evaluated once per element (table: [z, F]) and the term in v, the last third, is absent.
        """
        two = 2 * self.width
        phi = linear(silu(self.phi_hidden(table)), self.phi.weight[:two], self.phi.bias[:two])
        if fused:
            of_atoms = phi.index_select(0, numbers)
            to_s, v = fused_messages(of_atoms, None, self.filter_weight(edges.radial, 2), edges)
            return s + to_s, v
        phi_s, phi_r = phi.split(self.width, dim=-1)
        w_s, w_r = self.filters(edges.radial, 2)
        element = numbers[edges.sender]
        along = phi_r.index_select(0, element) * w_r
        new_v = [torch.zeros_like(s).index_add(0, edges.receiver, along * u) for u in edges.unit]
        return s.index_add(0, edges.receiver, phi_s.index_select(0, element) * w_s), torch.stack(new_v)

    def forward(self, s: Tensor, v: Tensor, edges: Edges, *, fused: bool = False) -> tuple[Tensor, Tensor]:
        """s [n, F], v [3, n, F] -> the same with the messages of the neighbours."""
        phi = self.phi(silu(self.phi_hidden(s)))
        if fused:
            to_s, to_v = fused_messages(phi, v, self.filter_weight(edges.radial, 3), edges)
            return s + to_s, v + to_v
        phi_s, phi_r, phi_v = phi.split(self.width, dim=-1)
        w_s, w_r, w_v = self.filters(edges.radial, 3)
        along = phi_r.index_select(0, edges.sender) * w_r
        # phi_v v is made on atoms, which are far fewer than edges
        parts = zip(v, phi_v * v, edges.unit, strict=True)
        new_v = [
            of.index_add(0, edges.receiver, along * u + w_v * sent.index_select(0, edges.sender))
            for of, sent, u in parts
        ]
        return s.index_add(0, edges.receiver, phi_s.index_select(0, edges.sender) * w_s), torch.stack(new_v)


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
        """s: [n, F], v: [3, n, F] -> the same, updated.

        scalars_only leaves v as it is: what reads only s need not pay for the last v.
        """
        vv, uv = self.mix(v).split(self.width, dim=-1)
        norm = torch.sqrt((vv * vv).sum(0) + self.epsilon)
        hidden = silu(self.a_hidden(torch.cat([s, norm], dim=-1)))
        dot = (vv * uv).sum(0)
        if scalars_only:
            rows = torch.cat([self.a.weight[: self.width], self.a.weight[2 * self.width :]])
            bias = torch.cat([self.a.bias[: self.width], self.a.bias[2 * self.width :]])
            a_ss, a_sv = linear(hidden, rows, bias).split(self.width, dim=-1)
            return s + a_ss + a_sv * dot, v
        a_ss, a_vv, a_sv = self.a(hidden).split(self.width, dim=-1)
        return s + a_ss + a_sv * dot, v + a_vv * uv


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

    def forward(self, batch: Batch, vector: Tensor, *, fused: bool = False) -> Tensor:
        """vector [e, 3] from receiver to sender in angstrom -> s [n, F]; fused: by one operator a layer's messages."""
        r = torch.linalg.vector_norm(vector, dim=-1, keepdim=True)
        basis, envelope = self.radial(r)
        radial = columns(basis, envelope, fused=fused)
        edges = Edges(batch.sender, batch.receiver, radial, (vector / r).split(1, dim=1))
        state = self.state(batch.charge, batch.multiplicity)
        s: Tensor = self.embedding(batch.numbers)
        last = len(self.messages) - 1
        for k, (message, update) in enumerate(zip(self.messages, self.updates, strict=True)):
            assert isinstance(message, Message)
            if k == 0:
                s, v = message.first(s, self.embedding.weight, batch.numbers, edges, fused=fused)
            else:
                s, v = message(s, v, edges, fused=fused)
            s, v = update(s, v, scalars_only=k == last)
            s = self.conditions[k](s, state, batch.graph)
        return s
