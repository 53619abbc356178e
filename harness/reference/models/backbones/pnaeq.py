"""PNAEq: PaiNN's messages, combined by principal neighbourhood aggregation.

Messages and updates: Schuett, Unke, Gastegger, ICML 2021 (arXiv 2102.03150), see painn.py. Aggregation: Corso,
Cavalleri, Beaini, Lio, Velickovic, "Principal neighbourhood aggregation for graph nets", NeurIPS 2020 (arXiv
2004.05718). F is the width, n atoms, e edges, C columns of radial features (see painn.py).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import relu, silu

from harness.reference.data.batch import Batch
from harness.reference.data.structure import MAX_ATOMIC_NUMBER
from harness.reference.models.backbones.painn import (
    Edges,
    RadialBasis,
    Update,
    apply_filter,
    build_radial_features,
    fused_messages,
    stack_filter_weight,
)
from harness.reference.models.conditioning import ChargeSpinEmbedding, FiLM
from harness.reference.models.config import ModelConfig
from harness.reference.models.edge_groups import group_atoms, group_edges
from harness.reference.ops.segment_sums import Grouping, gather, segment_sum

# exp(mean of log(D + 1)) - 1, D as in Aggregation: 5.6 over the shipped sets, 5 angstrom and at most 20 neighbours
TYPICAL_DEGREE = 5.5

MIN_DENOMINATOR = 1e-16  # second derivatives divide by its square, which must not vanish in single precision


class Message(nn.Module):
    """PaiNN's messages (eqs. 7 and 8); phi and W have three parts: for s, for the direction, for the sender's v.

    Each part is a separate tensor on edges, as in painn.py. The first layer has two parts, as v is 0 there. With
    `fused`, one operator (harness.reference.ops) computes the sums; messages for s are also stored for each edge.
    """

    def __init__(self, width: int, n_radial: int, parts: int) -> None:
        super().__init__()
        self.phi_hidden = nn.Linear(width, width)
        self.phi = nn.ModuleList(nn.Linear(width, width) for _ in range(parts))
        self.filters = nn.ModuleList(nn.Linear(n_radial, width) for _ in range(parts))

    def filter_weights(self, radial: Tensor) -> tuple[Tensor, ...]:
        """Return the factor [C, F] of radial [e, C] for each part of W."""
        parts = [part for part in self.filters if isinstance(part, nn.Linear)]
        return tuple(stack_filter_weight(part.weight, part.bias, radial) for part in parts)

    def forward(self, s: Tensor, v: Tensor, edges: Edges, *, fused: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Return the messages for s [e, F], their sums [n, F], and v [3, n, F] with the messages for v added.

        Args:
            s: [n, F] scalar features.
            v: [3, n, F] vector features.
            edges: The edges.
            fused: Whether the fused operator computes the messages.
        """
        hidden = silu(self.phi_hidden(s))
        phi = [part(hidden) for part in self.phi]
        weights = self.filter_weights(edges.radial)
        if fused:
            (w_s,) = apply_filter(edges.radial, weights[:1])
            sent_v = v if len(phi) == 3 else None
            summed, summed_v = fused_messages(torch.cat(phi, dim=1), sent_v, torch.cat(weights, dim=1), edges)
            return gather(phi[0], edges.senders) * w_s, summed, v + summed_v
        w_s, w_r, *w_v = apply_filter(edges.radial, weights)
        length = gather(phi[1], edges.senders) * w_r
        message_v = [length * u for u in edges.unit]
        if w_v:
            scaled_v = phi[2] * v
            message_v = [m + w_v[0] * gather(sent, edges.senders) for m, sent in zip(message_v, scaled_v, strict=True)]
        new_v = [x + segment_sum(m, edges.receivers) for x, m in zip(v, message_v, strict=True)]
        message_s = gather(phi[0], edges.senders) * w_s
        return message_s, segment_sum(message_s, edges.receivers), torch.stack(new_v)


def compute_positive_powers(m: Tensor) -> tuple[Tensor, Tensor]:
    """Return the fourth and fifth power of m where it is positive, else 0."""
    positive = relu(m)
    fourth = positive.square().square()
    return fourth, fourth * positive


