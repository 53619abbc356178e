"""PaiNN agrees with schnetpack's implementation, which is by the authors of the model, for equal weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from harness.reference.data.batch import Batch
from harness.reference.models.backbones.painn import PaiNN
from tests.reference.conftest import SMALL, make_batch, make_crystal, make_molecule
from tests.support.third_party_models import SchNetPackPaiNN


def compute_features_and_forces(net: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return s [n, F] and the gradient [n, 3] of a weighted sum over s."""
    positions = batch.positions.clone().requires_grad_()
    s = net(batch, positions[batch.sender] + batch.shift - positions[batch.receiver])
    weighted = (s * torch.linspace(-1.0, 1.0, s.numel(), dtype=s.dtype).view_as(s)).sum()
    return s, torch.autograd.grad(weighted, positions, create_graph=True)[0]


@pytest.mark.parametrize("num_radial", [6, 20])
def test_painn_agrees_with_schnetpack(num_radial: int) -> None:
    """Features, forces, and the gradients of a force loss for filters and mixing matrices are equal."""
    torch.manual_seed(0)
    config = SMALL.replace(num_radial=num_radial)
    net, peer = PaiNN(config).double(), SchNetPackPaiNN(config).double()
    peer.copy_weights(net)
    batch = make_batch([make_molecule(12), make_crystal(5)])
    (s, forces), (peer_s, peer_forces) = (
        compute_features_and_forces(net, batch),
        compute_features_and_forces(peer, batch),
    )
    assert torch.allclose(s, peer_s, rtol=1e-10, atol=1e-10)
    assert torch.allclose(forces, peer_forces, rtol=1e-10, atol=1e-10)
    assert forces.abs().max() > 0.1
    forces.pow(2).sum().backward()
    peer_forces.pow(2).sum().backward()
    filters = torch.cat([message.filter.weight.grad for message in net.messages])
    mixing = [update.mix.weight.grad for update in net.updates]
    assert torch.allclose(filters, peer.net.filter_net.weight.grad, rtol=1e-9, atol=1e-10)
    for gradient, block in zip(mixing, peer.net.mixing, strict=True):
        assert torch.allclose(gradient, block.mu_channel_mix.weight.grad, rtol=1e-9, atol=1e-10)
