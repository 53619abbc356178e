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
from torch.nn.functional import pad, silu

from harness.reference.data.batch import Batch
from harness.reference.data.structure import MAX_ATOMIC_NUMBER
from harness.reference.models.adaptive_cutoff import compute_adaptive_scales
from harness.reference.models.basis import cosine_cutoff, tricube
from harness.reference.models.conditioning import ChargeSpinEmbedding, FiLM
from harness.reference.models.config import ModelConfig
from harness.reference.models.edge_groups import group_atoms, group_edges
from harness.reference.models.repulsion import Repulsion
from harness.reference.ops.bounded_features import bound_features
from harness.reference.ops.messages import MessageInputs, messages
from harness.reference.ops.products import linear
from harness.reference.ops.segment_sums import Grouping, gather, segment_sum

COLUMN_MULTIPLE = 8


class Edges(NamedTuple):
    """The geometry of the edges, in the form that messages need.

    Attributes:
        senders: The sending atom of each edge.
        receivers: The receiving atom of each edge.
        radial: [e, C] from `build_radial_features`.
        unit: x, y and z of the direction to the sender, [e, 1] each.
    """

    senders: Grouping
    receivers: Grouping
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
        return self.compute_basis(r), cosine_cutoff(r, self.cutoff)

    def compute_basis(self, r: Tensor) -> Tensor:
        """Return sin(n pi r / cutoff) / r for each order n, without the envelope, [e, K]."""
        return torch.sin(r * (math.pi / self.cutoff) * self.orders) / r


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
        receiver=edges.receivers.group,
        sender=edges.senders.group,
    )
    return messages(inputs)


class Message(nn.Module):
    """Eqs. 7 and 8: an atom adds the messages of its neighbours.

    With `fused`, one operator (harness.reference.ops) stores no tensor of edges. Otherwise each part of a filter, and
    each of x, y and z, is a separate tensor [e, F]: memory traffic is the bottleneck, so no tensor [e, 3 F] is ever
    formed, not even in the gradients. With `bounded`, messages depend on bounded features.
    """

    def __init__(self, width: int, n_radial: int, *, bounded: bool = False) -> None:
        super().__init__()
        self.width = width
        self.bounded = bounded
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
        inputs = bound_features(table, fused=fused) if self.bounded else table
        hidden = silu(linear(inputs, self.phi_hidden.weight, self.phi_hidden.bias, fused=fused))
        phi = linear(hidden, self.phi.weight[:n_rows], self.phi.bias[:n_rows], fused=fused)
        if fused:
            atom_phi = phi.index_select(0, numbers)
            summed_s, summed_v = fused_messages(atom_phi, None, self.stack_filter_weight(edges.radial, 2), edges)
            return s + summed_s, summed_v
        phi_s, phi_r = phi.split(self.width, dim=-1)
        w_s, w_r = self.filters(edges.radial, 2)
        element = numbers[edges.senders.group]
        length = phi_r.index_select(0, element) * w_r
        new_v = [torch.zeros_like(s).index_add(0, edges.receivers.group, length * u) for u in edges.unit]
        return s.index_add(0, edges.receivers.group, phi_s.index_select(0, element) * w_s), torch.stack(new_v)

    def forward(self, s: Tensor, v: Tensor, edges: Edges, *, fused: bool = False) -> tuple[Tensor, Tensor]:
        """Return s [n, F] and v [3, n, F] with the messages of the neighbours added."""
        inputs, sent_v = (bound_features(s, fused=fused), bound_features(v, fused=fused)) if self.bounded else (s, v)
        hidden = silu(linear(inputs, self.phi_hidden.weight, self.phi_hidden.bias, fused=fused))
        phi = linear(hidden, self.phi.weight, self.phi.bias, fused=fused)
        if fused:
            summed_s, summed_v = fused_messages(phi, sent_v, self.stack_filter_weight(edges.radial, 3), edges)
            return s + summed_s, v + summed_v
        phi_s, phi_r, phi_v = phi.split(self.width, dim=-1)
        w_s, w_r, w_v = self.filters(edges.radial, 3)
        length = phi_r.index_select(0, edges.senders.group) * w_r
        # phi_v v is computed on atoms, which are far fewer than edges
        parts = zip(v, phi_v * sent_v, edges.unit, strict=True)
        new_v = [
            old.index_add(
                0, edges.receivers.group, torch.addcmul(length * u, w_v, sent.index_select(0, edges.senders.group))
            )
            for old, sent, u in parts
        ]
        return s.index_add(0, edges.receivers.group, phi_s.index_select(0, edges.senders.group) * w_s), torch.stack(
            new_v
        )


