"""Reader of MD17 and its revision: one .npz file per molecule with a trajectory, in kcal/mol and angstrom.

Files that sGDML's scripts write (type, theory, e_unit, r_unit, ...) name their units, which may differ.
"""

from __future__ import annotations

import re
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.reference.data.structure import MAX_ATOMIC_NUMBER, Array
from harness.reference.datasets.parsing.constants import KCAL_PER_MOL_EV, find_energy_unit, find_length_unit
from harness.reference.datasets.parsing.paths import list_files
from harness.reference.datasets.parsing.structure_builder import build_row, describe_missing_key
from harness.reference.errors import InputError, get_first_line
from harness.reference.tasks.dataset import LabelledRow, TaskDataset, collect_rows
from harness.reference.tasks.readers.energy_checks import check_molecules

MAX_FRAMES = 10_000  # number of evenly spaced frames that are read of each molecule, of up to a million
_AFFIXES = re.compile(r"^(r?md17_)|(_dft)$")
# The names of each quantity in files: that of MD17, that of its revision, and others.
NAMES = {
    "energies": ("E", "energies", "energy"),
    "forces": ("F", "forces", "force"),
    "positions": ("R", "coords", "positions", "coordinates"),
    "numbers": ("z", "nuclear_charges", "atomic_numbers", "numbers"),
}
LEVEL, REVISED_LEVEL = "PBE+vdW-TS", "PBE/def2-SVP, tight"
# A few MB of zeros decompress to gigabytes, but coordinates and forces can hardly be compressed; so a larger ratio than
# MAX_COMPRESSION is rejected if the content exceeds ALWAYS_ALLOWED bytes.
MAX_COMPRESSION, ALWAYS_ALLOWED = 100, 64 << 20


@dataclass(frozen=True)
class Trajectory:
    """The frames of one molecule of n atoms, and their level of theory.

    Attributes:
        energies: [frames] eV.
        forces: [frames, n, 3] eV/angstrom.
        positions: [frames, n, 3] angstrom.
        numbers: [n] atomic numbers.
        level: The level of theory.
    """

    energies: Array
    forces: Array
    positions: Array
    numbers: NDArray[np.int64]
    level: str


def read_md17(path: Path) -> TaskDataset:
    """Read evenly spaced frames of each molecule; a molecule is a subset. Raises InputError for unusable files."""
    values: list[LabelledRow] = []
    left_out: Counter[str] = Counter()
    levels: list[str] = []
    for file, _ in list_files([path], (".npz",), "MD17 files"):
        trajectory = _open_trajectory(file)
        levels.append(trajectory.level)
        left_out["not among the evenly spaced frames"] += max(0, len(trajectory.energies) - MAX_FRAMES)
        values += _iter_rows(_AFFIXES.sub("", file.stem), trajectory)
    subsets = {v.subset for v in values}
    data_origin = f"official MD17, {{count}} frames of {len(subsets)} molecules"
    level = "; ".join(dict.fromkeys(levels))
    return check_molecules(collect_rows(values, str(path), data_origin, level, left_out), path)


def _open_trajectory(path: Path) -> Trajectory:
    try:
        _check_size(path)
        with np.load(path, allow_pickle=False) as archive:
            if "type" in archive and str(archive["type"]) not in ("d", "b'd'"):
                raise InputError(f"{path}: an sGDML file of type {str(archive['type'])!r}, expected a dataset ('d')")
            if "lattice" in archive:
                raise InputError(f"{path}: it has a lattice, but the molecules of MD17 are not periodic")
            keys = {quantity: _find_key(path, quantity, archive) for quantity in NAMES}
            arrays = {quantity: archive[key] for quantity, key in keys.items()}
            described = {key: archive[key] for key in ("e_unit", "r_unit", "theory") if key in archive}
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except Exception as error:  # zip, zlib and numpy each have errors of their own for damaged bytes
        raise InputError(f"{path}: cut short, or not an .npz file ({get_first_line(error)})") from None
    for quantity, array in arrays.items():
        if array.dtype.kind not in "iuf":
            raise InputError(f"{path}: {keys[quantity]} is of type {array.dtype}, expected numbers")
    numbers = arrays["numbers"].reshape(-1)
    if not numbers.size or not ((numbers >= 1) & (numbers <= MAX_ATOMIC_NUMBER) & (numbers == numbers.round())).all():
        raise InputError(
            f"{path}: {keys['numbers']} holds a value that is not an atomic number (1..{MAX_ATOMIC_NUMBER})"
        )
    frames = arrays["positions"].size // (3 * numbers.size)
    shapes = {"positions": (frames, numbers.size, 3), "forces": (frames, numbers.size, 3), "energies": (frames,)}
    for quantity, shape in shapes.items():
        if arrays[quantity].squeeze().shape != np.empty(shape).squeeze().shape:
            raise InputError(f"{path}: {keys[quantity]} has shape {arrays[quantity].shape}, expected {shape}")
    energy = find_energy_unit(f"{path}: e_unit", described["e_unit"]) if "e_unit" in described else KCAL_PER_MOL_EV
    length = find_length_unit(f"{path}: r_unit", described["r_unit"]) if "r_unit" in described else 1.0
    return Trajectory(
        energies=arrays["energies"].reshape(-1) * energy,
        forces=arrays["forces"].reshape(shapes["forces"]) * (energy / length),
        positions=arrays["positions"].reshape(shapes["positions"]) * length,
        numbers=numbers.astype(np.int64),
        level=_read_level(keys, described),
    )


def _check_size(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    packed, unpacked = sum(e.compress_size for e in entries), sum(e.file_size for e in entries)
    if unpacked > MAX_COMPRESSION * packed + ALWAYS_ALLOWED:
        raise InputError(f"{path}: {packed:,} bytes that unpack to {unpacked:,} cannot be a trajectory")


def _find_key(path: Path, quantity: str, archive: Mapping[str, Any]) -> str:
    keys = [name for name in NAMES[quantity] if name in archive]
    if not keys:
        missing = describe_missing_key(NAMES[quantity][0], archive)
        names = ", ".join(NAMES[quantity])
        raise InputError(f"{path}: not MD17, {missing}; the accepted names of {quantity} are {names}")
    if len(keys) > 1:
        raise InputError(f"{path}: it has {quantity} twice, as {' and '.join(keys)}; remove one of them")
    return keys[0]


def _read_level(keys: Mapping[str, str], described: Mapping[str, Any]) -> str:
    theory = str(described.get("theory", "")).strip()
    if theory and theory.lower() not in ("unknown", "none"):
        return theory[:80]
    return REVISED_LEVEL if keys["numbers"] == "nuclear_charges" else LEVEL


def _iter_rows(molecule: str, trajectory: Trajectory) -> Iterator[LabelledRow]:
    frames = len(trajectory.energies)
    for k in np.linspace(0, frames - 1, min(frames, MAX_FRAMES)).round().astype(int).tolist():
        energy = float(trajectory.energies[k])
        columns = build_row(
            f"{molecule}/{k}",
            f"{molecule}/{k}",
            trajectory.numbers,
            trajectory.positions[k],
            energy=energy,
            forces=trajectory.forces[k],
            multiplicity=1,
        )
        yield LabelledRow(columns, energy, molecule)
