"""Structures from a user's own file."""

from __future__ import annotations

from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms

from harness.reference.data.electronic_state import electronic_state
from harness.reference.data.structure import Structure
from harness.reference.errors import InputError


def read_file(path: Path, count: int) -> list[Structure]:
    """The first structures of a file in any format that ASE reads, checked; raises InputError naming what is wrong."""
    try:
        frames = ase.io.read(path, f":{count}")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except Exception as error:  # each of ASE's parsers fails in its own way
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path}: cannot be read as structures ({reason[:120]})") from None
    if not frames:
        raise InputError(f"{path}: holds no structures")
    return [from_ase(atoms, f"{path.name}/{k}").check() for k, atoms in enumerate(frames)]


def from_ase(atoms: Atoms, name: str) -> Structure:
    """The geometry of an ASE object, without labels; charge and multiplicity as `electronic_state` reads its info."""
    charge, multiplicity = electronic_state(atoms.info, name)
    return Structure(
        name=name,
        numbers=atoms.numbers.astype(np.int64),
        positions=atoms.positions,
        cell=np.array(atoms.cell),
        periodic=(bool(atoms.pbc[0]), bool(atoms.pbc[1]), bool(atoms.pbc[2])),
        charge=charge,
        multiplicity=multiplicity,
    )
