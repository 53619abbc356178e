"""SchNet: continuous-filter convolutions.

Schuett, Kindermans, Sauceda, Chmiela, Tkatchenko, Mueller, "SchNet: A continuous-filter convolutional neural network
for modeling quantum interactions", NeurIPS 2017 (arXiv 1706.08566); the cosine cutoff is that of Schuett et al., J.
Chem. Theory Comput. 15, 448 (2019). F is the width. There are K filters, G Gaussians, n atoms, e edges, and p
pairs of an edge and its reverse.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus, threshold
from torch_geometric.nn.models.schnet import InteractionBlock  # type: ignore[import-untyped]

from harness.reference.data.batch import Batch
from harness.reference.data.structure import MAX_ATOMIC_NUMBER
from harness.reference.models.basis import cosine_cutoff
from harness.reference.models.conditioning import ChargeSpinEmbedding, FiLM
from harness.reference.models.config import ModelConfig
from harness.reference.models.edge_groups import EdgeGroups, group_atoms, group_edges
from harness.reference.ops.products import apply_linear, has_hooks, linear
from harness.reference.ops.radial_filters import RadialFilter, can_evaluate_filters, evaluate_filters, sum_filtered
from harness.reference.ops.segment_sums import Grouping, gather, pair_edges

# exp(-60) is negligible next to the largest Gaussian even in double precision, but not denormal, which would be slow.
MIN_EXPONENT = -60.0


def apply_ssp_and_linear(x: Tensor, layer: nn.Linear) -> Tensor:
    """Return layer(ssp(x)) with the shifted softplus ssp(x) = ln(e^x + 1) - ln 2.

    The bias contains the shift, unless the layer has hooks. Above 40, the softplus of x equals x in double precision.
    """
    y = softplus(x, threshold=40.0)
    if has_hooks(layer):
        return apply_linear(layer, y - math.log(2.0))
    return linear(y, layer.weight, shift_bias(layer))


def shift_bias(layer: nn.Linear) -> Tensor:
    """Return b - ln 2 sum_k W_k, [out], the bias that shifts a softplus before the layer."""
    return layer.bias.sub(layer.weight.sum(1), alpha=math.log(2.0))


def apply_filter(first: nn.Linear, last: nn.Linear, basis: Tensor, envelope: Tensor) -> Tensor:
    """Return the filters [e, K] of a layer for Gaussians [e, G] and envelopes [e, 1] of the distances."""
    return apply_ssp_and_linear(apply_linear(first, basis), last) * envelope


class Gaussians(nn.Module):
    """exp(-gamma (r - mu_k)^2), with centres mu_k evenly spaced from 0 to the cutoff and gamma = 1 / (2 spacing^2)."""

    orders: Tensor

    def __init__(self, cutoff: float, count: int) -> None:
        super().__init__()
        self.inverse_spacing = (count - 1) / cutoff
        # whole numbers are exact in any type; centres, once rounded to single precision, would stay rounded in double
        self.register_buffer("orders", torch.arange(float(count)), persistent=False)

    def forward(self, r: Tensor) -> Tensor:
        """Expand distances r [e, 1] in angstrom -> [e, G]."""
        exponent = -0.5 * (r * self.inverse_spacing - self.orders).square()
        # the derivative of a threshold is one pass over the tensor, that of clamp three
        return torch.exp(threshold(exponent, MIN_EXPONENT, MIN_EXPONENT))


class Interaction(InteractionBlock):  # type: ignore[misc]
    """Interaction block: an atom-wise layer, a convolution with distance-dependent filters, two atom-wise layers.

    Layers, their names and initial weights are torch_geometric's. The convolution is not, as torch_geometric's computes
    the envelope again in each layer, lets it rise again beyond the cutoff, and rounds ln 2 to single precision.
    """

    def __init__(self, width: int, n_gaussians: int, n_filters: int, cutoff: float) -> None:
        super().__init__(width, n_gaussians, n_filters, cutoff)
        del self.conv.nn  # the same module as self.mlp

    def forward(
        self, x: Tensor, r: Tensor, radial: RadialFilter, edges: EdgeGroups, pair: Grouping | None = None
    ) -> Tensor:
        """Return the update that the caller adds to x, [n, F].

        Args:
            x: [n, F] features.
            r: [e, 1] distances, or [p, 1] of pairs.
            radial: The filter at these distances.
            edges: The edges.
            pair: The pair of each edge; None: r has a row for each edge.
        """
        received = sum_filtered(apply_linear(self.conv.lin1, x), r, radial, edges.senders, edges.receivers, pair)
        return apply_ssp_and_linear(apply_linear(self.conv.lin2, received), self.lin)


class SchNet(nn.Module):
    """Encode atoms and edges as scalar features of atoms, invariant to rotation, translation and permutation."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert config.num_filters is not None
        assert config.num_gaussians is not None
        width, layers = config.hidden_dim, config.num_conv_layers
        self.cutoff = config.cutoff
        self.embedding = nn.Embedding(MAX_ATOMIC_NUMBER + 1, width, padding_idx=0)
        self.gaussians = Gaussians(config.cutoff, config.num_gaussians)
        self.interactions = nn.ModuleList(
            Interaction(width, config.num_gaussians, config.num_filters, config.cutoff) for _ in range(layers)
        )
        self.state = ChargeSpinEmbedding()
        self.conditions = nn.ModuleList(FiLM(width) for _ in range(layers))

    def forward(self, batch: Batch, vector: Tensor) -> Tensor:
        """Return the features x [n, F] for vector [e, 3] from receiver to sender in angstrom."""
        edges, graphs = group_edges(batch), group_atoms(batch)
        # the filters of an edge and its reverse are equal
        pairs = pair_edges(edges.receivers, edges.senders, batch.shift)
        pair = None if pairs is None else pairs[0]
        r = torch.linalg.vector_norm(vector if pairs is None else gather(vector, pairs[1]), dim=-1, keepdim=True)
        filters = self.compute_filters(r, pair)
        state = self.state(batch.charge, batch.multiplicity)
        x: Tensor = self.embedding(batch.numbers)
        for interaction, condition, radial in zip(self.interactions, self.conditions, filters, strict=True):
            x = x + interaction(x, r, radial, edges, pair)
            x = condition(x, state, graphs)
        return x

    def compute_filters(self, r: Tensor, pair: Grouping | None) -> list[RadialFilter]:
        """Return the filter of each layer for distances r [e, 1] in angstrom, or [p, 1] of pairs."""
        networks: list[Any] = [interaction.mlp for interaction in self.interactions]
        linear_layers = [layer for a, _, b in networks for layer in (a, b)]
        parameters = [p for layer in linear_layers for p in layer.parameters()]
        if pair is None or any(map(has_hooks, linear_layers)) or not can_evaluate_filters(r, parameters):
            basis, envelope = self.gaussians(r), cosine_cutoff(r, self.cutoff)
            return [RadialFilter(apply_filter(a, b, basis, envelope)) for a, _, b in networks]
        layers = [x for a, _, b in networks for x in (a.weight, a.bias, b.weight, shift_bias(b))]
        return evaluate_filters(r, len(self.gaussians.orders), self.cutoff, MIN_EXPONENT, layers)
