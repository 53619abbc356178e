"""MACE: its couplings, radial functions and hyperparameters are correct, and it agrees with mace-torch."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from e3nn import o3
from torch import Tensor

from harness.reference.data.batch import Batch
from harness.reference.data.structure import Structure
from harness.reference.errors import InputError
from harness.reference.inference.prediction import batched_heads
from harness.reference.models.backbones.mace import MACE, Radial
from harness.reference.models.basis import ExactBuffer
from harness.reference.models.clebsch_gordan import (
    compute_edge_couplings,
    compute_symmetric_couplings,
    factor_monomials,
    list_paths,
)
from harness.reference.models.config import ModelConfig
from tests.reference.conftest import make_batch, make_crystal, make_model, make_molecule
from tests.reference.models import mace_torch

TINY = ModelConfig(
    backbone="mace", hidden_dim=6, num_conv_layers=2, cutoff=4.0, num_radial=5, dim_sharedlayers=8, dim_headlayers=12
)
KINDS = ("bessel", "gaussian", "chebyshev")
TRANSFORMS = ("none", "Agnesi", "Soft")
ELEMENTS = [1, 6, 8]


def make_rotation_matrix(highest: int, rotation: Tensor) -> Tensor:
    """Return the matrix of a rotation for features of degrees 0..highest."""
    with mace_torch.double_by_default():
        return o3.Irreps([(1, (d, (-1) ** d)) for d in range(highest + 1)]).D_from_matrix(rotation)


def draw_random_rotation() -> Tensor:
    with mace_torch.double_by_default():
        return o3.rand_matrix()


def compute_monomials(a: Tensor, order: int) -> Tensor:
    values = a
    for n in range(2, order + 1):
        variable, lower = factor_monomials(len(a), n)
        values = a[variable] * values[lower]
    return values


@pytest.mark.parametrize(("max_ell", "order"), [(1, 4), (2, 2), (2, 3), (3, 2), (3, 3)])
def test_products_are_equivariant(max_ell: int, order: int) -> None:
    torch.manual_seed(0)
    rotation, a = draw_random_rotation(), torch.randn((max_ell + 1) ** 2, dtype=torch.float64)
    for degree, table in enumerate(compute_symmetric_couplings(max_ell, order, 3)):
        before, after = (table @ compute_monomials(x, order) for x in (a, make_rotation_matrix(max_ell, rotation) @ a))
        d_matrix = make_rotation_matrix(degree, rotation)[degree**2 :, degree**2 :]
        assert torch.allclose(after, before @ d_matrix.T, rtol=1e-9, atol=1e-10)
        assert len(table) == 0 or before.abs().amax() > 0.01


@pytest.mark.parametrize(("max_ell", "order"), [(2, 2), (2, 3), (3, 2)])
def test_number_of_products_matches_group_theory(max_ell: int, order: int) -> None:
    variables = o3.Irreps([(1, (d, (-1) ** d)) for d in range(max_ell + 1)])
    formula = {2: "ij=ji", 3: "ijk=jik=ikj"}[order]
    reduced = o3.ReducedTensorProducts(formula, i=variables).irreps_out
    expected = [reduced.count((degree, (-1) ** degree)) for degree in range(4)]
    assert [len(table) for table in compute_symmetric_couplings(max_ell, order, 3)] == expected


def test_products_are_independent_and_of_unit_variance() -> None:
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(9, 200_000, dtype=torch.float64, generator=generator)
    for table in compute_symmetric_couplings(2, 2, 2):
        values = (table @ compute_monomials(sample, 2)).flatten(0, 1)
        assert torch.allclose(torch.cov(values), torch.eye(len(values), dtype=torch.float64), atol=0.06)


@pytest.mark.parametrize(("l_in", "l_edge"), [(0, 3), (1, 2), (3, 2), (2, 3)])
def test_messages_are_equivariant(l_in: int, l_edge: int) -> None:
    torch.manual_seed(0)
    table, rotation = compute_edge_couplings(l_in, l_edge), draw_random_rotation()
    y, h = torch.randn((l_edge + 1) ** 2, dtype=torch.float64), torch.randn((l_in + 1) ** 2, dtype=torch.float64)
    before = torch.einsum("yrh,y,h->r", table, y, h)
    after = torch.einsum(
        "yrh,y,h->r", table, make_rotation_matrix(l_edge, rotation) @ y, make_rotation_matrix(l_in, rotation) @ h
    )
    row = 0
    for degree in range(l_edge + 1):
        count = len(list_paths(l_in, l_edge, degree))
        rows = slice(row, row + (2 * degree + 1) * count)
        d_matrix = make_rotation_matrix(degree, rotation)[degree**2 :, degree**2 :]
        assert torch.allclose(
            after[rows].view(-1, count), d_matrix @ before[rows].view(-1, count), rtol=1e-9, atol=1e-10
        )
        row = rows.stop
    assert row == len(before)


def test_tables_stay_exact_through_single_precision() -> None:
    exact = torch.tensor([1.0 / 3.0, np.pi], dtype=torch.float64)
    table = ExactBuffer(exact).float().double()
    assert torch.equal(table(torch.float64), exact)
    assert torch.equal(table(torch.float32), exact.float())
    assert not table.state_dict()


def evaluate_radial(radial: Radial, r: Tensor) -> Tensor:
    """Evaluate the radial functions of a carbon and an oxygen atom at each distance."""
    first = torch.zeros(len(r), dtype=torch.long)
    return radial(r.unsqueeze(1), torch.tensor([6, 8]), first, first + 1)


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_radial_functions_are_independent_and_vanish_smoothly_at_the_cutoff(kind: str, transform: str) -> None:
    radial = Radial(4.0, 5, kind, transform).double()  # type: ignore[arg-type]
    r = torch.tensor([0.3, 1.2, 2.5, 3.999, 4.0, 4.5], dtype=torch.float64, requires_grad=True)
    values = evaluate_radial(radial, r)
    first_derivatives = torch.stack(
        [torch.autograd.grad(values[:, k].sum(), r, create_graph=True)[0] for k in range(5)], dim=1
    )
    second_derivatives = torch.stack(
        [torch.autograd.grad(first_derivatives[:, k].sum(), r, retain_graph=True)[0] for k in range(5)], dim=1
    )
    assert values.shape == (6, 5)
    for tensor, bound in ((values, 1e-8), (first_derivatives, 1e-5), (second_derivatives, 0.1)):
        assert tensor.isfinite().all()
        assert tensor[3].abs().max() < bound
        assert tensor[4:].abs().max() == 0
    assert torch.linalg.matrix_rank(evaluate_radial(radial, torch.linspace(0.5, 3.5, 40).double()), rtol=1e-9) == 5


def test_radial_functions_match_their_definitions() -> None:
    x = torch.linspace(0.2, 3.9, 7, dtype=torch.float64).unsqueeze(1)
    k = torch.arange(1.0, 6.0, dtype=torch.float64)
    values = {kind: Radial(4.0, 5, kind, "none").double().evaluate_functions(x) for kind in KINDS}  # type: ignore[arg-type]
    assert torch.allclose(values["bessel"], np.sqrt(2 / 4.0) * torch.sin(k * np.pi * x / 4.0) / x, rtol=1e-13)
    assert torch.allclose(values["gaussian"], torch.exp(-((x - (k - 1)) ** 2) / 2), rtol=1e-13)
    assert torch.allclose(values["chebyshev"], torch.cos(k * torch.acos(x / 2 - 1)), atol=1e-13)


def test_distance_transforms_follow_the_bond_length() -> None:
    r, radii = torch.linspace(0.05, 4.0, 80, dtype=torch.float64).unsqueeze(1), torch.tensor(1.5).double()
    agnesi, soft = (Radial(4.0, 5, "bessel", name).double().transform_distance(r, radii) for name in TRANSFORMS[1:])  # type: ignore[arg-type]
    assert (agnesi.diff(dim=0) < 0).all()
    assert agnesi[0] > 3.99
    assert torch.allclose(soft[r > 3.0], r[r > 3.0], rtol=1e-3)
    assert torch.allclose(soft[r < 0.8], torch.tensor(0.75 * 1.5).double(), rtol=0.03)


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_radial_type_and_transform_gives_different_finite_forces(kind: str, transform: str) -> None:
    structures = [make_molecule(6), make_crystal(2), make_molecule(1)]
    forces = {}
    for name in {("bessel", "none"), (kind, transform)}:
        config = TINY.replace(radial_type=name[0], distance_transform=name[1])  # type: ignore[arg-type]
        model, batch = make_model(config), make_batch(structures, config)
        forces[name] = batched_heads(model, batch, model.gate(batch.composition)).forces
        assert forces[name].isfinite().all()
        assert forces[name].abs().max() > 1e-6
    first = forces["bessel", "none"]
    assert all((f - first).abs().max() > 1e-6 for name, f in forces.items() if name != ("bessel", "none"))


def test_energy_is_smooth_where_a_neighbour_crosses_the_cutoff() -> None:
    model = make_model(TINY.replace(distance_transform="Agnesi", radial_type="chebyshev"))
    distances = 4.0 + np.array([-0.02, -0.01, 0.01])
    pairs = [Structure("pair", np.array([6, 8]), np.array([[0.0, 0, 0], [d, 0, 0]])) for d in distances]
    batch = make_batch(pairs, TINY)
    energy, forces = batched_heads(model, batch, model.gate(batch.composition))
    assert energy[1] == pytest.approx(float(energy[2]), abs=1e-6)
    assert 0 < forces[2].abs().max() < forces[0].abs().max() / 3 < 1e-3


@pytest.mark.parametrize(
    "change", [{"correlation": 3}, {"max_ell": 2}, {"node_max_ell": 2}, {"num_radial": 6}, {"hidden_dim": 7}]
)
def test_hyperparameters_change_the_number_of_weights(change: dict[str, int]) -> None:
    counts = [sum(p.numel() for p in MACE(c).parameters()) for c in (TINY, TINY.replace(**change))]
    assert counts[0] != counts[1]


def test_each_element_has_one_weight_per_channel_and_coupling() -> None:
    product = MACE(TINY.replace(correlation=3)).products[0]
    couplings = sum(len(table) for order in (1, 2, 3) for table in compute_symmetric_couplings(3, order, 1))
    assert product.weight.shape == (119, couplings, 6)


def test_degrees_that_no_product_can_have_are_refused() -> None:
    MACE(TINY.replace(max_ell=1, correlation=2, node_max_ell=2))
    with pytest.raises(InputError, match="node_max_ell is 3, more than max_ell x correlation = 2"):
        MACE(TINY.replace(max_ell=1, correlation=2, node_max_ell=3))
    with pytest.raises(InputError, match="max_ell is 12, expected at most 4"):
        MACE(TINY.replace(max_ell=12, correlation=1))


def test_import_changes_no_default_of_torch_and_hides_no_warning() -> None:
    program = (
        "import warnings, torch; random = torch.get_rng_state()\n"
        "ignored = [f for f in warnings.filters if f[0] == 'ignore']\n"
        "before = torch.get_default_dtype(), torch.get_num_threads(); import harness.reference.models.backbones.mace\n"
        "assert before == (torch.get_default_dtype(), torch.get_num_threads())\n"
        "assert ignored == [f for f in warnings.filters if f[0] == 'ignore']\n"
        "assert torch.equal(random, torch.get_rng_state())"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def fill_weights(net: MACE) -> None:
    """Set reproducible weights of the usual size; numpy guarantees that the numbers of RandomState do not change."""
    stream = np.random.RandomState(0)
    for parameter in net.parameters():
        size = 1.0 if parameter.shape[0] == 119 else parameter.shape[-1] ** -0.5
        parameter.data = size * torch.from_numpy(stream.standard_normal(parameter.shape))


def sum_weighted_scalars(scalars: list[Tensor], positions: Tensor) -> tuple[float, Tensor]:
    """Return a weighted sum over atoms, layers and channels, and its gradient with respect to the positions."""
    features = torch.cat(scalars, dim=1)
    total = (features * torch.linspace(-1.0, 1.0, features.numel(), dtype=features.dtype).view_as(features)).sum()
    return float(total.detach()), torch.autograd.grad(total, positions)[0]


def make_organic_batch() -> Batch:
    rng = np.random.default_rng(0)
    return make_batch(
        [
            replace(s, numbers=np.array(ELEMENTS)[rng.integers(0, 3, len(s))])
            for s in (make_molecule(7), make_crystal(3))
        ]
    )


def compute_scalars(net: MACE, batch: Batch, positions: Tensor) -> list[Tensor]:
    outputs: list[Tensor] = []
    hooks = [c.register_forward_hook(lambda _, __, out: outputs.append(out)) for c in net.conditions]
    net(batch, positions[batch.sender] + batch.shift - positions[batch.receiver])
    for hook in hooks:
        hook.remove()
    return outputs


PARITY_CONFIGS = {
    "default": TINY,
    "cubic": TINY.replace(num_conv_layers=3, max_ell=2, node_max_ell=2, correlation=3),
    "soft": TINY.replace(radial_type="gaussian", distance_transform="Soft", node_max_ell=2),
}
# Results of mace-torch 0.3.16 for these weights: the weighted sum of features, and its gradient for the first atom.
MACE_TORCH_RESULTS = {
    "default": (1.9428442954861143, [0.0033327805070167654, -0.004511121327855602, 0.00047564610975411924]),
    "cubic": (-1.602193279731236, [0.001057800029449455, 0.00022731505178644608, -0.0003295692483501831]),
    "soft": (1.1121653455984877, [0.0030595787498554523, 0.0048256024849054, 0.002318647469059408]),
}


def build_model(name: str) -> MACE:
    net = MACE(PARITY_CONFIGS[name]).double()
    fill_weights(net)
    return net


@pytest.mark.parametrize("name", list(PARITY_CONFIGS))
def test_scalars_match_the_recorded_values_of_mace_torch(name: str) -> None:
    batch = make_organic_batch()
    positions = batch.positions.clone().requires_grad_()
    total, gradient = sum_weighted_scalars(compute_scalars(build_model(name), batch, positions), positions)
    assert total == pytest.approx(MACE_TORCH_RESULTS[name][0], rel=1e-10)
    assert gradient[0].tolist() == pytest.approx(MACE_TORCH_RESULTS[name][1], rel=1e-9)


def test_scalars_match_mace_torch() -> None:
    pytest.importorskip("mace", reason="mace-torch has to be installed separately: see mace_torch.py")
    for name, config in PARITY_CONFIGS.items():
        net, batch = build_model(name), make_organic_batch()
        positions = batch.positions.clone().requires_grad_()
        peer_scalars = mace_torch.compute_scalars(
            mace_torch.build_peer(config, net, ELEMENTS), config, ELEMENTS, batch, positions
        )
        for result, expected in zip(compute_scalars(net, batch, positions), peer_scalars, strict=True):
            assert torch.allclose(result, expected, rtol=1e-11, atol=1e-12)
        total, gradient = sum_weighted_scalars(peer_scalars, positions)
        assert total == pytest.approx(MACE_TORCH_RESULTS[name][0], rel=1e-10)
        assert gradient[0].tolist() == pytest.approx(MACE_TORCH_RESULTS[name][1], rel=1e-9)
