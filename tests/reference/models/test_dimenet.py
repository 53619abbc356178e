"""DimeNet++ against torch_geometric's on equal weights, and its bases against their definitions."""

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
from tests.reference.conftest import crystal, molecule
from tests.support.reference_models import TorchGeometricDimeNet

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


def batch_of(*structures: Structure, dtype: torch.dtype = torch.float64) -> Batch:
    graphs = [build_neighbour_list(s, cutoff=CONFIG.cutoff) for s in structures]
    return build_batch(graphs, with_triplets=True).to("cpu", dtype)


def vectors(batch: Batch, positions: Tensor) -> Tensor:
    return positions[batch.sender] + batch.shift - positions[batch.receiver]


def ours(config: ModelConfig = CONFIG) -> DimeNetPlusPlus:
    torch.manual_seed(0)
    net = DimeNetPlusPlus(config).double()
    for name, parameter in net.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter)  # zeros would hide where a bias is forgotten
    return net


def peer_of(net: DimeNetPlusPlus, readout: Tensor) -> TorchGeometricDimeNet:
    """Return torch_geometric's model of the sum over atoms of our features times a vector [F]."""
    peer = TorchGeometricDimeNet(CONFIG).double()
    theirs = peer.net
    theirs.rbf.freq.data = math.pi * net.basis.frequency.data
    theirs.emb.emb.weight.data = net.embedding.weight.data[:95].clone()
    theirs.emb.lin.load_state_dict(net.emb.lin.state_dict())
    theirs.emb.lin_rbf.load_state_dict(net.emb.lin_rbf.state_dict())
    theirs.interaction_blocks.load_state_dict(net.interaction_blocks.state_dict())
    for mine, block in zip(net.output_blocks, theirs.output_blocks, strict=True):
        weights = mine.state_dict()
        weights["lin.weight"] = readout.unsqueeze(0) @ weights["lin.weight"]
        block.load_state_dict(weights)
    return peer


