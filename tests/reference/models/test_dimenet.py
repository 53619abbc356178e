"""DimeNet++ agrees with torch_geometric's for equal weights, and its bases with their definitions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import eval_legendre, spherical_jn
from torch import Tensor, nn
from torch_geometric.nn.models import dimenet_utils

from harness.reference.data.batch import Batch, build_batch
from harness.reference.data.neighbours import build_neighbour_list
from harness.reference.data.structure import Structure
from harness.reference.errors import InputError
from harness.reference.models.backbones.dimenet import DimeNetPlusPlus
from harness.reference.models.basis import SphericalBessel, bessel_zeros, legendre, polynomial_cutoff
from harness.reference.models.config import ModelConfig
from harness.reference.ops import segment_sums
from tests.reference.conftest import make_crystal, make_molecule
from tests.support.third_party_models import TorchGeometricDimeNet

CONFIG = ModelConfig(
    backbone="dimenet",
    hidden_dim=10,
    num_conv_layers=2,
    cutoff=4.0,
    num_radial=3,
    num_spherical=4,
    basis_emb_size=5,
    int_emb_size=6,
    out_emb_size=12,
)


def make_batch(*structures: Structure, dtype: torch.dtype = torch.float64) -> Batch:
    graphs = [build_neighbour_list(s, cutoff=CONFIG.cutoff) for s in structures]
    return build_batch(graphs, with_triplets=True).to("cpu", dtype)


def compute_vectors(batch: Batch, positions: Tensor) -> Tensor:
    return positions[batch.sender] + batch.shift - positions[batch.receiver]


def make_dimenet(config: ModelConfig = CONFIG) -> DimeNetPlusPlus:
    torch.manual_seed(0)
    net = DimeNetPlusPlus(config).double()
    for name, parameter in net.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter)  # zero biases would hide a missing bias
    return net


def make_peer(net: DimeNetPlusPlus, readout: Tensor) -> TorchGeometricDimeNet:
    """Return torch_geometric's model whose energy is the sum over atoms of the features times `readout` [F]."""
    peer = TorchGeometricDimeNet(CONFIG).double()
    peer_net = peer.net
    peer_net.rbf.freq.data = math.pi * net.basis.frequency.data
    peer_net.emb.emb.weight.data = net.embedding.weight.data[:95].clone()
    peer_net.emb.lin.load_state_dict(net.emb.lin.state_dict())
    peer_net.emb.lin_rbf.load_state_dict(net.emb.lin_rbf.state_dict())
    peer_net.interaction_blocks.load_state_dict(net.interaction_blocks.state_dict())
    for own_block, block in zip(net.output_blocks, peer_net.output_blocks, strict=True):
        weights = own_block.state_dict()
        weights["lin.weight"] = readout.unsqueeze(0) @ weights["lin.weight"]
        block.load_state_dict(weights)
    return peer


