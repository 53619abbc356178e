"""The ASE calculator: energies of the model, derivatives of the energy, and requests that are refused."""

from __future__ import annotations

import random
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.calculator import PropertyNotImplementedError
from ase.calculators.fd import calculate_numerical_forces
from ase.filters import FrechetCellFilter
from ase.md.verlet import VelocityVerlet
from ase.optimize import FIRE
from ase.stress import voigt_6_to_full_3x3_stress

from harness.reference.data.batch import build_batch
from harness.reference.data.neighbours import build_neighbour_list
from harness.reference.datasets.catalog import HEADS
from harness.reference.datasets.user_files import structure_from_ase
from harness.reference.errors import InputError
from harness.reference.inference.calculator import ReferenceCalculator
from harness.reference.models import checkpoints
from harness.reference.models.config import ModelConfig
from harness.reference.models.coverage import OutsideTraining
from harness.reference.models.foundation import FoundationModel

SHIPPED = "painn-64"


def make_salt() -> Atoms:
    atoms = bulk("NaCl", "rocksalt", a=5.6, cubic=True)
    atoms.rattle(0.05, seed=3)
    return atoms


@pytest.mark.parametrize("head", ["MPTrj", "omat24"])
def test_energy_with_one_head_is_the_energy_of_the_model(head: str) -> None:
    atoms = make_salt()
    atoms.calc = ReferenceCalculator(SHIPPED, head=head)
    model = checkpoints.load_named(SHIPPED)[0].double().requires_grad_(False).eval()
    config = model.config
    graph = build_neighbour_list(
        structure_from_ase(atoms, "salt"), cutoff=config.cutoff, max_neighbours=config.max_neighbours
    )
    batch = build_batch([graph])
    branch = [h.lower() for h in HEADS].index(head.lower())
    energy = model.head_energy(branch, model.encode(batch, batch.positions, batch.shift), batch)
    assert atoms.get_potential_energy() == pytest.approx(float(energy[0]), abs=1e-9)


def test_the_gate_weighs_the_heads() -> None:
    atoms = make_salt()
    atoms.calc = ReferenceCalculator(SHIPPED)
    composition = torch.zeros(1, 119, dtype=torch.float64)
    composition[0, 11] = composition[0, 17] = 4.0
    weights = atoms.calc.weights(composition)[0].tolist()
    assert sum(weights) == pytest.approx(1.0)
    weighted_energies = []
    for name, weight in zip(HEADS, weights, strict=True):
        if not weight:
            assert not atoms.calc.model.known_elements[HEADS.index(name), [11, 17]].all()
            continue
        single_head = make_salt()
        single_head.calc = ReferenceCalculator(SHIPPED, head=name)
        weighted_energies.append(weight * single_head.get_potential_energy())
    assert atoms.get_potential_energy() == pytest.approx(sum(weighted_energies), abs=1e-7)


@pytest.mark.parametrize("head", [None, "MPTrj"])
def test_forces_and_stress_are_derivatives_of_the_energy(head: str | None) -> None:
    atoms = make_salt()
    atoms.calc = ReferenceCalculator(SHIPPED, head=head)
    forces = atoms.get_forces()
    numerical_forces = calculate_numerical_forces(atoms, eps=1e-4, iatoms=[0, 3])
    assert numerical_forces == pytest.approx(forces[[0, 3]], abs=1e-5)
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


def test_relaxation_lowers_the_energy_until_forces_and_stress_vanish() -> None:
    atoms = make_salt()
    atoms.calc = ReferenceCalculator(SHIPPED, head="OMat24")
    before = atoms.get_potential_energy()
    assert FIRE(FrechetCellFilter(atoms), logfile=None).run(fmax=0.02, steps=200)
    assert atoms.get_potential_energy() < before
    assert np.abs(atoms.get_forces()).max() < 0.02


def make_water(**info: object) -> Atoms:
    atoms = molecule("H2O")
    atoms.info |= info
    return atoms


