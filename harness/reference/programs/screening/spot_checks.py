"""Labels for a random subset of the candidates."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from ase import Atoms

from harness.reference.data.structure import Array, Structure
from harness.reference.datasets.catalog import HEADS
from harness.reference.datasets.levels import GFN1_METAL, NotConvergedError
from harness.reference.inference.calculator import ReferenceCalculator
from harness.reference.inference.risk import RiskModel
from harness.reference.inference.risk_labels import is_plausible
from harness.reference.models.coverage import TOO_CLOSE, OutsideTraining
from harness.reference.models.foundation import FoundationModel
from harness.reference.programs.screening.candidates.prototype_space import CandidateSpace

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
        risk_ev_per_atom: [k] risk of the energy; empty without a risk.
        failed: Number of candidates without a label, by reason.
    """

    head: str
    level: str
    index: list[int] = field(default_factory=list)
    energy_error_ev_per_atom: list[float] = field(default_factory=list)
    force_error_ev_per_angstrom: list[float] = field(default_factory=list)
    risk_ev_per_atom: list[float] = field(default_factory=list)
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
    model: FoundationModel,
    space: CandidateSpace,
    indices: Sequence[int],
    head: str,
    *,
    risk: RiskModel | None,
    count: int,
    seconds: float,
) -> SpotLabels:
    """Label the first candidates for which the calculation succeeds, and compare the predictions of the model.

    Args:
        model: The model.
        space: The candidates.
        indices: Numbers of candidates, in the order in which they are tried.
        head: The head whose predictions are compared.
        risk: The risk of the model, or None.
        count: Number of labels.
        seconds: Time limit.
    """
    calculator = ReferenceCalculator(model, head=head, precision="fp64", risk=risk or False)
    references = model.reference_energy[HEADS.index(head)].double().cpu().numpy()
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
        if not is_plausible((energy - float(references[structure.numbers].sum())) / len(structure)):
            labels.failed["label below the energy of any compound"] += 1
            continue
        try:
            predicted_energy, predicted_forces = predict(calculator, structure)
        except OutsideTraining:
            labels.failed[TOO_CLOSE] += 1
            continue
        labels.index.append(index)
        labels.energy_error_ev_per_atom.append(abs(predicted_energy - energy) / len(structure))
        labels.force_error_ev_per_angstrom.append(float(np.abs(predicted_forces - forces).mean()))
        if risk is not None:
            labels.risk_ev_per_atom.append(calculator.results["risk_ev_per_atom"])
    return labels


def predict(calculator: ReferenceCalculator, structure: Structure) -> tuple[float, Array]:
    """Return the energy (eV) and forces (eV/angstrom) of a structure by the model."""
    atoms = Atoms(structure.numbers, structure.positions, cell=structure.cell, pbc=structure.periodic)
    atoms.calc = calculator
    return float(atoms.get_potential_energy()), np.asarray(atoms.get_forces())