@pytest.mark.parametrize(("zeros", "tolerance"), [("single", 2e-6), ("double", 1e-10)])
def test_energy_and_forces_match_torch_geometric(zeros: str, tolerance: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch_geometric has zeros of Bessel functions in single precision; with exact ones, both agree to rounding."""
    assert segment_sums.load() is None
    if zeros == "double":
        monkeypatch.setattr(dimenet_utils, "Jn_zeros", bessel_zeros)
    net, readout = make_dimenet(), torch.linspace(-1.0, 1.0, 10, dtype=torch.float64)
    peer = make_peer(net, readout)
    batch = make_batch(make_molecule(8), make_molecule(5, seed=2))
    positions = batch.positions.clone().requires_grad_()
    features = net(batch, compute_vectors(batch, positions))
    energy = features.new_zeros(2, 10).index_add(0, batch.graph, features) @ readout
    expected = peer(batch, positions)
    energy_gradient, expected_gradient = (torch.autograd.grad(e.sum(), positions)[0] for e in (energy, expected))
    assert expected_gradient.abs().max() > 0.1
    assert (energy - expected).abs().max() < tolerance * expected.abs().max()
    assert (energy_gradient - expected_gradient).abs().max() < tolerance * expected_gradient.abs().max()


def evaluate_bessel(orders: int, count: int, x: np.ndarray) -> np.ndarray:
    zeros = bessel_zeros(orders, count)
    return np.stack(
        [
            math.sqrt(2.0) / abs(spherical_jn(order + 1, z)) * spherical_jn(order, z * x)
            * math.sqrt((2 * order + 1) / (4 * math.pi))
            for order in range(orders)
            for z in zeros[order]
        ],
        axis=1,
    )  # fmt: skip


@pytest.mark.parametrize(("orders", "count"), [(2, 1), (7, 6), (8, 12)])
def test_spherical_bessel_functions_are_exact_in_both_precisions_down_to_coincident_atoms(
    orders: int, count: int
) -> None:
    """The remaining errors are those of the argument z x, which has an error of z / 2 units in the last place."""
    x = np.concatenate([np.geomspace(2e-4, 0.1, 300), np.linspace(0.1, 1.0, 500)]).astype(np.float32)
    expected = evaluate_bessel(orders, count, x.astype(float))
    bessel, largest = SphericalBessel(orders, count), np.abs(expected).max()
    for dtype, allowed in ((torch.float32, 2e-6), (torch.float64, 1e-13)):
        argument = torch.from_numpy(x).to(dtype).unsqueeze(1)
        values = bessel.to(dtype)(argument, torch.ones_like(argument))
        assert values.dtype == dtype
        assert np.abs(values.double().numpy() - expected).max() < allowed * largest


def test_bessel_zeros_are_zeros_and_functions_are_orthonormal() -> None:
    zeros = bessel_zeros(8, 12)
    assert (np.diff(zeros, axis=1) > math.pi - 1e-9).all()
    assert max(np.abs(spherical_jn(order, zeros[order])).max() for order in range(8)) < 1e-15
    x, weight = np.polynomial.legendre.leggauss(80)
    x, weight = 0.5 * (x + 1.0), 0.5 * weight
    functions = evaluate_bessel(8, 12, x).reshape(-1, 8, 12)
    for order in range(8):
        norm = functions[:, order] / math.sqrt((2 * order + 1) / (4 * math.pi))
        assert np.allclose(norm.T @ (norm * (weight * x**2)[:, None]), np.eye(12), atol=1e-12)


def test_legendre_polynomials_match_scipy() -> None:
    c = torch.linspace(-1.0, 1.0, 101, dtype=torch.float64)
    expected = np.stack([eval_legendre(k, c.numpy()) for k in range(8)], axis=1)
    assert np.allclose(legendre(c.unsqueeze(1), 8).numpy(), expected, atol=1e-14)


@pytest.mark.parametrize("exponent", [4, 5, 6])
def test_envelope_matches_the_paper_and_is_accurate_in_single_precision(exponent: int) -> None:
    p = exponent + 1
    x = torch.linspace(0.01, 1.2, 200, dtype=torch.float64)
    paper = 1 - (p + 1) * (p + 2) / 2 * x**p + p * (p + 2) * x ** (p + 1) - p * (p + 1) / 2 * x ** (p + 2)
    expected = torch.where(x < 1, paper, torch.zeros_like(x))
    assert torch.allclose(polynomial_cutoff(x, p), expected, atol=1e-13)
    single = x.float()
    exact = polynomial_cutoff(single.double(), p)
    assert ((polynomial_cutoff(single, p) - exact).abs() <= 1e-5 * exact).all()


def test_messages_depend_on_angles() -> None:
    """Two trimers with the same neighbour distances and different angles have different features."""

    def make_trimer(angle: float) -> Structure:
        third_position = 2.5 * np.array([math.cos(angle), math.sin(angle), 0.0])
        return Structure("trimer", np.array([8, 6, 1]), np.array([[2.5, 0, 0], [0, 0, 0], third_position]))

    net, batch = make_dimenet(), make_batch(make_trimer(2.2), make_trimer(2.9))
    features = net(batch, compute_vectors(batch, batch.positions))
    assert len(batch.receiver) == 8  # the outer atoms are beyond the cutoff of each other
    assert (features[[0, 2]] - features[[3, 5]]).abs().amax(1).min() > 1e-3


@pytest.mark.parametrize(
    "change",
    [
        {"num_radial": 4},
        {"num_spherical": 3},
        {"basis_emb_size": 6},
        {"int_emb_size": 7},
        {"out_emb_size": 13},
        {"num_before_skip": 0},
        {"num_after_skip": 1},
        {"hidden_dim": 11},
        {"num_conv_layers": 1},
    ],
    ids=str,
)
def test_every_hyperparameter_changes_the_shapes(change: dict[str, Any]) -> None:
    def shapes(config: ModelConfig) -> list[torch.Size]:
        return sorted(p.shape for p in DimeNetPlusPlus(config).parameters())

    assert shapes(CONFIG.replace(**change)) != shapes(CONFIG)


def test_envelope_exponent_changes_the_features() -> None:
    batch = make_batch(make_molecule(4))
    a, b = (
        make_dimenet(CONFIG.replace(envelope_exponent=k))(batch, compute_vectors(batch, batch.positions))
        for k in (4, 6)
    )
    assert (a - b).abs().max() > 1e-3


@pytest.mark.parametrize("sizes", [(3, 2, 8, 16, 24, 0, 0, 4, 10), (12, 8, 200, 500, 400, 2, 2, 6, 100)], ids=str)
def test_limits_of_the_search_space_give_finite_forces_in_single_precision(sizes: tuple[int, ...]) -> None:
    names = (
        "num_radial", "num_spherical", "basis_emb_size", "int_emb_size", "out_emb_size", "num_before_skip",
        "num_after_skip", "envelope_exponent", "hidden_dim",
    )  # fmt: skip
    net = DimeNetPlusPlus(
        ModelConfig(backbone="dimenet", cutoff=4.0, num_conv_layers=2, **dict(zip(names, sizes, strict=True)))
    )
    near = Structure("near", np.array([1, 1, 8]), np.array([[0, 0, 0], [0.02, 0, 0], [0, 1.0, 0]]))
    batch = make_batch(make_molecule(5), make_crystal(3), near, dtype=torch.float32)
    positions = batch.positions.clone().requires_grad_()
    features = net(batch, compute_vectors(batch, positions))
    energy_gradient = torch.autograd.grad(features.sum(), positions, create_graph=True)[0]
    assert energy_gradient.isfinite().all()
    energy_gradient.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_layers_of_width_one_are_refused() -> None:
    with pytest.raises(InputError, match="width 1"):
        DimeNetPlusPlus(CONFIG.replace(hidden_dim=1))


def test_sums_over_neighbours_are_in_single_precision_under_bfloat16_autocast() -> None:
    net = DimeNetPlusPlus(CONFIG)
    dtypes_of_sums: set[torch.dtype] = set()
    for block in [*net.interaction_blocks, *net.output_blocks]:
        assert isinstance(block.lin_up, nn.Module)
        block.lin_up.register_forward_pre_hook(lambda _module, inputs: dtypes_of_sums.add(inputs[0].dtype))
    batch = make_batch(make_molecule(5), dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        features = net(batch, compute_vectors(batch, batch.positions))
    assert dtypes_of_sums == {torch.float32}
    assert features.dtype == torch.float32
