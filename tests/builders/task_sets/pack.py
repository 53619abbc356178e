"""Write a shipped set of a task: columns of fixed-point integers in HDF5, the same bytes for the same samples."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from harness.reference.data.structure import Array
from tests.builders.mini_sets.pack import to_fixed_point
from tests.builders.task_sets.samples import Sample

TARGET_DECIMALS = 8


@dataclass(frozen=True)
class Decimals:
    """Digits after the point of positions and cells (angstrom) and of forces (eV/angstrom)."""

    positions: int = 5
    cell: int = 8
    forces: int = 5


def write_set(path: Path, samples: Sequence[Sample], decimals: Decimals) -> str:
    """Write the set and return the sha256 of its file."""
    structures = [s.structure for s in samples]
    with h5py.File(path, "w", libver=("earliest", "v110"), track_order=True) as file:
        _write_column(file, "natoms", np.array([len(s) for s in structures], dtype=np.int32))
        _write_column(file, "numbers", np.concatenate([s.numbers for s in structures]).astype(np.uint8))
        _write_decimals(file, "positions", np.concatenate([s.positions for s in structures]), decimals.positions)
        _write_decimals(file, "target", np.array([s.target for s in samples]), TARGET_DECIMALS)
        if any(s.structure.energy not in (None, s.target) for s in samples):
            _write_decimals(file, "energy", np.array([s.energy for s in structures], dtype=float), TARGET_DECIMALS)
        forces = [s.forces for s in structures if s.forces is not None]
        if forces:
            _write_decimals(file, "forces", np.concatenate(forces), decimals.forces)
        if any(any(s.periodic) for s in structures):
            _write_decimals(file, "cell", np.array([s.cell for s in structures]), decimals.cell)
            _write_column(file, "periodic", np.array([s.periodic for s in structures], dtype=np.uint8))
        _write_column(file, "multiplicity", np.array([s.multiplicity for s in structures], dtype=np.uint8))
        _write_column(file, "id", np.array([s.name.encode() for s in structures]))
        _write_column(file, "group", np.array([s.group.encode() for s in structures]))
        _write_column(file, "subset", np.array([s.subset.encode() for s in samples], dtype=_text_dtype(samples)))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _text_dtype(samples: Sequence[Sample]) -> str:
    return f"S{max(1, *(len(s.subset.encode()) for s in samples))}"


def _write_column(file: h5py.File, name: str, values: NDArray[np.generic]) -> h5py.Dataset:
    return file.create_dataset(
        name, data=values, chunks=True, compression="gzip", compression_opts=9, shuffle=True, track_times=False
    )


def _write_decimals(file: h5py.File, name: str, values: Array, decimals: int) -> None:
    _write_column(file, name, to_fixed_point(values, decimals)).attrs["decimals"] = decimals
