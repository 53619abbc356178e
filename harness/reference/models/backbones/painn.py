"""PaiNN: a polarizable atom interaction network.

Schuett, Unke, Gastegger, "Equivariant message passing for the prediction of tensorial properties and molecular
spectra", ICML 2021 (arXiv 2102.03150). Equation numbers are that paper's. F is the width, n atoms, e edges, K radial
functions, C columns of radial features.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, pad, silu

from harness.reference.data.batch import Batch
from harness.reference.data.structure import MAX_ATOMIC_NUMBER
from harness.reference.models.basis import cosine_cutoff
from harness.reference.models.conditioning import ChargeSpinEmbedding, FiLM
from harness.reference.models.config import ModelConfig
from harness.reference.ops.messages import MessageInputs, messages

COLUMN_MULTIPLE = 8


class Edges(NamedTuple):
    """The geometry of the edges, in the form that messages need.

    Attributes:
        sender: [e] index of the sending atom.
        receiver: [e] index of the receiving atom.
        radial: [e, C] from `build_radial_features`.
        unit: x, y and z of the direction to the sender, [e, 1] each.
    """

    sender: Tensor
    receiver: Tensor
    radial: Tensor
    unit: tuple[Tensor, ...]


class RadialBasis(nn.Module):
    """sin(k pi r / r_cut) / r for k = 1..K, and the cosine cutoff (section 3.2)."""

    orders: Tensor

    def __init__(self, cutoff: float, n_radial: int) -> None:
        super().__init__()
        self.cutoff = cutoff
        # whole numbers are exact in any type; pi / cutoff, once rounded to single, would stay rounded in double
        self.register_buffer("orders", torch.arange(1.0, n_radial + 1), persistent=False)

    def forward(self, r: Tensor) -> tuple[Tensor, Tensor]:
        """Return the basis [e, K] in 1/angstrom and the envelope [e, 1], 0 from the cutoff on; r [e, 1] angstrom."""
        basis = torch.sin(r * (math.pi / self.cutoff) * self.orders) / r
        return basis, cosine_cutoff(r, self.cutoff)


def build_radial_features(basis: Tensor, envelope: Tensor, *, fused: bool = False) -> Tensor:
    """Return [basis envelope, envelope, 0 ...] [e, C], whose product with `stack_filter_weight` is the filter.

    Zeros make C a multiple of eight, for which matrix libraries are up to twice as fast; the fused operator needs none.

    Args:
        basis: [e, K].
        envelope: [e, 1].
        fused: Whether the features go to the fused operator.
    """
    if fused:
        return torch.cat([basis * envelope, envelope], dim=-1)
    padding = basis.new_zeros(basis.shape[0], -(basis.shape[1] + 1) % COLUMN_MULTIPLE)
    return torch.cat([basis * envelope, envelope, padding], dim=-1)


def stack_filter_weight(weight: Tensor, bias: Tensor, radial: Tensor) -> Tensor:
    """Stack the weight [p, K] and bias [p] of a filter into the factor [C, p] of the radial features [e, C]."""
    stacked = torch.cat([weight.T, bias.unsqueeze(0)])
    return pad(stacked, (0, 0, 0, radial.shape[1] - stacked.shape[0]))


def apply_filter(radial: Tensor, weights: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return the filters [e, F], one for each weight [C, F], in the type of radial [e, C] even under autocast."""
    return tuple((radial @ weight).to(radial.dtype) for weight in weights)


def fused_messages(phi: Tensor, v: Tensor | None, weight: Tensor, edges: Edges) -> tuple[Tensor, Tensor]:
    """Return the sums of messages for s [n, F] and v [3, n, F] by one operator (harness.reference.ops).

    Args:
        phi: [n, 3 F], or [n, 2 F] without v.
        v: [3, n, F], or None in the first layer.
        weight: [C, 3 F] from `stack_filter_weight`, or [C, 2 F] without v.
        edges: The edges, with radial features for the operator.
    """
    inputs = MessageInputs(
        phi=phi.to(edges.radial.dtype),
        v=v,
        radial=edges.radial,
        weight=weight,
        unit=torch.cat(edges.unit, dim=1),
        receiver=edges.receiver,
        sender=edges.sender,
    )
    return messages(inputs)


