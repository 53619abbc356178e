"""Samples: structures with the value that their task predicts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from harness.reference.data.structure import Structure


@dataclass(frozen=True)
class Sample:
    """A structure and its target.

    Attributes:
        structure: Structure named by the official id; its energy (eV) is set if the target is a different quantity.
        target: Target in the unit of the task.
        subset: Part of the task that the sample belongs to, if it has parts.
    """

    structure: Structure
    target: float
    subset: str = ""


def make_energy_samples(structures: Sequence[Structure]) -> list[Sample]:
    """Return samples whose target is the energy; the subset is the name up to the slash."""
    return [Sample(s, _require_energy(s), s.name.partition("/")[0]) for s in structures]


def make_relative_samples(structures: Sequence[Structure]) -> list[Sample]:
    """Return samples whose target is the energy in eV above that of the same molecule's conformer named `_00`."""
    zero = {_parse_molecule(s): _require_energy(s) for s in structures if s.name.endswith("_00")}
    return [Sample(replace(s, forces=None), _require_energy(s) - zero[_parse_molecule(s)]) for s in structures]


def _parse_molecule(structure: Structure) -> str:
    return structure.name.partition("_")[0]


def _require_energy(structure: Structure) -> float:
    assert structure.energy is not None
    return structure.energy
