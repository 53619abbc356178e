"""The shipped model in scans, dynamics and relaxations: continuous, conserving energy, repulsive at contact."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.filters import FrechetCellFilter
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from ase.md.verlet import VelocityVerlet
from ase.optimize import FIRE

from harness.reference.data.batch import build_batch
from harness.reference.data.structure import Structure
from harness.reference.datasets.catalog import HEADS
from harness.reference.datasets.parsing.constants import COVALENT_RADII
from harness.reference.datasets.random_structures import make_random_structures
from harness.reference.inference.calculator import ReferenceCalculator
from harness.reference.inference.prediction import batched_heads
from harness.reference.models import checkpoints
from harness.reference.models.foundation import FoundationModel
from tests.reference.models.test_smooth_painn import list_neighbours_within_the_cutoff, make_dimers, measure_jumps

SHIPPED = "painn-64"
SYSTEMS = {
    "NaCl": (bulk("NaCl", "rocksalt", 5.64, cubic=True), "OMat24"),
    "Si": (bulk("Si", cubic=True), "OMat24"),
    "CuAu": (Atoms("Cu2Au2", scaled_positions=[(0, 0, 0), (0.5, 0.5, 0), (0.5, 0, 0.5), (0, 0.5, 0.5)],
                   cell=[3.9, 3.9, 3.7], pbc=True), "OMat24"),
    "ethanol": (molecule("CH3CH2OH"), "OMol25"),
    "water": (molecule("H2O"), "ANI1x"),
}  # fmt: skip


@cache
def load_double() -> FoundationModel:
    return checkpoints.load_named(SHIPPED)[0].double().eval().requires_grad_(False)


def measure_drift(atoms: Atoms, *, picoseconds: float, femtoseconds: float) -> float:
    """Return the drift of the total energy per atom in meV/ps, the slope of a line through all steps at 300 K."""
    rng = np.random.default_rng(0)
    MaxwellBoltzmannDistribution(atoms, temperature_K=300, rng=rng)
    energies = []
    dynamics = VelocityVerlet(atoms, femtoseconds * units.fs)
    dynamics.attach(lambda: energies.append(atoms.get_total_energy()), interval=1)
    dynamics.run(round(1000 * picoseconds / femtoseconds))
    times = femtoseconds / 1000 * np.arange(len(energies))
    return float(np.polyfit(times, energies, 1)[0]) * 1000 / len(atoms)


@pytest.mark.slow
@pytest.mark.parametrize("name", SYSTEMS)
def test_dynamics_conserve_energy(name: str) -> None:
    atoms, head = SYSTEMS[name]
    atoms = atoms.copy()
    atoms.calc = ReferenceCalculator(SHIPPED, head=head, precision="fp64")
    FIRE(atoms, logfile=None).run(fmax=0.05, steps=200)
    assert abs(measure_drift(atoms, picoseconds=1.0, femtoseconds=0.5)) < 0.1


def test_energy_and_forces_do_not_jump_at_the_cutoff() -> None:
    energy, force = measure_jumps(load_double(), 20, list_neighbours_within_the_cutoff)
    assert energy < 1e-9
    assert force < 1e-9


def test_dimers_of_known_elements_repel_in_the_core_in_single_precision() -> None:
    """In the core of the repulsion, down to 0.3 angstrom, every head repels every pair that it knows."""
    model = checkpoints.load_named(SHIPPED)[0].float().eval().requires_grad_(False)
    core = model.config.repulsion_core
    assert core is not None
    for head in range(len(HEADS)):
        known = torch.nonzero(model.known_elements[head]).flatten().numpy()
        pairs = known[np.stack(np.triu_indices(len(known)), axis=1)]
        fractions = np.linspace(0.3, core, 4)
        distance = np.maximum(fractions * COVALENT_RADII[pairs].sum(1)[:, None], 0.3)
        batch = make_dimers(np.repeat(pairs, 4, axis=0), distance.ravel()).to("cpu", torch.float32)
        weights = torch.nn.functional.one_hot(torch.full((len(distance.ravel()),), head), len(HEADS)).float()
        prediction = batched_heads(model, batch, weights)
        assert prediction.energy.isfinite().all(), HEADS[head]
        assert prediction.forces.isfinite().all(), HEADS[head]
        pull = prediction.forces[1::2, 0]
        inside = torch.from_numpy(distance.ravel() <= core * COVALENT_RADII[np.repeat(pairs, 4, axis=0)].sum(1) + 1e-9)
        assert (pull[inside] > 0).all(), HEADS[head]


def test_random_boxes_do_not_overflow_single_precision() -> None:
    model = checkpoints.load_named(SHIPPED)[0].float().eval().requires_grad_(False)
    structures: list[Structure] = make_random_structures(200, atoms=(2, 100))
    batch = build_batch([model.config.neighbour_spec.build_list(s) for s in structures]).to("cpu", torch.float32)
    prediction = batched_heads(model, batch, model.gate(batch.composition))
    assert prediction.energy.isfinite().all()
    assert prediction.forces.isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("element", ["Al", "Ni", "Cu", "Pd", "Ag", "Pt", "Au"])
def test_relaxation_converges_where_that_of_emt_does(element: str) -> None:
    for name, calculator in (("EMT", EMT()), ("model", ReferenceCalculator(SHIPPED, head="OMat24", precision="fp64"))):
        atoms = bulk(element, cubic=True)
        atoms.rattle(0.05, seed=0)
        atoms.calc = calculator
        optimizer = FIRE(FrechetCellFilter(atoms), logfile=None)
        assert optimizer.run(fmax=0.01, steps=500), name