class Update(nn.Module):
    """Eqs. 9 and 10: an atom mixes its own scalars and vectors.

    epsilon keeps the norm of a vanishing vector differentiable. On symmetric sites v is rounding noise, which the norm
    amplifies by 1/sqrt(epsilon): in crystals, the error of single precision is 6e-4 of the largest force for epsilon =
    1e-8, and 3e-5 for 1e-5. With `bounded`, the change of an atom depends on bounded features.
    """

    def __init__(self, width: int, epsilon: float = 1e-8, *, vector_bias: bool = False, bounded: bool = False) -> None:
        super().__init__()
        self.width = width
        self.bounded = bounded
        self.epsilon = epsilon
        self.mix = nn.Linear(width, 2 * width, bias=vector_bias)
        self.a_hidden = nn.Linear(2 * width, width)
        self.a = nn.Linear(width, 3 * width)

    def forward(
        self, s: Tensor, v: Tensor, *, scalars_only: bool = False, fused: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Return the updated s [n, F] and v [3, n, F].

        Args:
            s: [n, F].
            v: [3, n, F].
            scalars_only: Whether to return v unchanged, as nothing reads it after the last layer.
            fused: Whether an operator of harness.reference.ops computes the linear layers.
        """
        inputs, mixed = (bound_features(s, fused=fused), bound_features(v, fused=fused)) if self.bounded else (s, v)
        vv, uv = linear(mixed, self.mix.weight, self.mix.bias, fused=fused).split(self.width, dim=-1)
        norm = torch.sqrt((vv * vv).sum(0) + self.epsilon)
        pairs = torch.cat([inputs, norm], dim=-1)
        hidden = silu(linear(pairs, self.a_hidden.weight, self.a_hidden.bias, fused=fused))
        dot = (vv * uv).sum(0)
        if scalars_only:
            rows = torch.cat([self.a.weight[: self.width], self.a.weight[2 * self.width :]])
            bias = torch.cat([self.a.bias[: self.width], self.a.bias[2 * self.width :]])
            a_ss, a_sv = linear(hidden, rows, bias, fused=fused).split(self.width, dim=-1)
            return s + a_ss + a_sv * dot, v
        a_ss, a_vv, a_sv = linear(hidden, self.a.weight, self.a.bias, fused=fused).split(self.width, dim=-1)
        return s + a_ss + a_sv * dot, v + a_vv * uv


class PaiNN(nn.Module):
    """Encode atoms and edges as scalar features of atoms, invariant to rotation, translation and permutation.

    Three options are not those of the paper. With adaptive cutoffs, the envelope of an edge ends at the cutoff of its
    receiver. With a repulsion, learnt interactions vanish at short distances, and the features are followed by the
    repulsion energy. With a norm, all features that a layer reads, and those that are returned, are bounded.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert config.num_radial is not None
        assert config.norm_epsilon is not None
        width, layers = config.hidden_dim, config.num_conv_layers
        self.width = width
        self.cutoff = config.cutoff
        self.adaptive = config.adaptive_neighbours
        self.bounded = bounded = config.feature_norm is not None
        self.repulsion: Repulsion | None = None
        if config.repulsion_core is not None and config.repulsion_end is not None:
            self.repulsion = Repulsion(config.repulsion_core, config.repulsion_end)
        self.embedding = nn.Embedding(MAX_ATOMIC_NUMBER + 1, width, padding_idx=0)
        self.radial = RadialBasis(config.cutoff, config.num_radial)
        self.messages = nn.ModuleList(Message(width, config.num_radial, bounded=bounded) for _ in range(layers))
        self.updates = nn.ModuleList(Update(width, config.norm_epsilon, bounded=bounded) for _ in range(layers))
        self.state = ChargeSpinEmbedding()
        self.conditions = nn.ModuleList(FiLM(width) for _ in range(layers))

    def forward(self, batch: Batch, vector: Tensor, *, fused: bool = False) -> Tensor:
        """Return the features s [n, F], with a repulsion followed by its energy [n, F + 1] in eV.

        Args:
            batch: The structures.
            vector: [e, 3] from receiver to sender in angstrom.
            fused: Whether the fused operator computes the messages.
        """
        receivers, senders = group_edges(batch)
        graphs = group_atoms(batch)
        r = torch.linalg.vector_norm(vector, dim=-1, keepdim=True)
        if self.adaptive is None:
            basis, envelope = self.radial(r)
        else:
            basis, cubes = self.radial.compute_basis(r), (r.squeeze(-1) / self.cutoff) ** 3
            scale = compute_adaptive_scales(cubes, receivers, self.adaptive, fused=fused)
            envelope = tricube(cubes * gather(scale, receivers)).unsqueeze(-1)
        energy: Tensor | None = None
        if self.repulsion is not None:
            half, switch = self.repulsion(r, batch, fused=fused)
            # each atom has half of the repulsion of its edges
            energy = segment_sum(half * envelope, receivers)
            envelope = envelope * switch
        radial = build_radial_features(basis, envelope, fused=fused)
        edges = Edges(senders, receivers, radial, (vector / r).split(1, dim=1))
        state = self.state(batch.charge, batch.multiplicity)
        s: Tensor = self.embedding(batch.numbers)
        last = len(self.messages) - 1
        for k, (message, update) in enumerate(zip(self.messages, self.updates, strict=True)):
            assert isinstance(message, Message)
            if k == 0:
                s, v = message.forward_first(s, self.embedding.weight, batch.numbers, edges, fused=fused)
            else:
                s, v = message(s, v, edges, fused=fused)
            s, v = update(s, v, scalars_only=k == last, fused=fused)
            s = self.conditions[k](s, state, graphs)
        if self.bounded:
            s = bound_features(s, fused=fused)
        return s if energy is None else torch.cat([s, energy], dim=-1)
