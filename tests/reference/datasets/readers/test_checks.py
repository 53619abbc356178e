"""Checks of structures name each fault and reject no valid structure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from ase.build import bulk
from ase.collections import g2
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.reference.data.structure import Structure
from harness.reference.data.structure_table import StructureTable, concatenate, tabulate
from harness.reference.datasets.catalog import DatasetSource, find_source
from harness.reference.datasets.parsing.constants import ATOM_ENERGIES_EV
from harness.reference.datasets.parsing.unit_checks import check_structures
from harness.reference.errors import InputError
from tests.reference.datasets.official_files.writers import METHANOL, make_conformations

# Hartree-Fock limit, hartree (C. F. Bunge et al., At. Data Nucl. Data Tables 53, 113 (1993))
HARTREE_FOCK = {
    2: -2.8617,
    6: -37.6886,
    7: -54.4009,
    8: -74.8094,
    9: -99.4093,
    16: -397.5049,
    17: -459.4821,
    35: -2572.4413,
}


def make_molecules(count: int = 6) -> StructureTable:
    positions, energy, forces = make_conformations(count)
    return tabulate(
        [
            Structure(f"m{k}", METHANOL, positions[k], energy=float(energy[k]), forces=forces[k], group="CH4O")
            for k in range(count)
        ]
    )


def make_crystals(energy: float = -6.5) -> StructureTable:
    atoms = bulk("NaCl", "rocksalt", a=5.64)
    salt = Structure(
        "salt", atoms.numbers, atoms.positions, np.array(atoms.cell), (True, True, True), energy=energy,
        forces=np.zeros((2, 3)), stress=np.eye(3) * 0.01,
    )  # fmt: skip
    return tabulate([salt, replace(salt, name="other")])


def replace_value(frames: StructureTable, column: str, index: Any, value: Any) -> StructureTable:
    values = getattr(frames, column).copy()
    values[index] = value
    return replace(frames, **{column: values})


def test_good_structures_pass_unchanged() -> None:
    frames = make_molecules()
    accepted, faults = check_structures(frames, source=find_source("ani1x"))
    assert accepted is frames
    assert not faults
    for name in ("mptrj", "alexandria", "omat24"):
        assert len(check_structures(make_crystals(), source=find_source(name))[0]) == 2


def test_an_empty_block_passes() -> None:
    accepted, faults = check_structures(make_molecules()[:0], source=find_source("ani1x"))
    assert len(accepted) == 0
    assert not faults


@pytest.mark.parametrize(
    ("column", "index", "value", "kind", "reason"),
    [
        ("numbers", 13, 0, "atomic number", "0 is not an atomic number (1..118)"),
        ("numbers", 13, 119, "atomic number", "119 is not"),
        ("positions", (13, 1), np.nan, "not finite", "position of atom 1: not finite"),
        ("positions", (13, 1), np.inf, "not finite", "position of atom 1: not finite"),
        ("forces", (17, 2), np.nan, "not finite", "forces of atom 5: not finite"),
        ("forces", slice(12, 18), np.nan, "unlabelled", "no forces"),
        ("energy", 2, np.nan, "unlabelled", "no energy"),
        ("energy", 2, -np.inf, "not finite", "the energy is not finite"),
        ("cell", (2, 1, 1), np.nan, "not finite", "the cell is not finite"),
        ("forces", (14, 0), 1000.0, "force norm", "a force of 100"),
        ("periodic", 2, True, "no volume", "periodic, but its cell has no volume"),
        ("periodic", (2, 0), True, "no volume", "periodic, but its cell has no volume"),
        ("ids", 2, "m1", "duplicate", "an earlier structure has the same id"),
        ("energy", 2, -115.7, "units", "hartree taken for eV"),
        ("energy", 2, -115.7 * 27.2114**2, "units", "eV taken for hartree"),
        ("energy", 2, -115.7 * 627.5, "units", "kcal/mol taken for eV"),
    ],
)
def test_each_kind_of_fault_is_rejected(column: str, index: Any, value: Any, kind: str, reason: str) -> None:
    frames = replace_value(make_molecules(), column, index, value)
    accepted, faults = check_structures(frames, source=find_source("ani1x"))
    assert len(accepted) == 5
    assert [(f.where, f.kind) for f in faults] == [(str(frames.ids[2]), kind)]
    assert reason in faults[0].reason


def test_coincident_atoms_are_rejected_by_checks() -> None:
    frames = make_molecules()
    frames = replace_value(frames, "positions", 16, frames.positions[12] + 1e-6)
    accepted, faults = check_structures(frames, source=find_source("ani1x"))
    assert [(f.where, f.kind) for f in faults] == [("m2", "coincident")]
    assert accepted.ids.tolist() == ["m0", "m1", "m3", "m4", "m5"]


def test_structure_without_atoms_is_rejected() -> None:
    frames = make_molecules()
    empty = replace(
        frames[:1], ids=np.array(["none"]), sizes=np.array([0]), numbers=frames.numbers[:0],
        positions=frames.positions[:0], forces=np.zeros((0, 3)),
    )  # fmt: skip
    for block in (
        concatenate([empty, frames]),
        concatenate([frames[:2], empty, frames[2:]]),
        concatenate([frames, empty]),
    ):
        accepted, faults = check_structures(block, source=find_source("ani1x"))
        assert len(accepted) == 6
        assert [(f.where, f.kind) for f in faults] == [("none", "empty")]


def test_stress_may_be_absent_but_not_partly_absent() -> None:
    without_stress = replace_value(make_crystals(), "stress", 0, np.nan)
    assert len(check_structures(without_stress, source=find_source("mptrj"))[0]) == 2
    _, faults = check_structures(
        replace_value(make_crystals(), "stress", (0, 0, 0), np.nan), source=find_source("mptrj")
    )
    assert [(f.where, f.kind) for f in faults] == [("salt", "not finite")]


def test_inconsistent_columns_raise_errors() -> None:
    frames = make_molecules()
    with pytest.raises(InputError, match=r"block from m0: the shape of forces is \(3, 3\), expected \(36, 3\)"):
        check_structures(replace(frames, forces=np.zeros((3, 3))), source=None)


@pytest.mark.parametrize(
    ("factor", "name"),
    [
        (1 / 0.529177, "bohr taken for angstrom"),
        (0.529177, "as if they were bohr"),
        (0.1, "nanometres"),
        (100.0, "pico"),
    ],
)
def test_lengths_in_other_units_are_detected(factor: float, name: str) -> None:
    frames = make_molecules(60)
    moved = replace(frames, positions=frames.positions * factor)
    accepted, faults = check_structures(moved, source=find_source("ani1x"))
    assert len(accepted) == 0
    assert len(faults) == 60
    assert all(f.kind == "units" and name in f.reason for f in faults)
    assert len(check_structures(moved[:10], source=find_source("ani1x"))[0]) == 10
    assert len(check_structures(moved, source=None)[0]) == 60


def test_known_molecules_are_plausible() -> None:
    """The G2 set of ASE has atoms, radicals and molecules; the energies are those of their free atoms."""
    result = [g2[name] for name in g2.names]
    frames = tabulate(
        [
            Structure(f"{k}", a.numbers, a.positions, energy=float(ATOM_ENERGIES_EV[a.numbers].sum()))
            for k, a in enumerate(result)
        ]
    )
    assert not check_structures(frames, source=find_source("qm7x"))[1]


def test_free_atom_energies_match_literature() -> None:
    for z, energy in HARTREE_FOCK.items():
        assert abs(ATOM_ENERGIES_EV[z] / 27.211386245988 / energy - 1) < 0.02


def test_pseudopotential_and_formation_energies_have_ranges() -> None:
    _, faults = check_structures(make_crystals(-6.5 * 27.2), source=find_source("mptrj"))
    assert {f.kind for f in faults} == {"units"}
    assert "eV per atom, beyond -60 .. 60 expected of MPTrj" in faults[0].reason
    nabla: DatasetSource = find_source("nabla2dft")
    for energy, good in ((-30.0, True), (-30.0 * 27.2, False), (-115.7 * 27.2, False)):
        block = replace(make_molecules(), energy=np.full(6, energy))
        assert bool(len(check_structures(block, source=nabla)[0])) == good


def test_effective_core_potentials_pass() -> None:
    iodides = replace(
        make_molecules(), numbers=np.where(np.arange(36) % 6 == 1, 53, np.tile(METHANOL, 6)).astype(np.uint8)
    )
    assert len(check_structures(iodides, source=find_source("omol25"))[0]) == 6
    assert len(check_structures(set_atom_energies_in_hartree(iodides), source=find_source("omol25"))[0]) == 6
    assert len(check_structures(set_atom_energies_in_hartree(iodides), source=find_source("qcml"))[0]) == 0


def set_atom_energies_in_hartree(frames: StructureTable) -> StructureTable:
    """Return the structures with the energies of their free atoms in hartree."""
    atoms = np.add.reduceat(ATOM_ENERGIES_EV[frames.numbers], frames.ends - frames.sizes)
    return replace(frames, energy=atoms / 27.211386)


def test_unknown_units_pass_unchanged() -> None:
    frames = make_molecules(60)
    for energy in (-1.0, -20.0):
        implausible = replace(frames, energy=np.full(60, energy), positions=frames.positions / 0.529177)
        assert len(check_structures(implausible, source=find_source("ani1x"))[0]) == 60


DAMAGES: list[Callable[[StructureTable, int], StructureTable]] = [
    lambda f, k: replace_value(f, "energy", k, np.nan),
    lambda f, k: replace_value(f, "positions", 6 * k + 1, np.inf),
    lambda f, k: replace_value(f, "forces", 6 * k + 5, 2e3),
    lambda f, k: replace_value(f, "numbers", 6 * k, 0),
    lambda f, k: replace_value(f, "energy", k, -100.0),
    lambda f, k: replace_value(f, "positions", 6 * k + 1, f.positions[6 * k]),
]


@settings(max_examples=60, deadline=None)
@given(broken=st.dictionaries(st.integers(0, 39), st.integers(0, len(DAMAGES) - 1), max_size=10))
def test_only_broken_structures_are_removed(broken: dict[int, int]) -> None:
    frames = make_molecules(40)
    for k, damage in broken.items():
        frames = DAMAGES[damage](frames, k)
    accepted, faults = check_structures(frames, source=find_source("ani1x"))
    assert {f.where for f in faults} == {f"m{k}" for k in broken}
    assert len(faults) == len(broken)
    assert accepted.ids.tolist() == [f"m{k}" for k in range(40) if k not in broken]