@pytest.mark.parametrize(("zeros", "agreement"), [("single", 2e-6), ("double", 1e-10)])
def test_energy_and_forces_are_those_of_torch_geometric(
    zeros: str, agreement: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As far as its zeros of the Bessel functions go, which are single precision; to rounding with those in double."""
    if zeros == "double":
        monkeypatch.setattr(dimenet_utils, "Jn_zeros", bessel_zeros)
    net, readout = ours(), torch.linspace(-1.0, 1.0, 10, dtype=torch.float64)
    peer = peer_of(net, readout)
    batch = batch_of(molecule(8), molecule(5, seed=2))
    positions = batch.positions.clone().requires_grad_()
    features = net(batch, vectors(batch, positions))
    energy = features.new_zeros(2, 10).index_add(0, batch.graph, features) @ readout
    expected = peer(batch, positions)
    slope, expected_slope = (torch.autograd.grad(e.sum(), positions)[0] for e in (energy, expected))
    assert expected_slope.abs().max() > 0.1
    assert (energy - expected).abs().max() < agreement * expected.abs().max()
    assert (slope - expected_slope).abs().max() < agreement * expected_slope.abs().max()


def exact_bessel(orders: int, count: int, x: np.ndarray) -> np.ndarray:
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
    """The errors left are those of the argument: z x is known to z half-units in the last place."""
    x = np.concatenate([np.geomspace(2e-4, 0.1, 300), np.linspace(0.1, 1.0, 500)]).astype(np.float32)
    expected = exact_bessel(orders, count, x.astype(float))
    bessel, largest = SphericalBessel(orders, count), np.abs(expected).max()
    for dtype, allowed in ((torch.float32, 2e-6), (torch.float64, 1e-13)):
        argument = torch.from_numpy(x).to(dtype).unsqueeze(1)
        values = bessel.to(dtype)(argument, torch.ones_like(argument))
        assert values.dtype == dtype
        assert np.abs(values.double().numpy() - expected).max() < allowed * largest


def test_zeros_are_zeros_and_functions_are_orthonormal() -> None:
    zeros = bessel_zeros(8, 12)
    assert (np.diff(zeros, axis=1) > math.pi - 1e-9).all()
    assert max(np.abs(spherical_jn(order, zeros[order])).max() for order in range(8)) < 1e-15
    x, weight = np.polynomial.legendre.leggauss(80)
    x, weight = 0.5 * (x + 1.0), 0.5 * weight
    functions = exact_bessel(8, 12, x).reshape(-1, 8, 12)
    for order in range(8):
        norm = functions[:, order] / math.sqrt((2 * order + 1) / (4 * math.pi))
        assert np.allclose(norm.T @ (norm * (weight * x**2)[:, None]), np.eye(12), atol=1e-12)


def test_legendre_polynomials_are_those_of_the_angles() -> None:
    c = torch.linspace(-1.0, 1.0, 101, dtype=torch.float64)
    expected = np.stack([eval_legendre(k, c.numpy()) for k in range(8)], axis=1)
    assert np.allclose(legendre(c.unsqueeze(1), 8).numpy(), expected, atol=1e-14)


@pytest.mark.parametrize("exponent", [4, 5, 6])
def test_envelope_is_that_of_the_paper_and_as_good_in_single_precision(exponent: int) -> None:
    p = exponent + 1
    x = torch.linspace(0.01, 1.2, 200, dtype=torch.float64)
    paper = 1 - (p + 1) * (p + 2) / 2 * x**p + p * (p + 2) * x ** (p + 1) - p * (p + 1) / 2 * x ** (p + 2)
    expected = torch.where(x < 1, paper, torch.zeros_like(x))
    assert torch.allclose(polynomial_cutoff(x, p), expected, atol=1e-13)
    single = x.float()
    exact = polynomial_cutoff(single.double(), p)
    assert ((polynomial_cutoff(single, p) - exact).abs() <= 1e-5 * exact).all()


def test_messages_depend_on_angles() -> None:
    """Two trimers with all bonds and all neighbours' distances alike, but another angle, have other features."""

    def trimer(angle: float) -> Structure:
        bent = 2.5 * np.array([math.cos(angle), math.sin(angle), 0.0])
        return Structure("trimer", np.array([8, 6, 1]), np.array([[2.5, 0, 0], [0, 0, 0], bent]))

    net, batch = ours(), batch_of(trimer(2.2), trimer(2.9))
    features = net(batch, vectors(batch, batch.positions))
    assert len(batch.receiver) == 8  # the outer atoms are out of each other's sight
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
    batch = batch_of(molecule(4))
    a, b = (ours(CONFIG.replace(envelope_exponent=k))(batch, vectors(batch, batch.positions)) for k in (4, 6))
    assert (a - b).abs().max() > 1e-3


@pytest.mark.parametrize("ends", [(3, 2, 8, 16, 24, 0, 0, 4, 10), (12, 8, 200, 500, 400, 2, 2, 6, 100)], ids=str)
def test_ends_of_the_search_space_give_finite_forces_in_single_precision(ends: tuple[int, ...]) -> None:
    names = (
        "num_radial", "num_spherical", "basis_emb_size", "int_emb_size", "out_emb_size", "num_before_skip",
        "num_after_skip", "envelope_exponent", "hidden_dim",
    )  # fmt: skip
    net = DimeNetPlusPlus(
        ModelConfig(backbone="dimenet", cutoff=4.0, num_conv_layers=2, **dict(zip(names, ends, strict=True)))
    )
    near = Structure("near", np.array([1, 1, 8]), np.array([[0, 0, 0], [0.02, 0, 0], [0, 1.0, 0]]))
    batch = batch_of(molecule(5), crystal(3), near, dtype=torch.float32)
    positions = batch.positions.clone().requires_grad_()
    features = net(batch, vectors(batch, positions))
    slope = torch.autograd.grad(features.sum(), positions, create_graph=True)[0]
    assert slope.isfinite().all()
    slope.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_layers_of_one_number_are_refused() -> None:
    with pytest.raises(InputError, match="width 1"):
        DimeNetPlusPlus(CONFIG.replace(hidden_dim=1))


def test_sums_over_neighbours_are_single_where_products_are_bfloat16() -> None:
    net = DimeNetPlusPlus(CONFIG)
    summed: set[torch.dtype] = set()
    for block in [*net.interaction_blocks, *net.output_blocks]:
        assert isinstance(block.lin_up, nn.Module)
        block.lin_up.register_forward_pre_hook(lambda _module, inputs: summed.add(inputs[0].dtype))
    batch = batch_of(molecule(5), dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        features = net(batch, vectors(batch, batch.positions))
    assert summed == {torch.float32}
    assert features.dtype == torch.float32
