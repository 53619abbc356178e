"""MD17 and its revision: one .npz of a trajectory for each molecule, kcal/mol."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness.reference.datasets.formats.gather import missing, one_line, row
from harness.reference.datasets.formats.paths import files
from harness.reference.datasets.units import KCAL_PER_MOL_EV
from harness.reference.errors import InputError
from harness.reference.structures import Array
from harness.reference.tasks.labelled import Labelled, Value, collected

MOST = 10_000  # frames read of a molecule, an even pick of up to a million
_AROUND = re.compile(r"^(r?md17_)|(_dft)$")


class Keys(NamedTuple):
    """The names of the arrays in a file."""

    energy: str
    forces: str
    positions: str
    numbers: str


MD17 = Keys("E", "F", "R", "z")
REVISED = Keys("energies", "forces", "coords", "nuclear_charges")
LEVELS = {MD17: "PBE+vdW-TS", REVISED: "PBE/def2-SVP, tight"}


def read(path: Path) -> Labelled:
    """An even pick of each molecule's frames, the molecules as subsets; raises InputError naming file and fault."""
    values: list[Value] = []
    left_out: Counter[str] = Counter()
    level = ""
    for file, _ in files([path], (".npz",), "MD17 files"):
        arrays, keys = _opened(file)
        level = LEVELS[keys]
        frames = len(arrays[keys.energy])
        left_out["frames beyond an even pick"] += max(0, frames - MOST)
        values += _values(_AROUND.sub("", file.stem), arrays, keys)
    subsets = {v.subset for v in values}
    return collected(values, str(path), f"official MD17, {{count}} frames of {len(subsets)} molecules", level, left_out)


def _opened(path: Path) -> tuple[dict[str, Any], Keys]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            keys = REVISED if REVISED.energy in archive else MD17
            if absent := [k for k in keys if k not in archive]:
                raise InputError(f"{path}: not MD17, " + missing(absent[0], archive))
            arrays = {k: archive[k] for k in keys}
    except InputError:
        raise
    except Exception as error:  # zip, zlib and numpy each have errors of their own for damaged bytes
        raise InputError(f"{path}: cut short, or not an .npz file ({one_line(error)})") from None
    atoms, frames = arrays[keys.numbers].size, len(arrays[keys.positions])
    for key, shape in (
        (keys.positions, (frames, atoms, 3)),
        (keys.forces, (frames, atoms, 3)),
        (keys.energy, (frames,)),
    ):
        if arrays[key].squeeze().shape != np.empty(shape).squeeze().shape:
            raise InputError(f"{path}: {key} has shape {arrays[key].shape}, expected {shape}")
    return arrays, keys


def _values(molecule: str, arrays: dict[str, Any], keys: Keys) -> Iterator[Value]:
    energies: Array = arrays[keys.energy].reshape(-1) * KCAL_PER_MOL_EV
    numbers: NDArray[np.integer[Any]] = arrays[keys.numbers].reshape(-1)
    frames = len(energies)
    for k in np.linspace(0, frames - 1, min(frames, MOST)).round().astype(int).tolist():
        columns = row(
            f"{molecule}/{k}",
            f"{molecule}/{k}",
            numbers,
            arrays[keys.positions][k],
            energy=float(energies[k]),
            forces=arrays[keys.forces][k] * KCAL_PER_MOL_EV,
            multiplicity=1,
        )
        yield Value(columns, float(energies[k]), molecule)