def compute_energy_with_new_calculator(atoms: Atoms, **options: Any) -> float:
    """Return the energy from a calculator that has no cached results."""
    copied = atoms.copy()
    copied.calc = ReferenceCalculator(SHIPPED, **options)
    return float(copied.get_potential_energy())


def test_change_of_charge_or_multiplicity_triggers_a_new_calculation() -> None:
    atoms = make_water()
    atoms.calc = ReferenceCalculator(SHIPPED, head="OMol25")
    states = [{"charge": c, "multiplicity": m} for c in (-1, 0, 1) for m in (0, 2, 3)]
    energies = {}
    for state in (*states, *reversed(states)):
        atoms.info = dict(state)
        energy = atoms.get_potential_energy()
        assert energy == compute_energy_with_new_calculator(atoms, head="OMol25")
        assert energy == atoms.get_potential_energy()
        energies[tuple(state.values())] = round(energy, 9)
    assert len(set(energies.values())) == len(energies)
    charged = [energies[c, 0] for c in (-1, 0, 1)]
    assert charged == pytest.approx([-138.9001, -138.2996, -137.6958], abs=1e-4)


def test_charge_and_multiplicity_are_accepted_by_their_usual_names() -> None:
    charged = compute_energy_with_new_calculator(make_water(charge=1), head="OMol25")
    assert compute_energy_with_new_calculator(make_water(total_charge=1), head="OMol25") == charged
    assert compute_energy_with_new_calculator(make_water(total_charge=np.int8(1), charge=1.0), head="OMol25") == charged
    triplet = compute_energy_with_new_calculator(make_water(multiplicity=3), head="OMol25")
    for name in ("spin", "spin_multiplicity"):
        assert compute_energy_with_new_calculator(make_water(**{name: 3}), head="OMol25") == triplet
    assert (
        compute_energy_with_new_calculator(make_water(spin=0), head="OMol25")
        == compute_energy_with_new_calculator(make_water(), head="OMol25")
        != triplet
    )


@pytest.mark.parametrize(
    "value", [0.9999999, 200, -200, None, np.nan, np.inf, True, np.bool_(True), "1", [1], 1 + 0j, np.ones(2), "a\nb"]
)
@pytest.mark.parametrize("name", ["charge", "total_charge", "spin", "spin_multiplicity", "multiplicity"])
def test_invalid_charge_or_multiplicity_is_refused(name: str, value: object) -> None:
    atoms = make_water()
    atoms.calc = ReferenceCalculator(SHIPPED, head="OMol25")
    atoms.get_potential_energy()
    atoms.info[name] = value
    with pytest.raises(InputError, match=rf"info\['{name}'\] is .*, expected a whole number") as caught:
        atoms.get_potential_energy()
    assert "\n" not in str(caught.value)
    del atoms.info[name]
    assert atoms.get_potential_energy() == compute_energy_with_new_calculator(atoms, head="OMol25")


def test_names_of_one_quantity_must_agree() -> None:
    with pytest.raises(InputError, match=r"info\['charge'\] is 1, info\['total_charge'\] is 0; .* must agree"):
        compute_energy_with_new_calculator(make_water(charge=1, total_charge=0))
    with pytest.raises(InputError, match=r"info\['multiplicity'\] is 1, info\['spin'\] is 3; .* must agree"):
        compute_energy_with_new_calculator(make_water(spin=3, multiplicity=1))


def change_atoms(atoms: Atoms, rng: random.Random) -> None:
    """Make one random change in place."""
    kind = rng.randrange(8)
    if kind == 0:
        atoms.positions[rng.randrange(len(atoms))] += [0.03, -0.02, rng.choice([0.01, 1e-9])]
    elif kind == 1:
        atoms.numbers[rng.randrange(len(atoms))] = rng.choice([1, 6, 7, 8])
    elif kind == 2:
        atoms.info["charge"] = rng.choice([-1, 0, 1])
    elif kind == 3:
        atoms.info[rng.choice(["spin", "multiplicity"])] = rng.choice([1, 2])
    elif kind == 4:
        atoms.cell[rng.randrange(3), rng.randrange(3)] += 0.05
    elif kind == 5:
        atoms.pbc[rng.randrange(3)] ^= True
    elif kind == 6:
        atoms.info.clear()
    else:
        atoms.rattle(0.02, seed=rng.randrange(100))


