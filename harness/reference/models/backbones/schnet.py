"""SchNet: continuous-filter convolutions.

Schuett, Kindermans, Sauceda, Chmiela, Tkatchenko, Mueller, "SchNet: A continuous-filter convolutional neural network
for modeling quantum interactions", NeurIPS 2017 (arXiv 1706.08566); the cosine cutoff is that of Schuett et al., J.
Chem. Theory Comput. 15, 448 (2019). F is the width, K the filters, G the Gaussians, n atoms, e edges.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus
from torch_geometric.nn.models.schnet import InteractionBlock  # type: ignore[import-untyped]

from harness.reference.data.batch import Batch
from harness.reference.data.structure import MAX_ATOMIC_NUMBER
from harness.reference.models.blocks.basis import cosine_cutoff
from harness.reference.models.blocks.conditioning import Condition, State
from harness.reference.models.config import ModelConfig

# exp(-60) is nothing even to doubles beside the largest Gaussian, but no denormal number, which are slow to multiply.
LEAST_EXPONENT = -60.0


def ssp(x: Tensor) -> Tensor:
    """Shifted softplus, ln(e^x / 2 + 1 / 2); linear from where doubles cannot tell the difference."""
    return softplus(x, threshold=40.0) - math.log(2.0)


class Gaussians(nn.Module):
    """exp(-gamma (r - mu_k)^2), centres mu_k from 0 to the cutoff a spacing apart, gamma = 1 / (2 spacing^2)."""

    orders: Tensor

    def __init__(self, cutoff: float, count: int) -> None:
        super().__init__()
        self.per_spacing = (count - 1) / cutoff
        # whole numbers, exact in any type: centres rounded once to single precision would stay so in double
        self.register_buffer("orders", torch.arange(float(count)), persistent=False)

    def forward(self, r: Tensor) -> Tensor:
        """r [e, 1] angstrom -> [e, G]."""
        exponent = -0.5 * (r * self.per_spacing - self.orders).square()
        return torch.exp(exponent.clamp(min=LEAST_EXPONENT))


class Interaction(InteractionBlock):  # type: ignore[misc]
    """Interaction block: atom-wise layer, convolution with filters made from distances, two atom-wise layers.

    Layers, their names and initial weights are torch_geometric's. The convolution is written out: its class computes
    the cutoff anew in each layer, lets it rise again beyond the cutoff, and rounds ln 2 to single precision.
    """

    def __init__(self, width: int, n_gaussians: int, n_filters: int, cutoff: float) -> None:
        super().__init__(width, n_gaussians, n_filters, cutoff)
        del self.conv.nn  # the filters once more, which are in mlp

    def forward(self, x: Tensor, receiver: Tensor, sender: Tensor, basis: Tensor, envelope: Tensor) -> Tensor:
        """x [n, F], basis [e, G], envelope [e, 1] -> what is added to x, [n, F]."""
        weight = self.mlp[2](ssp(self.mlp[0](basis))) * envelope
        message = self.conv.lin1(x).index_select(0, sender) * weight
        heard = message.new_zeros(len(x), message.shape[1]).index_add(0, receiver, message)
        change: Tensor = self.lin(ssp(self.conv.lin2(heard)))
        return change


class SchNet(nn.Module):
    """The encoder: atoms and edges -> scalar features per atom, invariant to rotation, translation, permutation."""

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
        self.state = State()
        self.conditions = nn.ModuleList(Condition(width) for _ in range(layers))

    def forward(self, batch: Batch, vector: Tensor) -> Tensor:
        """vector [e, 3] from receiver to sender in angstrom -> x [n, F]."""
        r = torch.linalg.vector_norm(vector, dim=-1, keepdim=True)
        basis, envelope = self.gaussians(r), cosine_cutoff(r, self.cutoff)
        state = self.state(batch.charge, batch.multiplicity)
        x: Tensor = self.embedding(batch.numbers)
        for interaction, condition in zip(self.interactions, self.conditions, strict=True):
            x = x + interaction(x, batch.receiver, batch.sender, basis, envelope)
            x = condition(x, state, batch.graph)
        return x
