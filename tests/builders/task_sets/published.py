"""Structures with published values: QM9, mlearn, MPtrj and the WIEN2k equations of state."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
from ase.collections import dcdft
from ase.data import atomic_numbers

from harness.reference.data.structure import Structure
from harness.reference.datasets.parsing.constants import HARTREE_EV
from harness.reference.datasets.shipped_sets import CHARGE_VIEWS, SHIPPED_SETS, find_shipped_set, load_table
from tests.builders.mini_sets.chemistry import published as benchmarks
from tests.builders.mini_sets.packages import Package, build_qm9_molecule, fetch_archive, read_member, read_qm9_rows
from tests.builders.task_sets.composition import find_well_covered, subtract_composition
from tests.builders.task_sets.samples import Sample

ALIGNN = Package("alignn", "2026.8.11", "sdist", "b5354495a782fa0e2589cb1d20f3eb1ad1d6694464278fcba49d9715a8d935da")
QM9_COUNT = 6000
QM9_SEED = 17
MLEARN_FILE = "sample_data_ff/mlearn_data/all/id_prop.json"
MLEARN_COUNT = 865
MLEARN_BLOCK = 10  # frames in a row, often of one trajectory, that a split keeps together
CRYSTALS = ("mptrj", "alexandria", "omat24")  # the sets for pretraining that share the files of benchmarks
MIN_CRYSTALS = 5  # crystals that must contain an element, so that the fit on composition is meaningful


def list_pretraining_groups() -> set[str]:
    """Return the groups (materials and molecules) of every set for pretraining."""
    return {g for entry in SHIPPED_SETS if entry.name not in CHARGE_VIEWS for g in load_table(entry).groups.tolist()}


def sample_qm9(archives: Path) -> list[Sample]:
    """Return a random selection of the molecules that no set for pretraining contains; U0 in eV."""
    rows, known = read_qm9_rows(archives), list_pretraining_groups()
    order = np.random.default_rng(QM9_SEED).permutation(len(rows)).tolist()
    result = []
    for k in order:
        atoms = build_qm9_molecule(rows[k])
        if atoms.info["group"] in known:
            continue
        molecule = Structure(
            name=f"gdb_{int(rows[k]['Index'])}",
            numbers=atoms.numbers.astype(np.int64),
            positions=atoms.positions,
            group=atoms.info["group"],
            multiplicity=1,
        )
        result.append(Sample(molecule, float(rows[k]["InternalEnergy_0K_au"]) * HARTREE_EV))
        if len(result) == QM9_COUNT:
            break
    return sorted(result, key=lambda s: s.structure.group)


def sample_mlearn(archives: Path) -> list[Sample]:
    """Return an even selection of the distinct frames of six elements, with their published PBE energies and forces."""
    rows = json.loads(read_member(fetch_archive(ALIGNN, archives), MLEARN_FILE))
    # names of the file occur twice, so frames are named by their index among the frames of the element
    index: Counter[str] = Counter()
    frames: dict[tuple[bytes, bytes], Sample] = {}
    for row in rows:
        element = row["jid"].partition("-")[0]
        sample = _mlearn_frame(row, element, index[element])
        index[element] += 1
        # some frames occur twice, and a split could put them on both sides
        frames.setdefault((sample.structure.positions.tobytes(), sample.structure.cell.tobytes()), sample)
    distinct = list(frames.values())
    return [distinct[k] for k in np.linspace(0, len(distinct) - 1, MLEARN_COUNT).round().astype(int)]


def _mlearn_frame(row: dict[str, object], element: str, index: int) -> Sample:
    atoms = row["atoms"]
    assert isinstance(atoms, dict)
    cell = np.array(atoms["lattice_mat"], dtype=float)
    coordinates = np.array(atoms["coords"], dtype=float)
    energy = float(str(row["energy"]))
    frame = Structure(
        name=f"{element}/{index}",
        numbers=np.array([atomic_numbers[e.strip()] for e in atoms["elements"]], dtype=np.int64),
        positions=coordinates if atoms["cartesian"] else coordinates @ cell,
        cell=cell,
        periodic=(True, True, True),
        energy=energy,
        forces=np.array(row["forces"], dtype=float),
        group=f"{element}/{index // MLEARN_BLOCK}",
    )
    return Sample(frame, energy, element)


def load_held_out_crystals(archives: Path) -> list[Structure]:
    """Return the MPtrj frames whose reduced formula occurs in no set for pretraining."""
    known = {g for name in CRYSTALS for g in load_table(find_shipped_set(name)).groups.tolist()}
    return [s for s in benchmarks.read_frames(archives, "mptrj-random-1k.xyz") if s.group not in known]


def select_oqmd(archives: Path) -> list[Sample]:
    """Return held-out crystals of well covered elements; the target is the residual of composition in eV/atom."""
    crystals = load_held_out_crystals(archives)
    crystals = [
        s for s, is_covered in zip(crystals, find_well_covered(crystals, MIN_CRYSTALS), strict=True) if is_covered
    ]
    targets = subtract_composition(crystals)
    unlabelled = [replace(s, energy=None, forces=None, stress=None) for s in crystals]
    return [Sample(s, t) for s, t in zip(unlabelled, targets.tolist(), strict=True)]


def read_bulk_moduli(archives: Path) -> list[Sample]:
    """Return the elemental crystals of ASE's dcdft collection; the target is log10 of the bulk modulus in GPa."""
    result = []
    for name in dcdft.names:
        atoms = dcdft[name]
        crystal = Structure(
            name=name,
            numbers=atoms.numbers.astype(np.int64),
            positions=atoms.positions,
            cell=atoms.cell.array,
            periodic=(True, True, True),
            group=name,
        )
        result.append(Sample(crystal, math.log10(dcdft.data[name]["wien2k_B"])))
    return result
