"""What a recipe hands on: a structure with the value that its task predicts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from harness.reference.data.structure import Structure


@dataclass(frozen=True)
class Sample:
    """structure.name: the official id. target: in the task's unit. subset: the part of the task it belongs to, if any.

    structure.energy: eV, where it is not the target itself.
    """

    structure: Structure
    target: float
    subset: str = ""


def make_energy_samples(structures: Sequence[Structure]) -> list[Sample]:
    """The energy is the target; the subset stands before the slash of the name."""
    return [Sample(s, _require_energy(s), s.name.partition("/")[0]) for s in structures]


def make_relative_samples(structures: Sequence[Structure]) -> list[Sample]:
    """The energy above that of the molecule's _00, the molecule being what stands before the underscore; eV."""
    zero = {_parse_molecule(s): _require_energy(s) for s in structures if s.name.endswith("_00")}
    return [Sample(replace(s, forces=None), _require_energy(s) - zero[_parse_molecule(s)]) for s in structures]


def _parse_molecule(structure: Structure) -> str:
    return structure.name.partition("_")[0]


def _require_energy(structure: Structure) -> float:
    assert structure.energy is not None
    return structure.energy
