"""Our PaiNN against schnetpack's, an implementation by the model's authors, on equal weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from harness.reference.data.batch import Batch
from harness.reference.models.backbones.painn import PaiNN
from tests.reference.conftest import SMALL, batch_of, crystal, molecule
from tests.support.reference_models import SchNetPackPaiNN


def features_and_forces(net: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return s [n, F] and the gradient [n, 3] of a weighted sum over s."""
    positions = batch.positions.clone().requires_grad_()
    s = net(batch, positions[batch.sender] + batch.shift - positions[batch.receiver])
    weighted = (s * torch.linspace(-1.0, 1.0, s.numel(), dtype=s.dtype).view_as(s)).sum()
    return s, torch.autograd.grad(weighted, positions, create_graph=True)[0]


@pytest.mark.parametrize("num_radial", [6, 20])
def test_painn_is_that_of_schnetpack(num_radial: int) -> None:
    """Features, forces, and the gradients that a force loss gives to filters and mixing matrices."""
    torch.manual_seed(0)
    config = SMALL.replace(num_radial=num_radial)
    ours, theirs = PaiNN(config).double(), SchNetPackPaiNN(config).double()
    theirs.copy_weights(ours)
    batch = batch_of([molecule(12), crystal(5)])
    (s, forces), (their_s, their_forces) = features_and_forces(ours, batch), features_and_forces(theirs, batch)
    assert torch.allclose(s, their_s, rtol=1e-10, atol=1e-10)
    assert torch.allclose(forces, their_forces, rtol=1e-10, atol=1e-10)
    assert forces.abs().max() > 0.1
    forces.pow(2).sum().backward()
    their_forces.pow(2).sum().backward()
    filters = torch.cat([message.filter.weight.grad for message in ours.messages])
    mixing = [update.mix.weight.grad for update in ours.updates]
    assert torch.allclose(filters, theirs.net.filter_net.weight.grad, rtol=1e-9, atol=1e-10)
    for mine, block in zip(mixing, theirs.net.mixing, strict=True):
        assert torch.allclose(mine, block.mu_channel_mix.weight.grad, rtol=1e-9, atol=1e-10)