@pytest.mark.filterwarnings("ignore:the model takes")
def test_results_depend_on_the_atoms_alone() -> None:
    """One calculator serves structures that change in place, in random order and with failures in between."""
    model = checkpoints.load_named(SHIPPED)[0]
    rng = random.Random(7)
    shared = ReferenceCalculator(model, head="OMol25")
    structures = [molecule("CH3OH", cell=[6.0, 6.1, 6.2], pbc=True), molecule("H2O", cell=[5.0] * 3), molecule("N2")]
    for atoms in structures:
        atoms.calc = shared
    for _ in range(120):
        atoms = rng.choice(structures)
        change_atoms(atoms, rng)
        copy = atoms.copy()
        copy.calc = ReferenceCalculator(model, head="OMol25")
        properties = rng.sample(["energy", "forces", "stress", "free_energy"], k=3)
        for name in properties:
            results = []
            for calculator in (shared, copy.calc):
                try:
                    if rng.random() < 0.2:
                        calculator.calculate(atoms, [name])
                    results.append(calculator.get_property(name, atoms))
                except (InputError, PropertyNotImplementedError) as error:
                    results.append(str(error))
            assert type(results[0]) is type(results[1])
            assert np.all(results[0] == results[1]) or np.allclose(results[0], results[1], atol=1e-10)


def test_calculators_of_one_model_do_not_change_each_other() -> None:
    model = checkpoints.load_named(SHIPPED)[0]
    first = ReferenceCalculator(model, head="OMol25")
    energy = first.get_potential_energy(make_water())
    fp32_calculator = ReferenceCalculator(model, head="OMol25", precision="fp32")
    assert fp32_calculator.get_potential_energy(make_water()) == pytest.approx(energy, abs=1e-3)
    first.calculate(make_water())
    assert first.results["energy"] == energy
    assert {p.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("device", "reason"),
    [
        ("cdua", r"no device 'cdua' \(did you mean 'cuda'\?\)"),
        ("cuda:99", "device 'cuda:99' cannot be used here"),
        ("meta", "device 'meta' cannot be used here"),
        (None, "no device None"),
        ("", "no device ''"),
    ],
)
def test_a_device_that_is_absent_is_refused_in_one_line(device: Any, reason: str) -> None:
    with pytest.raises(InputError, match=reason) as caught:
        ReferenceCalculator(SHIPPED, device=device)
    assert "\n" not in str(caught.value)


def test_head_refuses_elements_outside_its_training_data() -> None:
    oxide = bulk("FeO", "rocksalt", a=4.3)
    oxide.calc = ReferenceCalculator(SHIPPED, head="ANI1x")
    with pytest.raises(OutsideTraining, match=r"the head 'ANI1x' was not trained on Fe \(element 26\); heads .* MPTrj"):
        oxide.get_potential_energy()
    oxide.calc = ReferenceCalculator(SHIPPED, head="MPTrj")
    assert np.isfinite(oxide.get_potential_energy())


def test_only_heads_trained_on_all_elements_have_a_weight() -> None:
    model = checkpoints.load_named(SHIPPED)[0].double()
    composition = torch.zeros(3, 119, dtype=torch.float64)
    composition[0, [26, 8]] = 1.0
    composition[1, [1, 8]] = 1.0
    composition[2, 118] = 1.0
    weights = model.gate_weights(composition)
    known = model.known_elements
    assert ((weights[0] > 0) == (known[:, 26] & known[:, 8])).all()
    assert not weights[0, HEADS.index("ANI1x")]
    assert weights[:2].sum(1).tolist() == pytest.approx([1.0, 1.0])
    assert weights[2].isnan().all()
    model_without_iron = checkpoints.load_named(SHIPPED)[0]
    model_without_iron.known_elements[:, 26] = False
    model_without_iron.known_elements[0, 26] = True
    model_without_iron.known_elements[0, 8] = False
    with pytest.raises(OutsideTraining, match=r"no single head of this model was trained on all of O .*, Fe "):
        ReferenceCalculator(model_without_iron).get_potential_energy(bulk("FeO", "rocksalt", a=4.3))


