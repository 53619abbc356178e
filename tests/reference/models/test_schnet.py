"""SchNet agrees with two other implementations for equal weights, and with its equations for extreme arguments."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from harness.reference.data.batch import Batch
from harness.reference.models.backbones import schnet
from harness.reference.models.backbones.schnet import Gaussians, Interaction, SchNet, apply_ssp_and_linear
from harness.reference.models.config import ModelConfig
from tests.reference.conftest import make_batch, make_crystal, make_molecule
from tests.support.third_party_models import TorchGeometricSchNet, import_schnetpack

CONFIG = ModelConfig(backbone="schnet", hidden_dim=12, num_conv_layers=3, cutoff=4.0, num_filters=10, num_gaussians=15)


def make_schnet() -> SchNet:
    torch.manual_seed(0)
    net = SchNet(CONFIG).double()
    for name, parameter in net.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter)  # zero biases would hide a missing bias
    return net


def compute_features(net: SchNet, batch: Batch, positions: Tensor) -> Tensor:
    return net(batch, positions[batch.sender] + batch.shift - positions[batch.receiver])


def compute_energy_and_gradient(energy: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    return energy, torch.autograd.grad(energy.sum(), positions, create_graph=True)[0]


def is_close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-10, atol=1e-10 * float(b.detach().abs().max()))


@pytest.fixture
def double_by_default() -> object:
    """Set the default dtype to float64, since the other implementations round their constants to it."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("double_by_default")
def test_energy_and_forces_match_torch_geometric() -> None:
    net, peer = make_schnet(), TorchGeometricSchNet(CONFIG).double()
    peer_net = peer.net
    peer_net.embedding.weight.data = net.embedding.weight.data[:100].clone()
    missing, unknown = peer_net.interactions.load_state_dict(net.interactions.state_dict(), strict=False)
    assert not unknown
    assert all(".conv.nn." in name for name in missing)  # PyTorch Geometric lists its filters twice, under two names
    for module in peer_net.modules():
        if hasattr(module, "shift"):
            module.shift = math.log(2.0)
    batch = make_batch([make_molecule(8), make_molecule(5, seed=2)], CONFIG)
    positions = batch.positions.clone().requires_grad_()
    atoms = peer_net.lin2(peer_net.act(peer_net.lin1(compute_features(net, batch, positions)))).squeeze(-1)
    result = compute_energy_and_gradient(atoms.new_zeros(2).index_add(0, batch.graph, atoms), positions)
    expected = compute_energy_and_gradient(peer(batch, positions), positions)
    assert expected[1].abs().max() > 1e-3
    assert is_close(result[0], expected[0])
    assert is_close(result[1], expected[1])


def test_features_and_forces_match_schnetpack() -> None:
    layers, names = import_schnetpack("nn"), import_schnetpack("properties")
    net = make_schnet()
    radial, cutoff = layers.GaussianRBF(CONFIG.num_gaussians, CONFIG.cutoff), layers.CosineCutoff(CONFIG.cutoff)
    peer_net = import_schnetpack("representation").SchNet(12, 3, radial, cutoff, n_filters=CONFIG.num_filters).double()
    # SchNetPack rounds these constants to single precision
    radial.offsets = torch.linspace(0, CONFIG.cutoff, radial.n_rbf, dtype=torch.float64)
    radial.widths = torch.full_like(radial.offsets, CONFIG.cutoff / (radial.n_rbf - 1))
    peer_net.embedding.weight.data = net.embedding.weight.data[:100].clone()
    for block, peer in zip(net.interactions, peer_net.interactions, strict=True):
        assert isinstance(block, Interaction)
        for layer, peer_layer in (
            (block.mlp[0], peer.filter_network[0]),
            (block.mlp[2], peer.filter_network[1]),
            (block.conv.lin1, peer.in2f),
            (block.conv.lin2, peer.f2out[0]),
            (block.lin, peer.f2out[1]),
        ):
            peer_layer.load_state_dict(layer.state_dict())
    batch = make_batch([make_molecule(8), make_crystal(3)], CONFIG)
    positions = batch.positions.clone().requires_grad_()
    vector = positions[batch.sender] + batch.shift - positions[batch.receiver]
    inputs = {names.Z: batch.numbers, names.Rij: vector, names.idx_i: batch.receiver, names.idx_j: batch.sender}
    weights = torch.linspace(-1.0, 1.0, 12, dtype=torch.float64)
    result = compute_energy_and_gradient(net(batch, vector) @ weights, positions)
    expected = compute_energy_and_gradient(peer_net(inputs)["scalar_representation"] @ weights, positions)
    assert expected[1].abs().max() > 1e-3
    assert is_close(result[0], expected[0])
    assert is_close(result[1], expected[1])


