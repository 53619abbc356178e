"""DimeNet++: directional messages between edges.

Gasteiger, Giri, Margraf, Guennemann, "Fast and uncertainty-aware directional message passing for non-equilibrium
molecules" (arXiv 2011.14115), after "Directional message passing for molecular graphs", ICLR 2020 (arXiv 2003.03123).
F is the width, N radial and L angular functions, n atoms, e edges j -> i, t pairs of edges k -> j -> i. Layers, their
names and initial weights are torch_geometric's. The arithmetic differs: angles enter by their cosine, terms that all
blocks share are computed once, and sums over neighbours keep the type of the distances even under autocast.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch_geometric.nn.models.dimenet import (  # type: ignore[import-untyped]
    EmbeddingBlock,
    InteractionPPBlock,
    OutputPPBlock,
    ResidualLayer,
)

from harness.reference.data.batch import Batch
from harness.reference.data.structure import MAX_ATOMIC_NUMBER
from harness.reference.errors import InputError
from harness.reference.models.autocast import set_autocast
from harness.reference.models.basis import SphericalBessel, legendre, polynomial_cutoff
from harness.reference.models.conditioning import ChargeSpinEmbedding, FiLM
from harness.reference.models.config import ModelConfig
from harness.reference.models.edge_groups import EdgeGroups, group_atoms, group_edges
from harness.reference.ops.activations import silu
from harness.reference.ops.products import apply_linear, linear
from harness.reference.ops.segment_sums import Grouping, gather, gather_product, group_rows, segment_sum
from harness.reference.ops.triplets import Triplets, sum_triplets

OUTPUT_LAYERS = 3


class Basis(nn.Module):
    """Bessel functions of distances and Legendre polynomials of angles: e_RBF and a_SBF of arXiv 2003.03123.

    The paper's angle at j is between the edges to k and to i; here, as in torch_geometric, between the directions of
    k -> j and j -> i, its supplement: odd orders change sign, which the weights absorb.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert config.num_radial is not None
        assert config.num_spherical is not None
        assert config.envelope_exponent is not None
        self.cutoff, self.exponent = config.cutoff, config.envelope_exponent + 1
        self.n_spherical, self.n_radial = config.num_spherical, config.num_radial
        # frequencies in units of pi: exact in any type, and trained from there
        self.frequency = nn.Parameter(torch.arange(1.0, config.num_radial + 1))
        self.bessel = SphericalBessel(config.num_spherical, config.num_radial)

    def forward(self, vector: Tensor, triplets: Triplets) -> tuple[Tensor, Tensor, Tensor]:
        """Return the radial basis [e, N] and the factors of the spherical basis [e, L, N] and [t, L].

        An element of the spherical basis of a pair is the product of that of its incoming edge and that of its angle.

        Args:
            vector: [e, 3] from receiver to sender in angstrom.
            triplets: The pairs of edges.
        """
        r = torch.linalg.vector_norm(vector, dim=-1, keepdim=True)
        x = r / self.cutoff
        envelope = polynomial_cutoff(x, self.exponent) / x
        radial = envelope * torch.sin(x * (math.pi * self.frequency))
        unit = vector / r
        cosine = gather_product(unit, unit, triplets.incoming, triplets.outgoing).sum(-1, keepdim=True)
        spherical = self.bessel(x, envelope).view(-1, self.n_spherical, self.n_radial)
        return radial, spherical, legendre(cosine, self.n_spherical)


class Embedding(EmbeddingBlock):  # type: ignore[misc]
    """m_ji = silu(W [h_i, h_j, silu(e_ji)] + b), with W split in three so that two parts act on atoms, not on edges."""

    def forward(self, h: Tensor, radial: Tensor, edges: EdgeGroups) -> Tensor:
        """Return the first messages [e, F] for h [n, F] and radial [e, N]."""
        w_receiver, w_sender, w_edge = self.lin.weight.chunk(3, dim=1)
        edge = linear(silu(apply_linear(self.lin_rbf, radial)), w_edge, self.lin.bias)
        atoms = gather(linear(h, w_receiver), edges.receivers) + gather(linear(h, w_sender), edges.senders)
        return silu(edge + atoms).to(radial.dtype)


