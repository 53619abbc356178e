"""PaiNN with adaptive cutoffs, repulsion and norm: continuous, exact in its derivatives, repulsive and bounded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase.build import bulk
from ase.units import Bohr, Hartree
from torch import Tensor

from harness.reference.data.batch import Batch, build_batch
from harness.reference.data.neighbours import (
    ADAPTIVE_POWER,
    WEIGHT_PER_NEIGHBOUR,
    NeighbourSpec,
    build_neighbour_list,
    solve_adaptive_cutoffs,
)
from harness.reference.data.structure import Structure
from harness.reference.datasets.parsing.constants import COVALENT_RADII
from harness.reference.datasets.random_structures import make_random_structures
from harness.reference.errors import InputError
from harness.reference.inference.prediction import Prediction, batched_heads, predict_with_stress
from harness.reference.models import checkpoints
from harness.reference.models.adaptive_cutoff import compute_adaptive_scales
from harness.reference.models.config import REPULSION_CORE, ModelConfig
from harness.reference.models.foundation import FoundationModel
from harness.reference.models.repulsion import Repulsion
from harness.reference.ops import messages
from harness.reference.ops.bounded_features import bound_features
from harness.reference.ops.segment_sums import group_rows
from harness.reference.programs.screening.candidates.workload import GraphArrays, build_batch_from_arrays
from tests.reference.conftest import SMALL, make_model, make_molecule

ADAPTIVE = 14.0
SMOOTH = SMALL.replace(adaptive_neighbours=ADAPTIVE, repulsion="zbl", feature_norm="rms")
CAPPED = SMALL.replace(max_neighbours=14)
Key = Callable[[Structure], bytes]


def predict(model: FoundationModel, structures: list[Structure], spec: NeighbourSpec | None = None) -> Prediction:
    batch = build_batch([(spec or model.config.neighbour_spec).build_list(s) for s in structures])
    return batched_heads(model, batch, model.gate(batch.composition))


def make_copper(rng: np.random.Generator) -> Structure:
    """Return a cell of copper with displaced atoms; there are 54 neighbours within 5 angstrom."""
    atoms = bulk("Cu", cubic=True)
    positions = atoms.positions + rng.normal(0, 0.1, (4, 3))
    return Structure("copper", atoms.numbers, positions, np.array(atoms.cell), (True, True, True))


def make_organic_molecule(rng: np.random.Generator, n: int = 24) -> Structure:
    """Return atoms at least 1.1 angstrom apart, about as dense as an organic crystal."""
    positions: list[np.ndarray] = []
    while len(positions) < n:
        p = rng.uniform(0, 6.0, 3)
        if all(np.linalg.norm(p - q) > 1.1 for q in positions):
            positions.append(p)
    return Structure("molecule", rng.choice([1, 6, 7, 8], n), np.array(positions))


STRUCTURES = [make_copper(np.random.default_rng(0)), make_organic_molecule(np.random.default_rng(1))]


@pytest.fixture(scope="module")
def smooth() -> FoundationModel:
    return make_model(SMOOTH)


# The adaptive cutoff


def list_edges(structure: Structure) -> tuple[np.ndarray, np.ndarray]:
    """Return the receivers of all edges within the cutoff, and the distances divided by it."""
    graph = build_neighbour_list(structure, cutoff=SMOOTH.cutoff)
    vectors = structure.positions[graph.sender] + graph.shift - structure.positions[graph.receiver]
    return graph.receiver, np.linalg.norm(vectors, axis=1) / SMOOTH.cutoff


@pytest.fixture(params=[False, True], ids=["unfused", "fused"])
def fused(request: pytest.FixtureRequest) -> bool:
    messages.load(torch.device("cpu"))
    return bool(request.param)


@pytest.mark.parametrize("structure", STRUCTURES, ids=lambda s: s.name)
def test_adaptive_cutoffs_solve_their_equation(structure: Structure, fused: bool) -> None:
    receiver, ratio = list_edges(structure)
    n = len(structure)
    numpy_scale = solve_adaptive_cutoffs(receiver, ratio, ADAPTIVE, n, tolerance=0.0)
    cubes, receivers = torch.from_numpy(ratio**3), group_rows(torch.from_numpy(receiver), n)
    scale = compute_adaptive_scales(cubes, receivers, ADAPTIVE, fused=fused).numpy()
    assert scale == pytest.approx(numpy_scale, rel=1e-12)
    cube = ratio**3 * scale[receiver]
    weight = np.where(cube < 1, (1 - cube) ** 3, 0.0)
    total = WEIGHT_PER_NEIGHBOUR * ADAPTIVE
    assert np.bincount(receiver, weight) + total * scale ** (-ADAPTIVE_POWER) == pytest.approx(total, rel=1e-12)
    assert (scale > 1).all()


def test_an_adaptive_cutoff_has_the_requested_number_of_neighbours_at_uniform_density() -> None:
    rng = np.random.default_rng(0)
    shell = np.cbrt(rng.random(4000))  # 4000 neighbours are far more than requested
    scale = solve_adaptive_cutoffs(np.zeros(4000, int), shell, 200.0, 1, tolerance=0.0)
    assert int((shell**3 * scale[0] < 1).sum()) == pytest.approx(200, rel=0.15)


def test_the_cutoff_of_an_isolated_atom_is_that_of_the_model(fused: bool) -> None:
    none = torch.zeros(0, dtype=torch.float64)
    assert compute_adaptive_scales(none, group_rows(none.long(), 2), ADAPTIVE, fused=fused).tolist() == [1.0, 1.0]
    beyond, zeros = torch.tensor([1.0, 2.5], dtype=torch.float64), torch.zeros(2, dtype=torch.int64)
    assert compute_adaptive_scales(beyond, group_rows(zeros, 1), ADAPTIVE, fused=fused).tolist() == [1.0]


def test_first_and_second_derivatives_of_adaptive_cutoffs_are_exact(fused: bool) -> None:
    rng = np.random.default_rng(0)
    cubes = torch.from_numpy(rng.uniform(0.05, 1.2, 60)).requires_grad_()
    receivers = group_rows(torch.arange(60) % 2, 2)

    def compute(x: Tensor) -> Tensor:
        return compute_adaptive_scales(x, receivers, ADAPTIVE, fused=fused)

    assert torch.autograd.gradcheck(compute, cubes, atol=1e-8, rtol=1e-6)
    assert torch.autograd.gradgradcheck(compute, cubes, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("structure", STRUCTURES, ids=lambda s: s.name)
def test_edges_beyond_the_adaptive_cutoff_change_nothing(structure: Structure, smooth: FoundationModel) -> None:
    short, complete = smooth.config.neighbour_spec, NeighbourSpec(SMOOTH.cutoff + 0.5, None)
    assert len(short.build_list(structure).receiver) < 0.7 * len(complete.build_list(structure).receiver)
    got, expected = predict(smooth, [structure]), predict(smooth, [structure], complete)
    assert torch.allclose(got.energy, expected.energy, rtol=1e-13)
    assert torch.allclose(got.forces, expected.forces, atol=1e-12 * float(expected.forces.abs().max()))
    stored = short.trim(build_neighbour_list(structure, cutoff=SMOOTH.cutoff))
    assert np.array_equal(stored.receiver, short.build_list(structure).receiver)
    assert np.array_equal(stored.sender, short.build_list(structure).sender)


# Continuity


def list_exact_neighbours(structure: Structure) -> bytes:
    """Return which pairs are closer than the adaptive cutoff, to all digits."""
    receiver, ratio = list_edges(structure)
    scale = solve_adaptive_cutoffs(receiver, ratio, ADAPTIVE, len(structure), tolerance=0.0)
    return np.sort(receiver[ratio**3 * scale[receiver] < 1]).tobytes()


def list_limited_neighbours(structure: Structure) -> bytes:
    graph = CAPPED.neighbour_spec.build_list(structure)
    return np.sort(graph.receiver * len(structure) + graph.sender).tobytes()


def list_neighbours_within_the_cutoff(structure: Structure) -> bytes:
    return list_edges(structure)[0].tobytes()


def find_change(start: Structure, step: np.ndarray, key: Key) -> list[Structure] | None:
    """Return structures on both sides of a change of the key, as the first atom moves by step; None if none changes."""

    def move(t: float) -> Structure:
        positions = start.positions.copy()
        positions[0] += t * step
        return replace(start, positions=positions)

    low, high = 0.0, 1.0
    first = key(move(low))
    if key(move(high)) == first:
        return None
    while high - low > 1e-13:
        middle = 0.5 * (low + high)
        low, high = (middle, high) if key(move(middle)) == first else (low, middle)
    return [move(low), move(high)]


def measure_jumps(model: FoundationModel, count: int, key: Key) -> tuple[float, float]:
    """Return the largest relative jumps of energy and forces where neighbours change along `count` random paths."""
    rng = np.random.default_rng(0)
    sides: list[Structure] = []
    while len(sides) < 2 * count:
        make: Any = (make_copper, make_organic_molecule)[len(sides) // 2 % 2]
        direction = rng.normal(size=3)
        sides += find_change(make(rng), direction / np.linalg.norm(direction), key) or []
    prediction = predict(model, sides)
    energy = prediction.energy.reshape(-1, 2)
    sizes = [len(s) for s in sides]
    forces = prediction.forces.split(sizes)
    jumps = [float((a - b).abs().max() / a.abs().max()) for a, b in zip(forces[::2], forces[1::2], strict=True)]
    return float(((energy[:, 0] - energy[:, 1]) / energy[:, 0]).abs().max()), max(jumps)


@pytest.mark.parametrize("count", [50, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("key", [list_exact_neighbours, list_neighbours_within_the_cutoff])
def test_energy_and_forces_do_not_jump_where_neighbours_change(key: Key, count: int, smooth: FoundationModel) -> None:
    energy, force = measure_jumps(smooth, count, key)
    assert energy < 1e-9
    assert force < 1e-9


def test_a_limit_on_neighbours_makes_energy_and_forces_jump() -> None:
    energy, force = measure_jumps(make_model(CAPPED), 10, list_limited_neighbours)
    assert energy > 1e-6
    assert force > 1e-4


@pytest.mark.parametrize("structure", STRUCTURES, ids=lambda s: s.name)
def test_forces_stress_and_their_derivatives_are_exact(structure: Structure, smooth: FoundationModel) -> None:
    """Forces are compared with differences of the energy, and force constants with differences of forces."""
    batch = build_batch([smooth.config.neighbour_spec.build_list(structure)])
    direction = torch.from_numpy(np.random.default_rng(2).normal(size=structure.positions.shape))

    def compute_energy(positions: Tensor) -> Tensor:
        weights = smooth.gate(batch.composition)
        return (weights * smooth.all_energies(smooth.encode(batch, positions, batch.shift), batch)).sum()

    def differentiate(positions: Tensor) -> tuple[Tensor, Tensor]:
        positions = positions.clone().requires_grad_()
        (slope,) = torch.autograd.grad(compute_energy(positions), positions, create_graph=True)
        (curvature,) = torch.autograd.grad((slope * direction).sum(), positions)
        return slope.detach(), curvature

    h = 1e-5
    slope, curvature = differentiate(batch.positions)
    up, down = batch.positions + h * direction, batch.positions - h * direction
    difference = (compute_energy(up) - compute_energy(down)) / (2 * h)
    assert float((slope * direction).sum()) == pytest.approx(float(difference), rel=1e-6)
    expected = (differentiate(up)[0] - differentiate(down)[0]) / (2 * h)
    assert torch.allclose(curvature, expected, atol=1e-6 * float(expected.abs().max()))
    if all(structure.periodic):
        stress = predict_with_stress(smooth, batch, smooth.gate(batch.composition))[1][0]
        strain = 1e-5 * np.array([[1.0, 0.4, 0.1], [0.4, -0.7, 0.2], [0.1, 0.2, 0.5]])
        strained = [
            replace(structure, positions=structure.positions @ deform, cell=structure.cell @ deform)
            for deform in (np.eye(3) + strain, np.eye(3) - strain)
        ]
        energy = predict(smooth, strained).energy
        work = float((stress * torch.from_numpy(strain)).sum()) * abs(np.linalg.det(structure.cell))
        assert work == pytest.approx(float(energy[0] - energy[1]) / 2, rel=1e-6)


# Repulsion


def make_dimers(numbers: np.ndarray, distance: np.ndarray) -> Batch:
    """Return dimers of elements [g, 2] at distances [g]."""
    g = len(distance)
    positions = np.zeros((2 * g, 3))
    positions[1::2, 0] = distance
    atoms, graph = np.arange(2 * g), np.repeat(np.arange(g), 2)
    return build_batch_from_arrays(
        GraphArrays(
            numbers=numbers.reshape(-1),
            positions=positions,
            receiver=atoms,
            sender=atoms ^ 1,
            shift=np.zeros((2 * g, 3)),
            graph=graph,
            edge_graph=graph,
            cell=np.zeros((g, 3, 3)),
            atoms=np.full(g, 2),
            edges=np.full(g, 2),
        )
    )


def test_the_repulsion_is_that_of_bare_nuclei_at_contact_and_ends_below_bond_lengths() -> None:
    repulsion = Repulsion(0.4, 0.7)
    end = 0.7 * 2 * COVALENT_RADII[29]
    r = np.array([1e-5, 0.2, end, 0.999 * end])
    batch = make_dimers(np.full((4, 2), 29), r)
    energy = 2 * repulsion(torch.from_numpy(np.repeat(r, 2)[:, None]), batch)[0][::2, 0].numpy()
    assert energy[0] == pytest.approx(29**2 * Hartree * Bohr / r[0], rel=1e-3)
    # phi(r / a) with a = 0.8854 * 0.529177 / (2 * 29^0.23) was evaluated apart from the program
    envelope = (1 - (r[1] / r[2]) ** 3) ** 3
    assert energy[1] == pytest.approx(29**2 * 14.399645 / 0.2 * 0.24174 * envelope, rel=2e-4)
    assert energy[2] == 0
    assert 0 < energy[3] < 1e-6


def test_dimers_of_all_elements_are_repulsive_at_short_distance_and_finite_in_single_precision() -> None:
    model = make_model(SMOOTH).float()
    model.reference_energy.zero_()
    pairs = np.stack(np.triu_indices(94), axis=1) + 1
    fractions = np.linspace(0.05, REPULSION_CORE, 8)
    distance = np.maximum(fractions * COVALENT_RADII[pairs].sum(1)[:, None], 0.02)
    batch = make_dimers(np.repeat(pairs, 8, axis=0), distance.ravel()).to("cpu", torch.float32)
    weights = torch.full((len(batch.head), 16), 1 / 16)
    prediction = batched_heads(model, batch, weights)
    assert prediction.energy.isfinite().all()
    assert prediction.forces.isfinite().all()
    assert (prediction.forces[1::2, 0] > 0).all()
    assert (prediction.energy.reshape(-1, 8).diff(dim=1) < 0).all()


def test_learnt_interactions_vanish_at_short_distance() -> None:
    """Energies of other weights differ only by a constant where the repulsion acts alone."""
    r = np.array([0.4, 0.7, 1.0]) * REPULSION_CORE * 2 * COVALENT_RADII[6]
    batch = make_dimers(np.full((3, 2), 6), r)
    energies = [
        batched_heads(model, batch, torch.full((3, 16), 1 / 16, dtype=torch.float64)).energy
        for model in (make_model(SMOOTH, seed=1), make_model(SMOOTH, seed=2))
    ]
    assert torch.allclose(energies[0].diff(), energies[1].diff(), rtol=1e-12)


# Bounds


def test_bounded_features_are_equivariant_and_at_most_one() -> None:
    torch.manual_seed(0)
    s, v = torch.randn(5, 16, dtype=torch.float64), torch.randn(3, 5, 16, dtype=torch.float64)
    assert torch.allclose(bound_features(1e9 * s).square().mean(1), torch.ones(5, dtype=torch.float64))
    assert torch.allclose(bound_features(1e-9 * s), 1e-9 * s)
    assert torch.allclose(bound_features(1e9 * v).square().sum(0).mean(1), torch.ones(5, dtype=torch.float64))
    assert torch.allclose(bound_features(1e-9 * v), 1e-9 * v)
    rotation = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))[0]
    rotated = torch.einsum("ij,jnf->inf", rotation, v)
    assert torch.allclose(bound_features(rotated), torch.einsum("ij,jnf->inf", rotation, bound_features(v)))


def test_features_of_dense_random_boxes_are_bounded_in_single_precision() -> None:
    """Weights ten times as large as usual make the features of an unbounded network overflow."""
    structures = [replace(s, positions=0.3 * s.positions) for s in make_random_structures(20, atoms=(50, 200))]
    largest = {}
    for name, config in (("bounded", SMOOTH), ("unbounded", SMALL)):
        model = make_model(config).float()
        for parameter in model.encoder.parameters():
            parameter.mul_(10.0)
        batch = build_batch([config.neighbour_spec.build_list(s) for s in structures]).to("cpu", torch.float32)
        largest[name] = model.select_features(model.encode(batch, batch.positions, batch.shift)).abs().nan_to_num(1e38)
    assert float((largest["bounded"] / batch.n_atoms[:, None]).max()) <= SMALL.hidden_dim**0.5
    assert float(largest["unbounded"].max()) > 1e6


# Configuration


def test_a_checkpoint_records_the_options(tmp_path: Path, smooth: FoundationModel) -> None:
    path = tmp_path / "model.safetensors"
    checkpoints.save(smooth, path, {})
    loaded, _ = checkpoints.load(path)
    assert loaded.config == smooth.config
    assert torch.equal(predict(loaded, STRUCTURES).energy, predict(smooth, STRUCTURES).energy)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"backbone": "egnn", "adaptive_neighbours": 20.0}, "adaptive_neighbours is not a hyperparameter of the"),
        ({"backbone": "schnet", "repulsion": "zbl"}, "repulsion is not a hyperparameter of the backbone 'schnet'"),
        ({"repulsion_core": 0.4}, "repulsion_core: expected a repulsion"),
        (
            {"repulsion": "zbl", "repulsion_core": 0.7},
            "expected a distance below that of repulsion_end",
        ),
        ({"adaptive_neighbours": 20.0, "max_neighbours": 20}, "expected max_neighbours to be null"),
        ({"hydragnn": {}, "feature_norm": "rms"}, "HydraGNN's variants of networks have no such option"),
        ({"adaptive_neighbours": 3.0}, "adaptive_neighbours is 3.0, expected at least 4"),
    ],
)
def test_options_that_do_not_fit_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ModelConfig(**values)


def test_the_default_is_the_network_of_the_paper() -> None:
    config = ModelConfig()
    assert (config.adaptive_neighbours, config.repulsion, config.feature_norm) == (None, None, None)
    molecule = make_molecule(30)
    assert len(config.neighbour_spec.build_list(molecule).receiver) == len(
        build_neighbour_list(molecule, cutoff=5.0).receiver
    )
