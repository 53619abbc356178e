"""Make unlabelled structures from ASE and RDKit objects, with seeded displacements and rounded positions."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from typing import Any

import numpy as np
from ase import Atoms
from ase.data import covalent_radii
from ase.geometry import get_distances

from harness.reference.data.structure import Array, Structure

POSITION_DECIMALS = 5


def make_rng(*parts: object) -> np.random.Generator:
    """Return a random generator seeded by the parts, so that molecules do not affect each other's numbers."""
    return np.random.default_rng(zlib.crc32("/".join(map(str, parts)).encode()))


def build_structure(atoms: Atoms, name: str, group: str, charge: int = 0, multiplicity: int = 0) -> Structure:
    """Convert ASE atoms, rounded to the recorded decimals, so that labels belong to the positions in the file."""
    return Structure(
        name=name,
        numbers=atoms.numbers.astype(np.int64),
        positions=atoms.positions.round(POSITION_DECIMALS) + 0.0,
        cell=np.asarray(atoms.cell.array).round(POSITION_DECIMALS) + 0.0,
        periodic=(bool(atoms.pbc[0]), bool(atoms.pbc[1]), bool(atoms.pbc[2])),
        group=group,
        charge=charge,
        multiplicity=multiplicity,
    )


def select_distinct(structures: Iterable[Structure]) -> list[Structure]:
    """Return the structures without repeats: the same atoms, positions, cell, charge and multiplicity."""
    result: dict[tuple[object, ...], Structure] = {}
    for s in structures:
        atoms = s.numbers.tobytes(), s.positions.tobytes(), s.cell.tobytes()
        result.setdefault((*atoms, s.charge, s.multiplicity), s)
    return list(result.values())


def rattle(atoms: Atoms, rng: np.random.Generator, angstrom: float) -> Atoms:
    """Return a copy with normal random displacements of this standard deviation in every coordinate."""
    copy: Atoms = atoms.copy()
    if angstrom:
        copy.positions = copy.positions + rng.normal(0.0, angstrom, copy.positions.shape)
    return copy


def rotate(atoms: Atoms, rng: np.random.Generator) -> Atoms:
    """Return a copy in a random orientation about its first atom."""
    q_matrix, r_matrix = np.linalg.qr(rng.normal(size=(3, 3)))
    rotation: Array = q_matrix * np.sign(np.diag(r_matrix))
    if np.linalg.det(rotation) < 0:
        rotation[:, 0] *= -1
    copy: Atoms = atoms.copy()
    copy.positions = (copy.positions - copy.positions[0]) @ rotation.T
    return copy


def compute_closest_ratio(atoms: Atoms) -> float:
    """Return the smallest distance between two atoms as a fraction of the sum of their covalent radii."""
    if len(atoms) < 2:
        return np.inf
    distances = atoms.get_all_distances(mic=bool(atoms.pbc.any()))
    radii = covalent_radii[atoms.numbers]
    ratio = distances / (radii[:, None] + radii[None, :])
    return float(ratio[~np.eye(len(atoms), dtype=bool)].min())


def compute_closest_ratio_between(first: Atoms, second: Atoms) -> float:
    """Return the same ratio for atoms of `first` and atoms of `second`, with distances in the cell of `first`."""
    _, distances = get_distances(first.positions, second.positions, cell=first.cell, pbc=first.pbc)
    return float((distances / (covalent_radii[first.numbers][:, None] + covalent_radii[second.numbers])).min())


def embed_smiles(smiles: str, conformers: int, seed: int) -> list[Atoms]:
    """Return conformers by RDKit's ETKDG, relaxed with MMFF94, or with UFF if parameters are missing; [] if none."""
    from rdkit import Chem
    from rdkit.Chem import AllChem

    all_chem: Any = AllChem
    molecule = Chem.AddHs(Chem.MolFromSmiles(smiles))
    options = all_chem.ETKDGv3()
    options.randomSeed = seed
    options.numThreads = 1
    numbers = [atom.GetAtomicNum() for atom in molecule.GetAtoms()]
    ids = list(all_chem.EmbedMultipleConfs(molecule, conformers, options))
    if not ids:
        return []
    relax = (
        all_chem.MMFFOptimizeMoleculeConfs
        if all_chem.MMFFHasAllMoleculeParams(molecule)
        else all_chem.UFFOptimizeMoleculeConfs
    )
    relax(molecule, numThreads=1, maxIters=200)
    return [Atoms(numbers, molecule.GetConformer(k).GetPositions()) for k in ids]
