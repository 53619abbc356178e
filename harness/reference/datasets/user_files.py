"""Structures from ASE objects and from files of the user, with their charge and multiplicity."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from harness.reference.data.structure import Structure
from harness.reference.errors import InputError

CHARGE_NAMES = ("charge", "total_charge")
# OMol25 calls the multiplicity 2S + 1 `spin`
MULTIPLICITY_NAMES = ("multiplicity", "spin_multiplicity", "spin")
MAX_VALUE = 100


def read_structures(path: Path, count: int) -> list[Structure]:
    """Read and check the first `count` structures of a file in a format of ASE; raises InputError if that fails."""
    frames = _read_frames(path, f":{count}")
    return [structure_from_ase(atoms, f"{path.name}/{k}").check() for k, atoms in enumerate(frames)]


def read_labelled_structures(path: Path) -> list[Structure]:
    """Read and check all structures of a file in a format of ASE, with energies and, optionally, forces.

    Raises:
        InputError: The file cannot be read, a structure is unusable or has no finite energy, or only some of the
            structures have forces.
    """
    structures = [
        _add_labels(structure_from_ase(atoms, f"{path.name}/{k}"), atoms).check()
        for k, atoms in enumerate(_read_frames(path, ":"))
    ]
    first = structures[0]
    for structure in structures:
        if (structure.forces is None) != (first.forces is None):
            lacking, other = (structure, first) if structure.forces is None else (first, structure)
            raise InputError(f"{path}: structure {lacking.name!r} has no forces, but {other.name!r} has")
    return structures


def _add_labels(structure: Structure, atoms: Atoms) -> Structure:
    """Return the structure with the labels that ASE has read; forces do not depend on constraints."""
    labels = {} if atoms.calc is None else atoms.calc.results
    if "energy" not in labels:
        available = ", ".join([*labels, *atoms.info, *atoms.arrays]) or "its structure"
        raise InputError(f"structure {structure.name!r} has no label 'energy' (eV), only {available}")
    values = {name: np.asarray(labels[name]) for name in ("energy", "forces") if name in labels}
    for name, shape in (("energy", ()), ("forces", (len(atoms), 3))):
        array = values.get(name, np.zeros(shape))
        if array.shape != shape or array.dtype.kind not in "iuf" or not np.isfinite(array).all():
            size = " x ".join(map(str, shape)) or "1"
            raise InputError(f"structure {structure.name!r}: expected {size} finite numbers as label {name!r}")
    forces = values.get("forces")
    return replace(structure, energy=float(values["energy"]), forces=None if forces is None else forces.astype(float))


def _read_frames(path: Path, index: str) -> list[Atoms]:
    import ase.io  # imported here, as few processes need it and all would wait for it

    frames: list[Atoms] = []
    try:
        frames.extend(ase.io.iread(path, index))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except Exception as error:  # each of ASE's parsers fails in its own way
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        after = f" after structure {len(frames) - 1}" if frames else ""
        raise InputError(f"{path}: cannot be read as structures{after} ({reason[:120]})") from None
    if not frames:
        raise InputError(f"{path}: holds no structures")
    return frames


def structure_from_ase(atoms: Atoms, name: str) -> Structure:
    """Return a structure without labels; charge and multiplicity come from `read_electronic_state`."""
    charge, multiplicity = read_electronic_state(atoms.info, name)
    return Structure(
        name=name,
        numbers=atoms.numbers.astype(np.int64),
        positions=atoms.positions,
        cell=np.array(atoms.cell),
        periodic=(bool(atoms.pbc[0]), bool(atoms.pbc[1]), bool(atoms.pbc[2])),
        charge=charge,
        multiplicity=multiplicity,
    )


def read_electronic_state(info: Mapping[str, Any], name: str = "atoms") -> tuple[int, int]:
    """Return (charge, multiplicity 2S + 1), or 0 for a value that `info` lacks; a multiplicity of 0 means unknown.

    Raises:
        InputError: A value is not a whole number within -100..100 (charge) or 0..100 (multiplicity), or two names
            of the same quantity have different values.
    """
    return _read_value(info, CHARGE_NAMES, -MAX_VALUE, name), _read_value(info, MULTIPLICITY_NAMES, 0, name)


def _read_value(info: Mapping[str, Any], names: tuple[str, ...], least: int, structure: str) -> int:
    values = {key: _parse_integer(key, info[key], least, structure) for key in names if key in info}
    if len(set(values.values())) > 1:
        words = ", ".join(f"info[{key!r}] is {value}" for key, value in values.items())
        raise InputError(f"structure {structure!r}: {words}; they are names of one quantity and must agree")
    return next(iter(values.values()), 0)


def _parse_integer(key: str, value: Any, least: int, structure: str) -> int:
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]
    number = float(value) if isinstance(value, Real) and not isinstance(value, bool | np.bool_) else math.nan
    if not (least <= number <= MAX_VALUE and number == round(number)):
        text = " ".join(repr(value).split())[:40]
        raise InputError(
            f"structure {structure!r}: info[{key!r}] is {text}, expected a whole number from {least} to {MAX_VALUE}"
        )
    return int(number)
