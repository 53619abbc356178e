"""Checks of single candidates: relaxation of the best ones, and labels for a random subset."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms
from ase.filters import FrechetCellFilter
from ase.optimize import FIRE

from harness.reference.data.structure import Array, Structure
from harness.reference.datasets.catalog import HEADS
from harness.reference.datasets.levels import GFN1_METAL, NotConvergedError
from harness.reference.inference.calculator import ReferenceCalculator
from harness.reference.models.coverage import TOO_CLOSE, OutsideTraining
from harness.reference.models.foundation import FoundationModel
from harness.reference.programs.screening.candidates.prototype_space import CandidateSpace

FMAX = 0.05  # eV/angstrom
FOLDER = "relaxed"


@dataclass(frozen=True)
class Relaxation:
    """The relaxation of one candidate.

    Attributes:
        candidate: Number of the candidate.
        converged: Whether the optimizer reached FMAX, for forces and, in a crystal, for the scaled stress of its cell.
        steps: Steps of the optimizer.
        initial_energy_ev_per_atom: Energy at the start.
        final_energy_ev_per_atom: Energy at the end.
        initial_volume_angstrom3_per_atom: Cubic angstrom per atom; 0 without a periodic cell.
        final_volume_angstrom3_per_atom: Cubic angstrom per atom; 0 without a periodic cell.
        force_max_ev_per_angstrom: Largest force component at the end.
        file: The file of the relaxed structure: CIF for a crystal, else XYZ.
    """

    candidate: int
    converged: bool
    steps: int
    initial_energy_ev_per_atom: float
    final_energy_ev_per_atom: float
    initial_volume_angstrom3_per_atom: float
    final_volume_angstrom3_per_atom: float
    force_max_ev_per_angstrom: float
    file: str


def relax(
    model: FoundationModel, candidates: Sequence[tuple[int, Structure]], *, steps: int, folder: Path
) -> tuple[list[Relaxation], Counter[str]]:
    """Relax candidates with ASE's FIRE, crystals with their cell, and write each to a file and all to relaxed.extxyz.

    Args:
        model: The model.
        candidates: (number, structure) of each candidate.
        steps: Maximum number of steps.
        folder: The folder of the case.

    Returns:
        The relaxations, and the number of candidates that failed, by reason.
    """
    calculator = ReferenceCalculator(model, precision="fp64")
    (folder / FOLDER).mkdir(exist_ok=True)
    failed: Counter[str] = Counter()
    relaxations, frames = [], []
    for index, structure in candidates:
        atoms = Atoms(structure.numbers, structure.positions, cell=structure.cell, pbc=structure.periodic)
        atoms.calc = calculator
        crystal = all(structure.periodic)
        try:
            before, volume = atoms.get_potential_energy() / len(atoms), _compute_volume_per_atom(atoms)
            optimizer = FIRE(FrechetCellFilter(atoms) if crystal else atoms, logfile=None)
            converged = bool(optimizer.run(fmax=FMAX, steps=steps))
            after, force = atoms.get_potential_energy() / len(atoms), float(np.abs(atoms.get_forces()).max())
        except OutsideTraining:
            failed["outside the training sets of the model, at the start or during the relaxation"] += 1
            continue
        except (ValueError, RuntimeError, np.linalg.LinAlgError):  # a folded cell has no neighbour list
            failed["the cell folded or atoms coincided"] += 1
            continue
        if not np.isfinite([after, force]).all():
            failed["energy or forces not finite"] += 1
            continue
        file = f"{FOLDER}/{index}.{'cif' if crystal else 'xyz'}"
        ase.io.write(folder / file, atoms)
        atoms.info["candidate"] = index
        frames.append(atoms)
        relaxations.append(
            Relaxation(
                candidate=index,
                converged=converged,
                steps=optimizer.nsteps,
                initial_energy_ev_per_atom=before,
                final_energy_ev_per_atom=after,
                initial_volume_angstrom3_per_atom=volume,
                final_volume_angstrom3_per_atom=_compute_volume_per_atom(atoms),
                force_max_ev_per_angstrom=force,
                file=file,
            )
        )
    if frames:
        ase.io.write(folder / FOLDER / "relaxed.extxyz", frames)
    return relaxations, failed


def _compute_volume_per_atom(atoms: Atoms) -> float:
    return float(atoms.get_volume() / len(atoms)) if atoms.pbc.all() else 0.0


MIN_ATOMS = 8  # smaller cells need more k-points than the Gamma point
MAX_ATOMS = 32


@dataclass(frozen=True)
class SpotLabels:
    """The errors of the model on k labelled candidates.

    Attributes:
        head: The head whose predictions are compared.
        level: The level of theory of the labels.
        index: [k] numbers of the candidates.
        energy_error_ev_per_atom: [k] absolute error of the energy.
        force_error_ev_per_angstrom: [k] mean absolute error of force components.
        failed: Number of candidates without a label, by reason.
    """

    head: str
    level: str
    index: list[int] = field(default_factory=list)
    energy_error_ev_per_atom: list[float] = field(default_factory=list)
    force_error_ev_per_angstrom: list[float] = field(default_factory=list)
    failed: Counter[str] = field(default_factory=Counter)


def find_labelled_head(notes: dict[str, object]) -> str | None:
    """Return a head that was trained on labels of the available level of theory, according to the checkpoint."""
    rows = notes.get("test_errors")
    for row in rows if isinstance(rows, list) else ():
        if row.get("level_of_theory") == GFN1_METAL.name:
            return str(row["head"])
    return None


def restrict_to_head(space: CandidateSpace, model: FoundationModel, head: str) -> CandidateSpace:
    """Return the candidates whose elements the head was trained on."""
    known = [z for z in space.elements if model.known_elements[HEADS.index(head), z]]
    return CandidateSpace(space.prototypes, tuple(known), space.scales)


def make_supercell(structure: Structure) -> Structure:
    """Return a supercell of at least MIN_ATOMS atoms, doubling the shortest vector first."""
    numbers, positions, cell = structure.numbers, structure.positions, structure.cell
    while len(numbers) < MIN_ATOMS:
        axis = int(np.linalg.norm(cell, axis=1).argmin())
        positions = np.concatenate([positions, positions + cell[axis]])
        numbers = np.concatenate([numbers, numbers])
        cell = cell * np.where(np.arange(3) == axis, 2.0, 1.0)[:, None]
    return Structure(structure.name, numbers, positions, cell, structure.periodic)


def label_candidates(
    model: FoundationModel, space: CandidateSpace, indices: Sequence[int], head: str, *, count: int, seconds: float
) -> SpotLabels:
    """Label the first candidates for which the calculation succeeds, and compare the predictions of the model.

    Args:
        model: The model.
        space: The candidates.
        indices: Numbers of candidates, in the order in which they are tried.
        head: The head whose predictions are compared.
        count: Number of labels.
        seconds: Time limit.
    """
    calculator = ReferenceCalculator(model, head=head, precision="fp64")
    labels = SpotLabels(head, GFN1_METAL.name)
    deadline = time.monotonic() + seconds
    for index in indices:
        if len(labels.index) == count or time.monotonic() > deadline:
            break
        structure = make_supercell(space.structure(index))
        if len(structure) > MAX_ATOMS:
            labels.failed[f"more than {MAX_ATOMS} atoms"] += 1
            continue
        try:
            energy, forces = GFN1_METAL.label(structure)
        except (NotConvergedError, ValueError, RuntimeError) as error:
            labels.failed[f"no label ({type(error).__name__})"] += 1
            continue
        try:
            predicted_energy, predicted_forces = predict(calculator, structure)
        except OutsideTraining:
            labels.failed[TOO_CLOSE] += 1
            continue
        labels.index.append(index)
        labels.energy_error_ev_per_atom.append(abs(predicted_energy - energy) / len(structure))
        labels.force_error_ev_per_angstrom.append(float(np.abs(predicted_forces - forces).mean()))
    return labels


def predict(calculator: ReferenceCalculator, structure: Structure) -> tuple[float, Array]:
    """Return the energy (eV) and forces (eV/angstrom) of a structure by the model."""
    atoms = Atoms(structure.numbers, structure.positions, cell=structure.cell, pbc=structure.periodic)
    atoms.calc = calculator
    return float(atoms.get_potential_energy()), np.asarray(atoms.get_forces())
