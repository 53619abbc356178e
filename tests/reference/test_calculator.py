"""The ASE calculator: the model's own numbers, derivatives of its energy, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.calculator import PropertyNotImplementedError
from ase.calculators.fd import calculate_numerical_forces
from ase.filters import FrechetCellFilter
from ase.optimize import FIRE
from ase.stress import voigt_6_to_full_3x3_stress

from harness.reference import checkpoints
from harness.reference.batches import collate
from harness.reference.calculator import ReferenceCalculator
from harness.reference.datasets.files import from_ase
from harness.reference.datasets.heads import HEADS
from harness.reference.errors import InputError
from harness.reference.graphs import neighbour_graph

SHIPPED = "painn-64"


def salt() -> Atoms:
    atoms = bulk("NaCl", "rocksalt", a=5.6, cubic=True)
    atoms.rattle(0.05, seed=3)
    return atoms


@pytest.mark.parametrize("head", ["MPTrj", "omat24"])
def test_one_head_gives_the_models_own_energy(head: str) -> None:
    atoms = salt()
    atoms.calc = ReferenceCalculator(SHIPPED, head=head)
    model = checkpoints.named(SHIPPED)[0].double().requires_grad_(False).eval()
    config = model.config
    graph = neighbour_graph(from_ase(atoms, "salt"), cutoff=config.cutoff, max_neighbours=config.max_neighbours)
    batch = collate([graph])
    branch = [h.lower() for h in HEADS].index(head.lower())
    energy = model.head_energy(branch, model.encode(batch, batch.positions, batch.shift), batch)
    assert atoms.get_potential_energy() == pytest.approx(float(energy[0]), abs=1e-9)


def test_the_gate_weighs_the_heads() -> None:
    atoms = salt()
    atoms.calc = ReferenceCalculator(SHIPPED)
    composition = torch.zeros(1, 119, dtype=torch.float64)
    composition[0, 11] = composition[0, 17] = 4.0
    weights = atoms.calc.weights(composition)[0].tolist()
    each = []
    for name, weight in zip(HEADS, weights, strict=True):
        single = salt()
        single.calc = ReferenceCalculator(SHIPPED, head=name)
        each.append(weight * single.get_potential_energy())
    assert atoms.get_potential_energy() == pytest.approx(sum(each), abs=1e-7)


@pytest.mark.parametrize("head", [None, "MPTrj"])
def test_forces_and_stress_are_derivatives_of_the_energy(head: str | None) -> None:
    atoms = salt()
    atoms.calc = ReferenceCalculator(SHIPPED, head=head)
    forces = atoms.get_forces()
    by_differences = calculate_numerical_forces(atoms, eps=1e-4, iatoms=[0, 3])
    assert by_differences == pytest.approx(forces[[0, 3]], abs=1e-5)
    stress = voigt_6_to_full_3x3_stress(atoms.get_stress())
    cell, volume, step = np.array(atoms.cell), atoms.get_volume(), 1e-5
    for i, j in ((0, 0), (1, 2)):
        energies = []
        for sign in (1, -1):
            strain = np.eye(3)
            strain[i, j] += 0.5 * sign * step
            strain[j, i] += 0.5 * sign * step
            strained = atoms.copy()
            strained.calc = atoms.calc
            strained.set_cell(cell @ strain, scale_atoms=True)
            energies.append(strained.get_potential_energy())
        assert (energies[0] - energies[1]) / (2 * step * volume) == pytest.approx(stress[i, j], abs=1e-6)


def test_a_relaxation_goes_down_to_where_forces_and_stress_vanish() -> None:
    atoms = salt()
    atoms.calc = ReferenceCalculator(SHIPPED, head="MPTrj")
    before = atoms.get_potential_energy()
    assert FIRE(FrechetCellFilter(atoms), logfile=None).run(fmax=0.02, steps=200)
    assert atoms.get_potential_energy() < before
    assert np.abs(atoms.get_forces()).max() < 0.02


def test_charge_counts() -> None:
    energies = []
    for charge in (0, 1):
        atoms = molecule("H2O")
        atoms.info["charge"] = charge
        atoms.calc = ReferenceCalculator(SHIPPED, head="OMol25")
        energies.append(atoms.get_potential_energy())
    assert abs(energies[0] - energies[1]) > 1e-4


def test_what_it_cannot_answer_it_refuses() -> None:
    with pytest.raises(InputError, match=r"no head 'MPtraj' \(did you mean 'MPTrj'\?\)"):
        ReferenceCalculator(SHIPPED, head="MPtraj")
    with pytest.raises(InputError, match="no such checkpoint"):
        ReferenceCalculator("painn-65")
    unknown = Atoms("Og2", positions=[(0, 0, 0), (0, 0, 2.0)], calculator=ReferenceCalculator(SHIPPED))
    with pytest.raises(InputError, match="element 118"):
        unknown.get_potential_energy()
    water = molecule("H2O")
    water.calc = ReferenceCalculator(SHIPPED)
    with pytest.raises(PropertyNotImplementedError):
        water.get_stress()
    checkpoint = checkpoints.named(SHIPPED)[0]
    checkpoint.trained[4] = False
    with pytest.raises(InputError, match="'OC2022' of this model was never trained"):
        ReferenceCalculator(checkpoint, head="OC2022")