class Message(nn.Module):
    """Eqs. 7 and 8: an atom adds the messages of its neighbours.

    With `fused`, one operator (harness.reference.ops) stores no tensor of edges. Otherwise each part of a filter, and
    each of x, y and z, is a separate tensor [e, F]: memory traffic is the bottleneck, so no tensor [e, 3 F] is ever
    formed, not even in the gradients.
    """

    def __init__(self, width: int, n_radial: int) -> None:
        super().__init__()
        self.width = width
        self.phi_hidden = nn.Linear(width, width)
        self.phi = nn.Linear(width, 3 * width)
        self.filter = nn.Linear(n_radial, 3 * width)

    def stack_filter_weight(self, radial: Tensor, parts: int) -> Tensor:
        """Return the factor [C, parts F] of radial [e, C] for the first parts of W."""
        rows = slice(0, parts * self.width)
        return stack_filter_weight(self.filter.weight[rows], self.filter.bias[rows], radial)

    def filters(self, radial: Tensor, parts: int) -> tuple[Tensor, ...]:
        """Return the first `parts` blocks of the filter W of eqs. 7 and 8, [e, F] each, for radial [e, C]."""
        return apply_filter(radial, self.stack_filter_weight(radial, parts).split(self.width, dim=1))

    def forward_first(
        self, s: Tensor, table: Tensor, numbers: Tensor, edges: Edges, *, fused: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Apply the first layer, where v = 0 and s depends on the element alone.

        phi is evaluated once per element, and the term in v, the last third, is absent.

        Args:
            s: [n, F], rows of the table.
            table: [119, F] embedding of each element.
            numbers: [n] atomic numbers.
            edges: The edges.
            fused: Whether the fused operator computes the messages.

        Returns:
            s [n, F] and v [3, n, F] with the messages added.
        """
        n_rows = 2 * self.width
        phi = linear(silu(self.phi_hidden(table)), self.phi.weight[:n_rows], self.phi.bias[:n_rows])
        if fused:
            atom_phi = phi.index_select(0, numbers)
            summed_s, summed_v = fused_messages(atom_phi, None, self.stack_filter_weight(edges.radial, 2), edges)
            return s + summed_s, summed_v
        phi_s, phi_r = phi.split(self.width, dim=-1)
        w_s, w_r = self.filters(edges.radial, 2)
        element = numbers[edges.sender]
        length = phi_r.index_select(0, element) * w_r
        new_v = [torch.zeros_like(s).index_add(0, edges.receiver, length * u) for u in edges.unit]
        return s.index_add(0, edges.receiver, phi_s.index_select(0, element) * w_s), torch.stack(new_v)

    def forward(self, s: Tensor, v: Tensor, edges: Edges, *, fused: bool = False) -> tuple[Tensor, Tensor]:
        """Return s [n, F] and v [3, n, F] with the messages of the neighbours added."""
        phi = self.phi(silu(self.phi_hidden(s)))
        if fused:
            summed_s, summed_v = fused_messages(phi, v, self.stack_filter_weight(edges.radial, 3), edges)
            return s + summed_s, v + summed_v
        phi_s, phi_r, phi_v = phi.split(self.width, dim=-1)
        w_s, w_r, w_v = self.filters(edges.radial, 3)
        length = phi_r.index_select(0, edges.sender) * w_r
        # phi_v v is computed on atoms, which are far fewer than edges
        parts = zip(v, phi_v * v, edges.unit, strict=True)
        new_v = [
            old.index_add(0, edges.receiver, torch.addcmul(length * u, w_v, sent.index_select(0, edges.sender)))
            for old, sent, u in parts
        ]
        return s.index_add(0, edges.receiver, phi_s.index_select(0, edges.sender) * w_s), torch.stack(new_v)


class Update(nn.Module):
    """Eqs. 9 and 10: an atom mixes its own scalars and vectors.

    epsilon keeps the norm of a vanishing vector differentiable. On symmetric sites v is rounding noise, which the norm
    amplifies by 1/sqrt(epsilon): in crystals, the error of single precision is 6e-4 of the largest force for epsilon =
    1e-8, and 3e-5 for 1e-5.
    """

    def __init__(self, width: int, epsilon: float = 1e-8, *, vector_bias: bool = False) -> None:
        super().__init__()
        self.width = width
        self.epsilon = epsilon
        self.mix = nn.Linear(width, 2 * width, bias=vector_bias)
        self.a_hidden = nn.Linear(2 * width, width)
        self.a = nn.Linear(width, 3 * width)

    def forward(self, s: Tensor, v: Tensor, *, scalars_only: bool = False) -> tuple[Tensor, Tensor]:
        """Return the updated s [n, F] and v [3, n, F].

        Args:
            s: [n, F].
            v: [3, n, F].
            scalars_only: Whether to return v unchanged, as nothing reads it after the last layer.
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
    """Encode atoms and edges as scalar features of atoms, invariant to rotation, translation and permutation."""

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
        self.state = ChargeSpinEmbedding()
        self.conditions = nn.ModuleList(FiLM(width) for _ in range(layers))

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
        edges = Edges(batch.sender, batch.receiver, radial, (vector / r).split(1, dim=1))
        state = self.state(batch.charge, batch.multiplicity)
        s: Tensor = self.embedding(batch.numbers)
        last = len(self.messages) - 1
        for k, (message, update) in enumerate(zip(self.messages, self.updates, strict=True)):
            assert isinstance(message, Message)
            if k == 0:
                s, v = message.forward_first(s, self.embedding.weight, batch.numbers, edges, fused=fused)
            else:
                s, v = message(s, v, edges, fused=fused)
            s, v = update(s, v, scalars_only=k == last)
            s = self.conditions[k](s, state, batch.graph)
        return s