@pytest.mark.parametrize("head", [None, "OMol25", "QCML"])
def test_atoms_closer_than_any_in_the_training_data_are_refused(head: str | None) -> None:
    pair = Atoms("Cl2", positions=[(0, 0, 0), (0, 0, 0.4)])
    pair.calc = ReferenceCalculator(SHIPPED, head=head)
    with pytest.raises(OutsideTraining, match=r"Cl0-Cl1 are 0.400 angstrom apart, closer than any .* 1\.\d+ angstrom"):
        pair.get_potential_energy()
    pair.positions[1, 2] = 2.0
    assert -200000 < pair.get_potential_energy() < 0


def test_dynamics_that_leave_the_training_data_end_with_a_clear_error() -> None:
    pair = Atoms("Cl2", positions=[(0, 0, 0), (0, 0, 2.0)])
    pair.calc = ReferenceCalculator(SHIPPED, head="OMol25")
    pair.set_velocities([(0, 0, 0.5), (0, 0, -0.5)])
    with pytest.raises(OutsideTraining, match="closer than any atoms that the model was trained on"):
        VelocityVerlet(pair, timestep=0.5).run(40)


def test_a_neighbour_limit_that_leaves_atoms_out_warns_once(tmp_path: Path) -> None:
    crystal = bulk("Cu", cubic=True)
    path = tmp_path / "limited.safetensors"
    shipped = checkpoints.load_named(SHIPPED)[0]
    limited = FoundationModel(shipped.config.replace(adaptive_neighbours=None, max_neighbours=20))
    limited.load_state_dict(shipped.state_dict())
    checkpoints.save(limited, path, {})
    crystal.calc = ReferenceCalculator(str(path))
    with pytest.warns(UserWarning, match="takes the 20 nearest neighbours of an atom, and .* the energy jumps"):
        crystal.get_potential_energy()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        crystal.rattle(0.01)
        crystal.get_potential_energy()
        ReferenceCalculator(str(path)).get_potential_energy(molecule("CH4"))


def test_unsupported_requests_are_refused() -> None:
    with pytest.raises(InputError, match=r"no head 'MPtraj' \(did you mean 'MPTrj'\?\)"):
        ReferenceCalculator(SHIPPED, head="MPtraj")
    with pytest.raises(InputError, match="no such checkpoint"):
        ReferenceCalculator("painn-65")
    unknown = Atoms("Og2", positions=[(0, 0, 0), (0, 0, 2.0)], calculator=ReferenceCalculator(SHIPPED))
    with pytest.raises(InputError, match=r"no head of this model was trained on Og \(element 118\)"):
        unknown.get_potential_energy()
    with pytest.raises(PropertyNotImplementedError):
        ReferenceCalculator(SHIPPED).get_stress(molecule("H2O"))
    checkpoint = checkpoints.load_named(SHIPPED)[0]
    checkpoint.trained[4] = False
    with pytest.raises(InputError, match="'OC2022' of this model was never trained"):
        ReferenceCalculator(checkpoint, head="OC2022")
    with pytest.raises(InputError, match="'OC2022' of this model was never trained"):
        ReferenceCalculator(FoundationModel(ModelConfig(hidden_dim=8, heads=1)), head="OC2022")


def test_misspelt_argument_is_refused() -> None:
    """ASE's base class would accept any argument, and the calculator would use its default precision."""
    with pytest.raises(TypeError, match="no argument precison"):
        ReferenceCalculator("painn-64", precison="fp32")