class Interaction(InteractionPPBlock):  # type: ignore[misc]
    """Interaction block: each message is updated by the messages that arrive at the atom from which it starts."""

    def forward(self, m: Tensor, radial: Tensor, spherical: Tensor, angular: Tensor, triplets: Triplets) -> Tensor:
        """Return the new messages [e, F].

        The weights of the spherical basis are applied to edges, not to pairs of edges, which are far more.

        Args:
            m: [e, F] messages.
            radial: [e, N].
            spherical: [e, L, N].
            angular: [t, L].
            triplets: The pairs of edges.
        """
        filter_weight = self.lin_rbf2.weight @ self.lin_rbf1.weight
        down = silu(apply_linear(self.lin_down, silu(apply_linear(self.lin_kj, m)) * linear(radial, filter_weight)))
        weight = (self.lin_sbf2.weight @ self.lin_sbf1.weight).view(-1, *spherical.shape[1:]).permute(1, 2, 0)
        with set_autocast(m.device.type, None):
            received = sum_triplets(angular, spherical, weight.to(radial.dtype), down.to(radial.dtype), triplets)
        h = silu(apply_linear(self.lin_ji, m)) + silu(apply_linear(self.lin_up, received))
        for layer in self.layers_before_skip:
            h = apply_residual_layer(layer, h)
        h = silu(apply_linear(self.lin, h)) + m
        for layer in self.layers_after_skip:
            h = apply_residual_layer(layer, h)
        return h


def apply_residual_layer(layer: ResidualLayer, x: Tensor) -> Tensor:
    """Return x plus two dense layers of x."""
    return x + silu(apply_linear(layer.lin2, silu(apply_linear(layer.lin1, x))))


class Output(OutputPPBlock):  # type: ignore[misc]
    """Sum messages on the atoms that they reach, and apply dense layers (the output block)."""

    def forward(self, m: Tensor, radial: Tensor, receivers: Grouping) -> Tensor:
        """Return the features [n, F] for messages m [e, F] and radial [e, N]."""
        filtered = (apply_linear(self.lin_rbf, radial) * m).to(radial.dtype)
        h = apply_linear(self.lin_up, segment_sum(filtered, receivers))
        for layer in self.lins:
            h = silu(apply_linear(layer, h))
        return apply_linear(self.lin, h).to(radial.dtype)


class DimeNetPlusPlus(nn.Module):
    """Encode atoms, edges and pairs of edges as scalar features of atoms.

    Raises:
        InputError: The initial weights of torch_geometric are not finite for these sizes.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, layers = config.hidden_dim, config.num_conv_layers
        self.basis = Basis(config)
        self.embedding = nn.Embedding(MAX_ATOMIC_NUMBER + 1, width, padding_idx=0)
        self.emb = Embedding(config.num_radial, width, silu)
        del self.emb.emb  # torch_geometric's table of 95 elements, which self.embedding replaces
        self.interaction_blocks = nn.ModuleList(
            Interaction(
                hidden_channels=width,
                int_emb_size=config.int_emb_size,
                basis_emb_size=config.basis_emb_size,
                num_spherical=config.num_spherical,
                num_radial=config.num_radial,
                num_before_skip=config.num_before_skip,
                num_after_skip=config.num_after_skip,
                act=silu,
            )
            for _ in range(layers)
        )
        self.output_blocks = nn.ModuleList(
            Output(
                num_radial=config.num_radial,
                hidden_channels=width,
                out_emb_channels=config.out_emb_size,
                out_channels=width,
                num_layers=OUTPUT_LAYERS,
                act=silu,
                output_initializer="glorot_orthogonal",
            )
            for _ in range(layers + 1)
        )
        self.state = ChargeSpinEmbedding()
        self.conditions = nn.ModuleList(FiLM(width) for _ in range(layers))
        self.condition = FiLM(width)
        if not all(p.isfinite().all() for p in self.parameters()):
            raise InputError("dimenet: two neighbouring layers of width 1 cannot be initialised")

    def forward(self, batch: Batch, vector: Tensor) -> Tensor:
        """Return the features [n, F] for vector [e, 3] from receiver to sender in angstrom."""
        edges, graphs = group_edges(batch), group_atoms(batch)
        edge_graphs = group_rows(batch.edge_graph, batch.composition.shape[0])
        incoming, outgoing = (group_rows(x, batch.receiver.shape[0]) for x in (batch.incoming, batch.outgoing))
        triplets = Triplets(incoming, outgoing, edges.receivers)
        radial, spherical, angular = self.basis(vector, triplets)
        state = self.state(batch.charge, batch.multiplicity)
        m = self.emb(self.embedding(batch.numbers), radial, edges)
        h = self.output_blocks[0](m, radial, edges.receivers)
        for k, block in enumerate(self.interaction_blocks):
            m = self.conditions[k](block(m, radial, spherical, angular, triplets), state, edge_graphs)
            h = h + self.output_blocks[k + 1](m, radial, edges.receivers)
        return self.condition(h, state, graphs)
