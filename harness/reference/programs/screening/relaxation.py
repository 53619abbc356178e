"""The best candidates relaxed on the model: atoms and cell, with ASE's FIRE; written as extxyz and CIF."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms
from ase.filters import FrechetCellFilter
from ase.optimize import FIRE

from harness.reference.data.structure import Structure
from harness.reference.inference.calculator import ReferenceCalculator
from harness.reference.models.coverage import OutsideTraining
from harness.reference.models.foundation import FoundationModel

FMAX = 0.05
FOLDER = "relaxed"


@dataclass(frozen=True)
class Relaxed:
    """One candidate. energies: per atom, before and after, eV; volumes: per atom, cubic angstrom. file: of the CIF."""

    candidate: int
    converged: bool
    steps: int
    before_ev_per_atom: float
    after_ev_per_atom: float
    volume_before: float
    volume_after: float
    force_max_ev_per_a: float
    file: str


def relaxed(
    model: FoundationModel, candidates: Sequence[tuple[int, Structure]], *, steps: int, folder: Path
) -> tuple[list[Relaxed], Counter[str]]:
    """Relax each, crystals with their cell, structures in vacuum without.

    Returns:
        What was relaxed, and how many could not be, by reason: the elements, or what became of the structure.
    """
    calculator = ReferenceCalculator(model, precision_name="fp64")
    (folder / FOLDER).mkdir(exist_ok=True)
    failed: Counter[str] = Counter()
    found, frames = [], []
    for index, structure in candidates:
        atoms = Atoms(structure.numbers, structure.positions, cell=structure.cell, pbc=structure.periodic)
        atoms.calc = calculator
        crystal = all(structure.periodic)
        try:
            before, volume = atoms.get_potential_energy() / len(atoms), _volume(atoms)
            optimizer = FIRE(FrechetCellFilter(atoms) if crystal else atoms, logfile=None)
            converged = bool(optimizer.run(fmax=FMAX, steps=steps))
            after, force = atoms.get_potential_energy() / len(atoms), float(np.abs(atoms.get_forces()).max())
        except OutsideTraining:
            failed["outside what the model was trained on, at the start or on the way"] += 1
            continue
        except (ValueError, RuntimeError, np.linalg.LinAlgError):  # a cell that folds has no neighbour list
            failed["the cell folded or atoms coincided"] += 1
            continue
        if not np.isfinite([after, force]).all():
            failed["energy or forces not finite"] += 1
            continue
        file = f"{FOLDER}/{index}.{'cif' if crystal else 'xyz'}"
        ase.io.write(folder / file, atoms)
        atoms.info["candidate"] = index
        frames.append(atoms)
        found.append(Relaxed(index, converged, optimizer.nsteps, before, after, volume, _volume(atoms), force, file))
    if frames:
        ase.io.write(folder / FOLDER / "relaxed.extxyz", frames)
    return found, failed


def _volume(atoms: Atoms) -> float:
    return float(atoms.get_volume() / len(atoms)) if atoms.pbc.all() else 0.0
