"""Write a mini set: columns of fixed-point integers in HDF5, the same bytes for the same structures."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from harness.reference.data.structure import Array, Structure

CELL_DECIMALS = 10
ENERGY_DECIMALS = 8
STRESS_DECIMALS = 10


@dataclass(frozen=True)
class Decimals:
    """Digits after the point of positions (angstrom) and forces (eV/angstrom)."""

    positions: int
    forces: int


PUBLISHED = Decimals(positions=8, forces=8)
COMPUTED = Decimals(positions=5, forces=6)


def to_fixed_point(values: Array, decimals: int) -> NDArray[np.int64]:
    """Return the values as integers: rounded multiples of 10**-decimals."""
    return np.rint(values * 10.0**decimals).astype(np.int64)


def write_set(path: Path, slug: str, structures: Sequence[Structure], decimals: Decimals) -> str:
    """Write the set and return the sha256 of its file."""
    with_stress = [s.stress for s in structures if s.stress is not None]
    assert len(with_stress) in (0, len(structures)), "a stress for all or for none"
    with h5py.File(path, "w", libver=("earliest", "v110"), track_order=True) as file:
        file.attrs["slug"] = slug
        _write_column(file, "natoms", np.array([len(s) for s in structures], dtype=np.int32))
        _write_column(file, "numbers", np.concatenate([s.numbers for s in structures]).astype(np.uint8))
        _write_decimals(file, "positions", np.concatenate([s.positions for s in structures]), decimals.positions)
        _write_decimals(file, "energy", np.array([s.energy for s in structures], dtype=float), ENERGY_DECIMALS)
        forces = [s.forces for s in structures if s.forces is not None]
        _write_decimals(file, "forces", np.concatenate(forces), decimals.forces)
        _write_decimals(file, "cell", np.array([s.cell for s in structures]), CELL_DECIMALS)
        _write_column(file, "periodic", np.array([s.periodic for s in structures], dtype=np.uint8))
        if with_stress:
            _write_decimals(file, "stress", np.array(with_stress), STRESS_DECIMALS)
        _write_column(file, "charge", np.array([s.charge for s in structures], dtype=np.int8))
        _write_column(file, "multiplicity", np.array([s.multiplicity for s in structures], dtype=np.uint8))
        _write_column(file, "group", np.array([s.group.encode() for s in structures]))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _write_column(file: h5py.File, name: str, values: NDArray[np.generic]) -> h5py.Dataset:
    return file.create_dataset(
        name, data=values, chunks=True, compression="gzip", compression_opts=9, shuffle=True, track_times=False
    )


def _write_decimals(file: h5py.File, name: str, values: Array, decimals: int) -> None:
    _write_column(file, name, to_fixed_point(values, decimals)).attrs["decimals"] = decimals
