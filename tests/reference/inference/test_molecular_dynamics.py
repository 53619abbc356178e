"""Molecular dynamics in batches: conservation, reversibility, temperature, independence of the batch, and resuming."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.data import atomic_masses
from ase.md.verlet import VelocityVerlet

from harness.protocol.programs.model import ModelParameters
from harness.reference.data.batch import Batch
from harness.reference.data.structure import Array, Structure
from harness.reference.errors import InputError
from harness.reference.inference.batch_run import BatchRun
from harness.reference.inference.batched_relaxation import Relaxation
from harness.reference.inference.calculator import ReferenceCalculator
from harness.reference.inference.molecular_dynamics import Dynamics, Thermostat, Trajectory, draw_velocities
from harness.reference.inference.prediction import Prediction
from harness.reference.inference.structure_batch import OUTSIDE, StructureBatch
from harness.reference.models import sealed
from harness.reference.models.config import ModelConfig
from harness.reference.models.foundation import FoundationModel

STEPS = 25


def build_model() -> FoundationModel:
    """Return an untrained model whose energy is smooth and bounded below by a repulsion."""
    torch.manual_seed(3)
    parameters = ModelParameters(
        backbone="painn", hidden_dim=16, num_conv_layers=2, cutoff=4.0, max_neighbours=None, repulsion="zbl"
    )
    model = FoundationModel(ModelConfig.from_parameters(parameters)).double().eval().requires_grad_(False)
    model.mark_all_elements_known()
    return model


def build_cell(element: int, edge: float, atoms: int, seed: int) -> Structure:
    rng = np.random.default_rng(seed)
    grid = np.array([[0, 0, 0], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]])[:atoms]
    positions = edge * grid + 0.05 * rng.standard_normal((atoms, 3))
    return Structure(f"cell {seed}", np.full(atoms, element), positions, edge * np.eye(3), (True, True, True))


MOLECULE = Structure("water", np.array([8, 1, 1]), np.array([[0.0, 0, 0], [1.1, 0, 0], [-0.3, 1.0, 0.1]]))
STRUCTURES = [build_cell(29, 3.9, 4, 0), MOLECULE, build_cell(14, 4.2, 4, 1), build_cell(11, 4.4, 3, 2)]


def build_run(
    model: FoundationModel, structures: list[Structure], dynamics: Dynamics, **options: Any
) -> BatchRun[Trajectory]:
    return BatchRun(StructureBatch(model, None, deforms_cells=False), dynamics, structures, **options)


def run_dynamics(
    model: FoundationModel, structures: list[Structure], dynamics: Dynamics, **options: Any
) -> dict[int, Trajectory]:
    results = dict(build_run(model, structures, dynamics, **options).run())
    assert all(isinstance(result, Trajectory) for result in results.values()), results
    return {k: result for k, result in results.items() if isinstance(result, Trajectory)}


def compute_total(trajectory: Trajectory) -> Array:
    return np.array(trajectory.potential_ev) + np.array(trajectory.kinetic_ev)


def test_every_structure_takes_the_path_of_ases_velocity_verlet() -> None:
    """The batch is too small for all structures at once, so that some enter when others leave."""
    model = build_model()
    results = run_dynamics(model, STRUCTURES, Dynamics(STEPS, 1.0, 300.0, seed=5), max_structures=2)
    for k, structure in enumerate(STRUCTURES):
        atoms = Atoms(structure.numbers, structure.positions, cell=structure.cell, pbc=structure.periodic)
        atoms.calc = ReferenceCalculator(model)
        atoms.set_velocities(draw_velocities(structure, 300.0, [5, k, 0]))
        VelocityVerlet(atoms, timestep=units.fs).run(STEPS)
        np.testing.assert_allclose(results[k].structure.positions, atoms.positions, atol=1e-9)
        np.testing.assert_allclose(results[k].velocity, atoms.get_velocities(), atol=1e-9)
        assert results[k].potential_ev[-1] == pytest.approx(atoms.get_potential_energy(), abs=1e-9)
        assert results[k].kinetic_ev[-1] == pytest.approx(atoms.get_kinetic_energy(), abs=1e-9)


def test_the_error_of_the_energy_shrinks_with_the_square_of_the_time_step() -> None:
    """Conservation of the energy, while potential and kinetic energies change."""
    model, errors = build_model(), {}
    for time_step_fs in (2.0, 1.0):
        dynamics = Dynamics(int(120 / time_step_fs), time_step_fs, 600.0, interval=1)
        results = run_dynamics(model, STRUCTURES[:1], dynamics)
        total = compute_total(results[0])
        assert np.ptp(results[0].kinetic_ev) > 100 * np.ptp(total)
        errors[time_step_fs] = np.abs(total - total[0]).max()
    assert errors[2.0] / errors[1.0] == pytest.approx(4.0, rel=0.25)


def test_reversed_velocities_lead_back_to_the_start() -> None:
    model = build_model()
    forward = run_dynamics(model, STRUCTURES, Dynamics(STEPS, 1.0, 300.0))
    ends = [forward[k].structure for k in range(len(STRUCTURES))]
    reversed_velocity = {k: -forward[k].velocity for k in forward}
    back = run_dynamics(model, ends, Dynamics(STEPS, 1.0, 300.0, initial_velocity=reversed_velocity))
    for k, start in enumerate(STRUCTURES):
        np.testing.assert_allclose(back[k].structure.positions, start.positions, atol=1e-9)
        assert np.abs(forward[k].structure.positions - start.positions).max() > 0.02


@pytest.mark.parametrize("thermostat", [None, Thermostat(300.0, 10.0)])
def test_a_trajectory_does_not_depend_on_the_batch(thermostat: Thermostat | None) -> None:
    """Alone, in one batch with all others, and in a batch that others leave and enter."""
    model, dynamics = build_model(), Dynamics(STEPS, 1.0, 300.0, thermostat, seed=2)
    in_one_batch = run_dynamics(model, STRUCTURES, dynamics)
    in_turn = run_dynamics(model, STRUCTURES, dynamics, max_structures=1)
    for k in range(len(STRUCTURES)):
        np.testing.assert_allclose(in_one_batch[k].structure.positions, in_turn[k].structure.positions, atol=1e-9)
        assert in_one_batch[k].steps == in_turn[k].steps == (0, 10, 20, 25)


def test_noise_differs_between_structures_seeds_and_steps() -> None:
    ends = {}
    for seed in (0, 1):
        dynamics = Dynamics(100, 1.0, 300.0, Thermostat(300.0, 10.0), seed=seed)
        noise = [dynamics._draw_noise(index, step, 4) for index in (0, 1) for step in (0, 1, 63, 64, 65)]
        ends[seed] = np.stack(noise).reshape(len(noise), -1)
    correlations = np.corrcoef(np.concatenate(list(ends.values())))
    assert np.abs(correlations - np.eye(len(correlations))).max() < 0.8
    assert np.concatenate(list(ends.values())).std() == pytest.approx(1.0, abs=0.15)


def test_langevin_dynamics_gives_every_degree_of_freedom_its_share() -> None:
    """Equipartition in wells whose masses and stiffness differ: BAOAB samples the positions of a well exactly.

    The statistical errors of the means are 1 to 2%.
    """
    copies, temperature, time_steps = 200, 300.0, 700
    grid = 9.0 * np.indices((10, 10, 6)).reshape(3, -1).T
    wells = Structure("wells", np.tile([8, 1, 29], copies), grid)
    stiffness = np.tile([2.0, 6.0, 10.0], copies)[:, None]

    def predict(_: object, batch: Batch, weights: object) -> Prediction:
        stretch = batch.positions.numpy() - grid
        energy = 0.5 * (stiffness * stretch**2).sum()
        return Prediction(torch.tensor([energy]), torch.from_numpy(-stiffness * stretch))

    batch = StructureBatch(build_model(), None, deforms_cells=False, predict=predict)
    dynamics = Dynamics(time_steps, 2.0, temperature, Thermostat(temperature, 50.0), seed=1)
    run = BatchRun(batch, dynamics, [wells])
    potential, kinetic = [], []
    for _ in range(time_steps):
        assert not list(run.step())
        # the state lies between two steps, where velocities are those after the thermostat
        velocity, stretch = batch.state.velocity[:-3], batch.state.coordinates[:-3] - grid
        mass = atomic_masses[wells.numbers][:, None]
        kinetic.append((mass * velocity**2).reshape(copies, 3, 3).mean(axis=(0, 2)))
        potential.append((stiffness * stretch**2).reshape(copies, 3, 3).mean(axis=(0, 2)))
    expected = units.kB * temperature
    np.testing.assert_allclose(np.mean(kinetic[200:], axis=0), expected, rtol=0.04)
    np.testing.assert_allclose(np.mean(potential[200:], axis=0), expected, rtol=0.06)


def test_without_friction_langevin_dynamics_conserves_the_energy() -> None:
    model = build_model()
    nve = run_dynamics(model, STRUCTURES, Dynamics(STEPS, 1.0, 300.0))
    frictionless = run_dynamics(model, STRUCTURES, Dynamics(STEPS, 1.0, 300.0, Thermostat(300.0, 0.0)))
    for k in nve:
        np.testing.assert_allclose(frictionless[k].structure.positions, nve[k].structure.positions, atol=1e-9)


@pytest.mark.parametrize("thermostat", [None, Thermostat(300.0, 10.0)])
@pytest.mark.parametrize("stop", [17, 40])
def test_a_resumed_run_is_equal_in_every_bit(
    tmp_path_factory: pytest.TempPathFactory, thermostat: Thermostat | None, stop: int
) -> None:
    """The state passes through a file, and the Verlet lists are older than the state."""
    model, path = build_model(), tmp_path_factory.mktemp("state") / "state.safetensors"
    fast = [replace(s, name=f"{s.name} fast") for s in STRUCTURES]

    def build() -> BatchRun[Trajectory]:
        return build_run(model, fast, Dynamics(STEPS, 2.0, 3000.0, thermostat), max_structures=3)

    whole = build()
    expected = dict(whole.run())
    interrupted = build()
    results = {}
    for _ in range(stop):
        results |= dict(interrupted.step())
    tensors: dict[str, torch.Tensor] = {}
    about = sealed.flatten(interrupted.save(), tensors)
    sealed.write(path, "state of a test", tensors, about)
    resumed = build()
    resumed.restore(sealed.unflatten(sealed.read_header(path, "state of a test").about, sealed.read_tensors(path)))
    results |= dict(resumed.run())
    assert whole.batch.times.built > len(fast) + 3
    assert results.keys() == expected.keys()
    for k, trajectory in expected.items():
        result = results[k]
        assert isinstance(result, Trajectory)
        assert isinstance(trajectory, Trajectory)
        np.testing.assert_array_equal(result.structure.positions, trajectory.structure.positions)
        np.testing.assert_array_equal(result.velocity, trajectory.velocity)
        assert result.potential_ev == trajectory.potential_ev
        assert result.steps == trajectory.steps


def test_a_resumed_relaxation_is_equal_in_every_bit() -> None:
    model = build_model()

    def build() -> BatchRun[Any]:
        batch = StructureBatch(model, None, deforms_cells=True)
        return BatchRun(batch, Relaxation(0.01, 30), STRUCTURES, max_structures=2)

    expected = dict(build().run())
    interrupted = build()
    results = {}
    for _ in range(13):
        results |= dict(interrupted.step())
    resumed = build()
    resumed.restore(interrupted.save())
    results |= dict(resumed.run())
    for k, relaxed in expected.items():
        assert results[k].energy_ev == relaxed.energy_ev
        assert results[k].steps == relaxed.steps
        np.testing.assert_array_equal(results[k].structure.cell, relaxed.structure.cell)


def test_a_structure_that_leaves_the_training_sets_ends_with_a_reason() -> None:
    """Two atoms collide in the middle of the trajectory; the other structure is not disturbed."""
    model = build_model()
    model.closest[:] = 0.8
    pair = Structure("pair", np.array([29, 29]), np.array([[0.0, 0, 0], [2.6, 0, 0]]))
    collision = {0: np.array([[0.2, 0, 0], [-0.2, 0, 0]])}
    dynamics = Dynamics(STEPS, 1.0, 300.0, Thermostat(300.0, 1e-3), initial_velocity=collision)
    results = dict(build_run(model, [pair, STRUCTURES[2]], dynamics).run())
    assert results[0] == OUTSIDE
    assert isinstance(results[1], Trajectory)
    assert (dynamics._records, dynamics._noise) == ({}, {})


def test_a_state_whose_structures_cannot_enter_is_refused() -> None:
    model = build_model()
    run = build_run(model, STRUCTURES, Dynamics(STEPS, 1.0, 300.0))
    assert not list(run.step())
    model.known_elements[:, 8] = False  # the oxygen of the second structure
    with pytest.raises(InputError, match=r"structure 1 cannot be restored .outside the training sets"):
        build_run(model, STRUCTURES, Dynamics(STEPS, 1.0, 300.0)).restore(run.save())


def test_initial_velocities_have_the_temperature_and_no_momentum() -> None:
    structure = Structure("gas", np.tile([1, 8, 29, 79], 500), np.zeros((2000, 3)))
    velocity = draw_velocities(structure, 450.0, [0, 0, 0])
    atoms = Atoms(structure.numbers, velocities=velocity)
    assert np.abs(atoms.get_momenta().sum(axis=0)).max() < 1e-9
    assert atoms.get_temperature() == pytest.approx(450.0, rel=0.05)
    squares = (atoms.get_masses()[:, None] * velocity**2).reshape(500, 4, 3).mean(axis=(0, 2))
    np.testing.assert_allclose(squares, units.kB * 450.0, rtol=0.12)


def test_the_temperature_of_a_molecule_is_that_of_its_motion_relative_to_its_centre() -> None:
    molecule = Structure("CO", np.array([6, 8]), np.zeros((2, 3)))
    masses = Atoms(molecule.numbers).get_masses()[:, None]
    kinetic = [0.5 * (masses * draw_velocities(molecule, 300.0, [0, k, 0]) ** 2).sum() for k in range(2000)]
    assert np.mean(kinetic) == pytest.approx(1.5 * units.kB * 300.0, rel=0.06)
    assert not draw_velocities(Structure("Ar", np.array([18]), np.zeros((1, 3))), 300.0, [0, 0, 0]).any()
