"""Relaxation of the best candidates, their symmetry after it, and duplicates among the relaxed crystals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms

from harness.reference.data.structure import Structure
from harness.reference.inference.batched_relaxation import RelaxedStructure, relax_structures
from harness.reference.models.foundation import FoundationModel
from harness.reference.programs.screening.convex_hull import find_composition
from harness.reference.programs.screening.symmetry import find_spacegroup

FMAX = 0.05  # eV/angstrom
FOLDER = "relaxed"
# Crystals of one composition and space group are duplicates if energies and (relative) volumes differ by less.
SAME_ENERGY_EV_PER_ATOM, SAME_VOLUME = 0.005, 0.02


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
        force_max_ev_per_angstrom: Largest norm of the force on an atom at the end.
        file: The file of the relaxed structure: CIF for a crystal, else XYZ.
        spacegroup: International symbol of the space group at the end; None if there is none.
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
    spacegroup: str | None


def relax(
    model: FoundationModel,
    candidates: Sequence[tuple[int, Structure]],
    *,
    steps: int,
    folder: Path,
    head: int | None = None,
) -> tuple[list[Relaxation], list[Structure], Counter[str]]:
    """Relax candidates in batches, crystals with their cell, and write each to a file and all to relaxed.extxyz.

    Args:
        model: The model.
        candidates: (number, structure) of each candidate.
        steps: Maximum number of steps.
        folder: The folder of the case.
        head: Index of the head; None for the gate's weighted sum.

    Returns:
        The relaxations, the relaxed structures, and the number of candidates that failed, by reason.
    """
    starts = [structure for _, structure in candidates]
    results = dict(relax_structures(model, starts, head=head, fmax=FMAX, max_steps=steps))
    (folder / FOLDER).mkdir(exist_ok=True)
    relaxations: list[Relaxation] = []
    structures: list[Structure] = []
    failed: Counter[str] = Counter()
    for k, (number, start) in enumerate(candidates):
        result = results[k]
        if isinstance(result, str):
            failed[result] += 1
            continue
        relaxations.append(_describe(number, start, result))
        structures.append(result.structure)
    frames = [
        Atoms(s.numbers, s.positions, cell=s.cell, pbc=s.periodic, info={"candidate": r.candidate})
        for s, r in zip(structures, relaxations, strict=True)
    ]
    for atoms, relaxation in zip(frames, relaxations, strict=True):
        ase.io.write(folder / relaxation.file, atoms)
    if frames:
        ase.io.write(folder / FOLDER / "relaxed.extxyz", frames)
    return relaxations, structures, failed


def _describe(number: int, start: Structure, result: RelaxedStructure) -> Relaxation:
    return Relaxation(
        candidate=number,
        converged=result.converged,
        steps=result.steps,
        initial_energy_ev_per_atom=result.initial_energy_ev / len(start),
        final_energy_ev_per_atom=result.energy_ev / len(start),
        initial_volume_angstrom3_per_atom=_compute_volume_per_atom(start),
        final_volume_angstrom3_per_atom=_compute_volume_per_atom(result.structure),
        force_max_ev_per_angstrom=float(np.linalg.norm(result.forces, axis=1).max()),
        file=f"{FOLDER}/{number}.{'cif' if all(start.periodic) else 'xyz'}",
        spacegroup=find_spacegroup(result.structure),
    )


def find_duplicates(relaxations: Sequence[Relaxation], structures: Sequence[Structure]) -> list[int | None]:
    """Return for each relaxed candidate the number of the first one that is the same crystal, or None.

    Crystals are the same if composition and space group are equal, and energy and volume are close; a structure without
    a space group has no duplicates.
    """
    first: dict[tuple[object, ...], list[Relaxation]] = {}
    duplicates: list[int | None] = []
    for relaxation, structure in zip(relaxations, structures, strict=True):
        group = first.setdefault((find_composition(structure.numbers), relaxation.spacegroup), [])
        same = [r for r in group if relaxation.spacegroup is not None and _is_close(r, relaxation)]
        duplicates.append(same[0].candidate if same else None)
        if not same:
            group.append(relaxation)
    return duplicates


def _is_close(first: Relaxation, second: Relaxation) -> bool:
    energy = abs(first.final_energy_ev_per_atom - second.final_energy_ev_per_atom)
    volume = abs(first.final_volume_angstrom3_per_atom - second.final_volume_angstrom3_per_atom)
    return energy < SAME_ENERGY_EV_PER_ATOM and volume < SAME_VOLUME * first.final_volume_angstrom3_per_atom


def _compute_volume_per_atom(structure: Structure) -> float:
    return float(abs(np.linalg.det(structure.cell)) / len(structure)) if all(structure.periodic) else 0.0
