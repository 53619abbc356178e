"""EGNN: an E(n)-equivariant graph neural network.

Satorras, Hoogeboom, Welling, "E(n) equivariant graph neural networks", ICML 2021 (arXiv 2102.09844). Equation numbers
are that paper's. F is the width, n atoms, e edges.

Coordinates x_i + u_i are carried as displacements u alone: with vector_ij = x_j - x_i, periodic image included, the
difference of moved coordinates is vector_ij + u_j - u_i. Three choices make EGNN an interatomic potential: messages are
weighted by w_ij, the cosine cutoff of the distance before any moves; the C of eq. 4, one over the number of neighbours,
is 1 / (1 + sum_j w_ij), which is continuous as a neighbour crosses the cutoff; and phi_x ends in tanh, so that no atom
moves further than its longest edge and layers do not multiply distances without bound.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, silu

from harness.reference.data.batch import Batch
from harness.reference.data.structure import MAX_ATOMIC_NUMBER
from harness.reference.models.basis import cosine_cutoff
from harness.reference.models.conditioning import ChargeSpinEmbedding, FiLM
from harness.reference.models.config import ModelConfig
from harness.reference.models.edge_groups import EdgeGroups, group_atoms, group_edges
from harness.reference.ops.segment_sums import Grouping, gather, segment_sum

INITIAL_GAIN = 1e-3


class Interaction(nn.Module):
    """Eqs. 3, 5 and 6: an atom receives messages of its neighbours and changes its features."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.edge_hidden = nn.Linear(2 * width + 1, width)
        self.edge = nn.Linear(width, width)
        self.node_hidden = nn.Linear(2 * width, width)
        self.node = nn.Linear(width, width)

    def messages(self, h: Tensor, square: Tensor, edges: EdgeGroups) -> Tensor:
        """Return m_ij = phi_e(h_i, h_j, |x_i - x_j|^2) (eq. 3), [e, F].

        The first layer of phi_e is split in three, so that two parts of it act on atoms, not on edges.

        Args:
            h: [n, F] features.
            square: [e, 1] squared distances in angstrom^2.
            edges: The edges.
        """
        w_receiver, w_sender, w_square = self.edge_hidden.weight.split([self.width, self.width, 1], dim=1)
        of_receiver = gather(linear(h, w_receiver, self.edge_hidden.bias), edges.receivers)
        of_sender = gather(linear(h, w_sender), edges.senders)
        return silu(self.edge(silu(of_receiver + of_sender + square * w_square.T)))

    def forward(self, h: Tensor, message: Tensor, weight: Tensor, receivers: Grouping) -> Tensor:
        """Return the new h [n, F] (eqs. 5 and 6, with the residual of the paper's appendix).

        Args:
            h: [n, F] features.
            message: [e, F] from `messages`.
            weight: [e, 1] of each message.
            receivers: The receiver of each edge.
        """
        received = segment_sum(message * weight, receivers)
        return h + self.node(silu(self.node_hidden(torch.cat([h, received], dim=-1))))


class CoordinateUpdate(nn.Module):
    """Eq. 4: atoms move along their edges."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(width, width)
        self.length = nn.Linear(width, 1, bias=False)
        nn.init.xavier_uniform_(self.length.weight, gain=INITIAL_GAIN)

    def forward(self, u: Tensor, vector: Tensor, message: Tensor, share: Tensor, receivers: Grouping) -> Tensor:
        """Return the new displacements u [n, 3] in angstrom.

        Args:
            u: [n, 3] displacements in angstrom.
            vector: [e, 3] from the moved receiver to the moved sender in angstrom.
            message: [e, F].
            share: [e, 1], C of eq. 4 times the weight of the message.
            receivers: The receiver of each edge.
        """
        length = torch.tanh(self.length(silu(self.hidden(message))))
        return u - segment_sum(vector * (length * share), receivers)


class EGNN(nn.Module):
    """Encode atoms and edges as scalar features of atoms, invariant to rotation, translation and permutation."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, layers = config.hidden_dim, config.num_conv_layers
        self.cutoff = config.cutoff
        self.embedding = nn.Embedding(MAX_ATOMIC_NUMBER + 1, width, padding_idx=0)
        self.interactions = nn.ModuleList(Interaction(width) for _ in range(layers))
        # nothing reads the coordinates after the last layer
        self.moves = nn.ModuleList(CoordinateUpdate(width) for _ in range(layers - 1))
        self.state = ChargeSpinEmbedding()
        self.conditions = nn.ModuleList(FiLM(width) for _ in range(layers))

    def forward(self, batch: Batch, vector: Tensor) -> Tensor:
        """Return the features h [n, F] for vector [e, 3] from receiver to sender in angstrom."""
        edges, graphs = group_edges(batch), group_atoms(batch)
        weight = cosine_cutoff(torch.linalg.vector_norm(vector, dim=-1, keepdim=True), self.cutoff)
        share = weight / (1.0 + gather(segment_sum(weight, edges.receivers), edges.receivers))
        state = self.state(batch.charge, batch.multiplicity)
        h: Tensor = self.embedding(batch.numbers)
        u = vector.new_zeros(len(batch.numbers), 3)
        moved = vector
        for k, interaction in enumerate(self.interactions):
            assert isinstance(interaction, Interaction)
            message = interaction.messages(h, moved.square().sum(-1, keepdim=True), edges)
            h = interaction(h, message, weight, edges.receivers)
            h = self.conditions[k](h, state, graphs)
            if k < len(self.moves):
                u = self.moves[k](u, moved, message, share, edges.receivers)
                moved = vector + gather(u, edges.senders) - gather(u, edges.receivers)
        return h
