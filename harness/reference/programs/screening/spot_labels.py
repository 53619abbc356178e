"""A random subset of candidates calculated, and how far the model was off: flagged ones beside the others."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from harness.reference.data.structure import Array, Structure
from harness.reference.datasets.heads import HEADS
from harness.reference.datasets.levels import GFN1_METAL, NotConvergedError
from harness.reference.inference.calculator import ReferenceCalculator
from harness.reference.models.coverage import TOO_CLOSE, OutsideTraining
from harness.reference.models.foundation import FoundationModel
from harness.reference.programs.screening.candidates.prototype_space import CandidateSpace

LEAST_ATOMS = 8  # a cell whose Gamma point alone says something
MOST_ATOMS = 32


@dataclass(frozen=True)
class Labelled:
    """index: [k] of candidates. off_ev_per_atom, force_off_ev_per_a: [k] absolute, mean over components of forces.
    failed: candidates without a label, by reason."""

    head: str
    level: str
    index: list[int]
    off_ev_per_atom: list[float]
    force_off_ev_per_a: list[float]
    failed: Counter[str]


def labelled_head(notes: dict[str, object]) -> str | None:
    """A head that was trained on labels of the level that is at hand, if the checkpoint says so."""
    rows = notes.get("held_out")
    for row in rows if isinstance(rows, list) else ():
        if row.get("level") == GFN1_METAL.words:
            return str(row["head"])
    return None


def known_space(space: CandidateSpace, model: FoundationModel, head: str) -> CandidateSpace:
    """The candidates of elements that the head was trained on."""
    known = [z for z in space.elements if model.known_elements[HEADS.index(head), z]]
    return CandidateSpace(space.prototypes, tuple(known), space.scales)


def repeated(structure: Structure) -> Structure:
    """A supercell of at least LEAST_ATOMS atoms, along the shortest vectors first."""
    numbers, positions, cell = structure.numbers, structure.positions, structure.cell
    while len(numbers) < LEAST_ATOMS:
        axis = int(np.linalg.norm(cell, axis=1).argmin())
        positions = np.concatenate([positions, positions + cell[axis]])
        numbers = np.concatenate([numbers, numbers])
        cell = cell * np.where(np.arange(3) == axis, 2.0, 1.0)[:, None]
    return Structure(structure.name, numbers, positions, cell, structure.periodic)


def labelled(
    model: FoundationModel, space: CandidateSpace, indices: Sequence[int], head: str, *, wanted: int, seconds: float
) -> Labelled:
    """Labels of the first `wanted` candidates for which there are some, or of as many as the time allows."""
    calculator = ReferenceCalculator(model, head=head, precision_name="fp64")
    found = Labelled(head, GFN1_METAL.words, [], [], [], Counter())
    deadline = time.monotonic() + seconds
    for index in indices:
        if len(found.index) == wanted or time.monotonic() > deadline:
            break
        structure = repeated(space.structure(index))
        if len(structure) > MOST_ATOMS:
            found.failed[f"more than {MOST_ATOMS} atoms"] += 1
            continue
        try:
            energy, forces = GFN1_METAL.label(structure)
        except (NotConvergedError, ValueError, RuntimeError) as error:
            found.failed[f"no label ({type(error).__name__})"] += 1
            continue
        try:
            told = told_by(calculator, structure)
        except OutsideTraining:
            found.failed[TOO_CLOSE] += 1
            continue
        found.index.append(index)
        found.off_ev_per_atom.append(abs(told[0] - energy) / len(structure))
        found.force_off_ev_per_a.append(float(np.abs(told[1] - forces).mean()))
    return found


def told_by(calculator: ReferenceCalculator, structure: Structure) -> tuple[float, Array]:
    """Energy and forces by the model."""
    from ase import Atoms

    atoms = Atoms(structure.numbers, structure.positions, cell=structure.cell, pbc=structure.periodic)
    atoms.calc = calculator
    return float(atoms.get_potential_energy()), np.asarray(atoms.get_forces())