class Aggregation(nn.Module):
    """Mean, minimum, maximum and standard deviation of the messages m_ij, under three scalers, mixed to the width.

    All are smooth as a neighbour crosses the cutoff (but not as a limit on neighbours excludes it): a neighbour j
    counts with the weight f_ij, its envelope, and the atom itself with the weight 1 and the message 0.

        D_i  = 1 + sum_j f_ij                                        mean = sum_j m_ij / D_i
        std  = sqrt(sum_j f_ij m_ij^2 / D_i - (sum_j f_ij m_ij / D_i)^2 + epsilon)
        max  = sum_j m_ij^5 / (sum_j m_ij^4 + epsilon^2) over m_ij > 0;  min = -max of -m

    m_ij itself has the factor f_ij; without the further factor f_ij in std, std would rise with infinite slope at the
    cutoff. In the code, epsilon^2 is at least MIN_DENOMINATOR. The quotient of powers (a Lehmer
    mean) equals the maximum if all positive messages are equal, and is below it otherwise. The maximum itself has a
    cusp where neighbours are equal, as in every symmetric crystal, so that rounding would decide the forces there.
    The scalers are (log(D + 1) / log(typical_degree + 1))^a with a = 0, 1, -1; the constant typical_degree is saved
    with the weights.
    """

    typical_degree: Tensor

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.mix = nn.Linear(12 * width, width)
        self.register_buffer("typical_degree", torch.tensor(TYPICAL_DEGREE))

    def aggregate(
        self, message: Tensor, summed: Tensor, envelope: Tensor, receivers: Grouping
    ) -> tuple[Tensor, Tensor]:
        """Return mean, min, max and std of the messages, concatenated [n, 4F], and the degree D [n, 1].

        Args:
            message: [e, F].
            summed: [n, F] sums of the messages.
            envelope: [e, 1].
            receivers: The receiving atom of each edge.
        """
        degree = 1.0 + segment_sum(envelope, receivers)
        weighted = message * envelope
        mean_square = segment_sum(weighted * message, receivers) / degree
        variance = mean_square - (segment_sum(weighted, receivers) / degree).square()
        smallest = max(self.epsilon**2, MIN_DENOMINATOR)
        high, low = (
            segment_sum(fifth, receivers) / (segment_sum(fourth, receivers) + smallest)
            for fourth, fifth in (compute_positive_powers(message), compute_positive_powers(-message))
        )
        std = torch.sqrt(variance.clamp(min=0.0) + self.epsilon)
        return torch.cat([summed / degree, -low, high, std], dim=-1), degree

    def forward(self, message: Tensor, summed: Tensor, envelope: Tensor, receivers: Grouping) -> Tensor:
        """Return the aggregated messages [n, F]; the arguments are those of `aggregate`."""
        statistics, degree = self.aggregate(message, summed, envelope, receivers)
        scale = torch.log(degree + 1.0) / torch.log(self.typical_degree + 1.0)
        mixed: Tensor = self.mix(torch.cat([statistics, statistics * scale, statistics / scale], dim=-1))
        return mixed


class PNAEq(nn.Module):
    """Encode atoms and edges as scalar features of atoms; messages to vectors are summed, as in PaiNN."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert config.num_radial is not None
        assert config.norm_epsilon is not None
        width, layers = config.hidden_dim, config.num_conv_layers
        self.width = width
        self.embedding = nn.Embedding(MAX_ATOMIC_NUMBER + 1, width, padding_idx=0)
        self.radial = RadialBasis(config.cutoff, config.num_radial)
        self.messages = nn.ModuleList(Message(width, config.num_radial, 2 if k == 0 else 3) for k in range(layers))
        self.aggregations = nn.ModuleList(Aggregation(width, config.norm_epsilon) for _ in range(layers))
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
        receivers, senders = group_edges(batch)
        graphs = group_atoms(batch)
        r = torch.linalg.vector_norm(vector, dim=-1, keepdim=True)
        basis, envelope = self.radial(r)
        radial = build_radial_features(basis, envelope, fused=fused)
        edges = Edges(senders, receivers, radial, (vector / r).split(1, dim=1))
        state = self.state(batch.charge, batch.multiplicity)
        s: Tensor = self.embedding(batch.numbers)
        v = s.new_zeros(3, *s.shape)
        last = len(self.messages) - 1
        layers = zip(self.messages, self.aggregations, self.updates, self.conditions, strict=True)
        for k, (message, aggregate, update, condition) in enumerate(layers):
            message_s, summed, v = message(s, v, edges, fused=fused)
            s = s + aggregate(message_s, summed, envelope, receivers)
            s, v = update(s, v, scalars_only=k == last)
            s = condition(s, state, graphs)
        return s