def test_filters_of_pairs_are_those_of_both_edges(monkeypatch: pytest.MonkeyPatch) -> None:
    """Energies, forces and the gradients of a loss on forces are the same if every edge has its own filter."""
    net, batch = make_schnet(), make_batch([make_molecule(8), make_crystal(3)], CONFIG)

    def compute() -> list[Tensor]:
        positions = batch.positions.clone().requires_grad_()
        energy, slope = compute_energy_and_gradient(compute_features(net, batch, positions).sin().sum(), positions)
        parameters = [p for p in net.parameters() if p.requires_grad]
        slopes = torch.autograd.grad(slope.square().sum(), parameters, allow_unused=True, materialize_grads=True)
        return [energy.reshape(1), slope, *slopes]

    paired = compute()
    monkeypatch.setattr(schnet, "pair_edges", lambda *_: None)
    assert all(is_close(a, b) for a, b in zip(paired, compute(), strict=True) if b.abs().max() > 0)


def test_frozen_networks_have_the_same_energy_forces_and_second_derivatives() -> None:
    """Their filters and the derivatives of these come from one operator, not from layers."""
    net, batch = make_schnet(), make_batch([make_molecule(8), make_crystal(3)], CONFIG)
    results = []
    for frozen in (False, True):
        net.requires_grad_(not frozen)
        positions = batch.positions.clone().requires_grad_()
        energy = compute_features(net, batch, positions).sin().sum()
        (forces,) = torch.autograd.grad(energy, positions, retain_graph=True)
        slope = compute_energy_and_gradient(energy, positions)[1]
        results.append([energy, forces, slope, torch.autograd.grad(slope.square().sum(), positions)[0]])
    assert all(is_close(a, b) for a, b in zip(*results, strict=True))


def test_every_hyperparameter_changes_the_parameter_shapes() -> None:
    shapes = [sorted(p.shape for p in SchNet(c).parameters()) for c in (
        CONFIG,
        CONFIG.replace(num_filters=11),
        CONFIG.replace(num_gaussians=16),
        CONFIG.replace(hidden_dim=13),
        CONFIG.replace(num_conv_layers=2),
    )]  # fmt: skip
    assert all(shapes.count(s) == 1 for s in shapes)


def test_gaussians_match_the_paper_and_none_is_denormal() -> None:
    r = torch.linspace(0.01, 5.0, 200, dtype=torch.float64).unsqueeze(1)
    centres = torch.linspace(0, 5, 50, dtype=torch.float64)
    gaussians = Gaussians(5.0, 50).double()
    assert torch.allclose(gaussians(r), torch.exp(-((r - centres) ** 2) / (2 * (5 / 49) ** 2)), atol=1e-14)
    assert gaussians.float()(r.float()).min() > torch.finfo(torch.float32).tiny


def test_shifted_softplus_is_exact_and_does_not_overflow() -> None:
    x = torch.tensor([-800.0, -30.0, 0.0, 1.0, 25.0, 39.9, 40.1, 800.0], dtype=torch.float64)
    expected = torch.logaddexp(x, torch.zeros_like(x)) - math.log(2.0)
    layer = nn.Linear(1, 1).double()
    nn.init.ones_(layer.weight)
    nn.init.zeros_(layer.bias)
    values = apply_ssp_and_linear(x.unsqueeze(1), layer).squeeze(1)
    assert torch.allclose(values, expected, rtol=1e-15, atol=2e-16)
