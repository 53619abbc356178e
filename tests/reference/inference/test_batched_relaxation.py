"""Batched relaxation: the same path and minimum as ASE's FIRE with FrechetCellFilter, one structure at a time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.filters import FrechetCellFilter
from ase.optimize import FIRE

from harness.protocol.programs.model import ModelParameters
from harness.reference.data.neighbours import NeighbourSpec, build_neighbour_list
from harness.reference.data.structure import Array, Structure
from harness.reference.inference.batch_state import BatchState
from harness.reference.inference.batched_relaxation import RelaxedStructure, relax_structures
from harness.reference.inference.calculator import ReferenceCalculator
from harness.reference.inference.fire import MIXING, TIME_STEP, step_fire
from harness.reference.inference.structure_batch import NO_LIST, OUTSIDE
from harness.reference.inference.verlet_lists import JoinedLists, build_verlet_list
from harness.reference.models.config import ModelConfig
from harness.reference.models.foundation import FoundationModel
from harness.reference.programs.screening.candidates.prototypes import load_prototypes

RADIUS_ANGSTROM = 2.6  # distance of neighbours


def build_model(max_neighbours: int | None = None) -> FoundationModel:
    """Return an untrained model whose energy is smooth and bounded below by a repulsion."""
    torch.manual_seed(3)
    parameters = ModelParameters(
        backbone="painn", hidden_dim=16, num_conv_layers=2, cutoff=4.5, max_neighbours=max_neighbours, repulsion="zbl"
    )
    model = FoundationModel(ModelConfig.from_parameters(parameters)).double().eval().requires_grad_(False)
    model.mark_all_elements_known()
    return model


# Compresses structures until their atoms repel each other: the rest of an untrained model moves nothing.
COMPRESSION = 0.7


def build_crystal(name: str, numbers: tuple[int, ...], noise: float) -> Structure:
    prototype = next(p for p in load_prototypes() if p.name == name)
    stretch = COMPRESSION * RADIUS_ANGSTROM / prototype.closest.min()
    rng = np.random.default_rng(len(prototype))
    positions = prototype.positions * stretch
    return Structure(
        name,
        np.array(numbers)[prototype.slots],
        positions + noise * rng.standard_normal(positions.shape),
        prototype.cell * stretch @ (np.eye(3) + noise * rng.standard_normal((3, 3))),
        (True, True, True),
    )


CRYSTALS = [
    build_crystal("Halite, Rock Salt", (11, 17), 0.05),
    build_crystal("(Cubic) Perovskite", (8, 20, 22), 0.03),
    build_crystal("Copper", (29,), 0.02),
    build_crystal("diamond", (14,), 0.04),
    build_crystal("Fluorite", (9, 20), 0.03),
]
WATER = np.array([[0.0, 0.0, 0.0], [1.1, 0.0, 0.0], [-0.3, 1.0, 0.1]])
MOLECULE = Structure("water", np.array([8, 1, 1]), COMPRESSION * WATER)


def relax_with_ase(model: FoundationModel, structure: Structure, steps: int, fmax: float) -> tuple[Atoms, bool, int]:
    atoms = Atoms(structure.numbers, structure.positions, cell=structure.cell, pbc=structure.periodic)
    atoms.calc = ReferenceCalculator(model)
    optimizer = FIRE(FrechetCellFilter(atoms) if all(structure.periodic) else atoms, logfile=None)
    return atoms, bool(optimizer.run(fmax=fmax, steps=steps)), optimizer.nsteps


def test_every_structure_takes_the_path_of_ase() -> None:
    """The batch is too small for all structures at once, so that some enter when others leave."""
    model, structures = build_model(), [*CRYSTALS, MOLECULE]
    relaxed = dict(relax_structures(model, structures, fmax=0.02, max_steps=60, max_edges=1500))
    assert sorted(relaxed) == list(range(len(structures)))
    for k, structure in enumerate(structures):
        atoms, converged, steps = relax_with_ase(model, structure, 60, 0.02)
        result = relaxed[k]
        assert isinstance(result, RelaxedStructure), result
        assert (result.converged, result.steps) == (converged, steps), structure.name
        assert result.energy_ev == pytest.approx(atoms.get_potential_energy(), abs=1e-6)
        np.testing.assert_allclose(result.structure.positions, atoms.positions, atol=1e-5)
        np.testing.assert_allclose(result.structure.cell, np.array(atoms.cell), atol=1e-5)
        assert result.energy_ev <= result.initial_energy_ev
    assert any(r.steps > 5 and r.converged for r in relaxed.values() if isinstance(r, RelaxedStructure))


def test_results_do_not_depend_on_the_batch() -> None:
    model = build_model()
    alone = [dict(relax_structures(model, [s], max_steps=15))[0] for s in CRYSTALS]
    in_one_batch = dict(relax_structures(model, CRYSTALS, max_steps=15))
    for k, single in enumerate(alone):
        result = in_one_batch[k]
        assert isinstance(single, RelaxedStructure)
        assert isinstance(result, RelaxedStructure)
        assert result.steps == single.steps
        assert result.energy_ev == pytest.approx(single.energy_ev, abs=1e-8)


def test_structures_that_cannot_be_relaxed_leave_with_a_reason() -> None:
    model = build_model()
    model.known_elements[:, 92] = False
    model.closest[:] = 0.6
    close = replace(CRYSTALS[0], positions=0.2 * CRYSTALS[0].positions)
    unknown = replace(CRYSTALS[0], numbers=np.array([92, 17]))
    flat = replace(CRYSTALS[0], cell=np.diag([4.0, 4.0, 1e-3]))
    relaxed = dict(relax_structures(model, [close, unknown, CRYSTALS[2], flat], max_steps=3))
    assert (relaxed[0], relaxed[1], relaxed[3]) == (OUTSIDE, OUTSIDE, NO_LIST)
    assert isinstance(relaxed[2], RelaxedStructure)


def test_one_head_relaxes_by_its_own_energy() -> None:
    model = build_model()
    model.known_elements[5, 11] = False
    for head, expected in ((2, True), (5, False)):
        (result,) = dict(relax_structures(model, CRYSTALS[:1], head=head, max_steps=2)).values()
        assert isinstance(result, RelaxedStructure) == expected
    atoms = Atoms(CRYSTALS[0].numbers, CRYSTALS[0].positions, cell=CRYSTALS[0].cell, pbc=True)
    atoms.calc = ReferenceCalculator(model)
    atoms.calc.weights = lambda composition: torch.eye(16, dtype=torch.float64)[[2]]
    (result,) = dict(relax_structures(model, CRYSTALS[:1], head=2, max_steps=0)).values()
    assert isinstance(result, RelaxedStructure)
    assert result.energy_ev == pytest.approx(atoms.get_potential_energy(), abs=1e-9)


@pytest.mark.parametrize("spec", [NeighbourSpec(4.5, None), NeighbourSpec(4.5, 9), NeighbourSpec(4.5, None, 20.0)])
def test_a_valid_list_has_the_neighbours_of_a_new_one(spec: NeighbourSpec) -> None:
    """Random displacements and deformations; those that the skin does not cover must be reported."""
    rng = np.random.default_rng(0)
    structure = CRYSTALS[1]
    graph = np.zeros(len(structure), dtype=np.int64)
    joined = JoinedLists.join([build_verlet_list(structure, structure.positions, np.eye(3), spec.cutoff)])
    n_valid = 0
    for size in np.repeat([0.0, 0.01, 0.03, 0.06, 0.2], 20):
        positions = structure.positions + size * rng.standard_normal(structure.positions.shape)
        deformation = np.eye(3) + size * rng.standard_normal((3, 3))
        if len(joined.find_invalid(positions, deformation[None], graph, spec.cutoff)):
            continue
        n_valid += 1
        moved = replace(structure, positions=positions @ deformation.T, cell=structure.cell @ deformation.T)
        expected = spec.build_list(moved)
        is_near, shift, _ = joined.find_neighbours(moved.positions, moved.cell[None], spec)
        rows = _sort_rows(joined.receiver[is_near], joined.sender[is_near], shift)
        np.testing.assert_allclose(rows, _sort_rows(expected.receiver, expected.sender, expected.shift), atol=1e-9)
    assert 40 <= n_valid < 100


def test_the_skin_is_not_too_large_for_its_bound() -> None:
    """A compression of the cell by more than the skin brings in pairs that the list lacks, which must be reported."""
    structure, cutoff = CRYSTALS[2], 4.5
    verlet = build_verlet_list(structure, structure.positions, np.eye(3), cutoff)
    joined, graph = JoinedLists.join([verlet]), np.zeros(len(structure), dtype=np.int64)
    for axis in range(3):
        deformation = np.eye(3)
        deformation[axis, axis] = 0.6
        squeezed = replace(
            structure, cell=structure.cell @ deformation.T, positions=structure.positions @ deformation.T
        )
        n_pairs = len(build_neighbour_list(squeezed, cutoff=cutoff).receiver)
        is_near, _, _ = joined.find_neighbours(squeezed.positions, squeezed.cell[None], NeighbourSpec(cutoff, None))
        assert is_near.sum() < n_pairs
        assert joined.find_invalid(structure.positions, deformation[None], graph, cutoff).tolist() == [0]


def _sort_rows(receiver: Array, sender: Array, shift: Array) -> Array:
    rows = np.column_stack([receiver, sender, shift.round(9)])
    return rows[np.lexsort(rows.T[::-1])]


def test_fire_finds_the_minima_of_quadratic_wells() -> None:
    """Three independent wells of different stiffness, of which the first has two rows."""
    stiffness, owner = np.array([1.0, 1.0, 5.0, 0.3])[:, None], np.array([0, 0, 1, 2])
    state = BatchState.start(np.arange(12.0).reshape(4, 3) / 4, time_step=TIME_STEP, mixing=MIXING, systems=3)
    for _ in range(300):
        before = state.coordinates
        state = step_fire(state, -stiffness * before, owner)
        length = np.sqrt(np.bincount(owner, np.square(state.coordinates - before).sum(axis=1)))
        assert (length <= 0.2 + 1e-12).all()
    assert np.abs(state.coordinates).max() < 1e-3
