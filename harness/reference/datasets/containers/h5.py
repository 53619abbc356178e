"""Read HDF5 groups by h5py's low-level functions, which take a third of the time of its classes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from harness.reference.data.structure import Array
from harness.reference.data.structure_table import StructureTable
from harness.reference.datasets.parsing import paths
from harness.reference.datasets.parsing.base import MAX_ATOMS, TABLE_STRUCTURES
from harness.reference.datasets.parsing.structure_builder import (
    MAX_BYTE,
    InvalidStructure,
    describe_missing_key,
)
from harness.reference.errors import InputError, get_first_line

Group = Any  # h5py.h5g.GroupID, which has no types
Dataset = Any
HDF5_ERRORS = (OSError, RuntimeError, KeyError, ValueError, TypeError)
MAX_CONFORMATIONS = 4 * TABLE_STRUCTURES  # number of conformations that are read at a time
MAX_NUMBERS = 1 << 24  # number of values that are read at a time, or stored in one chunk
SUSPICIOUS_BYTES = 1 << 30  # the size of larger datasets is compared with their compressed size
MAX_COMPRESSION = 1000  # the compression ratio of deflate for zeros


@contextmanager
def open_root(path: Path) -> Iterator[Group]:
    """Yield the root group, read-only; raises InputError for a file that is not HDF5 or is truncated."""
    with paths.open_file(path):
        pass
    if not h5py.is_hdf5(path):
        raise InputError(f"{path}: not an HDF5 file, or one whose first bytes are damaged")
    try:
        hdf5 = h5py.File(path, "r")
    except HDF5_ERRORS as error:
        raise InputError(f"{path}: cannot be read as HDF5 ({get_first_line(error)})") from None
    try:
        yield hdf5["/"].id
    except (OSError, RuntimeError, KeyError) as error:
        raise InputError(f"{path}: damaged ({get_first_line(error)})") from None
    finally:
        hdf5.close()


def list_names(group: Group, where: str) -> list[str]:
    """Return the names of a group's members; raises InputError if they cannot be read."""
    try:
        return _list_member_names(group)
    except InvalidStructure as error:
        raise InputError(f"{where}: {error}") from None


def _list_member_names(group: Group) -> list[str]:
    try:
        return sorted(name.decode("utf-8", "replace") for name in group)
    except HDF5_ERRORS as error:
        raise InvalidStructure("corrupt", f"its members cannot be listed ({get_first_line(error)})") from None


def count_members(group: Group) -> int:
    """Return the number of a group's members; raises InvalidStructure if it cannot be read."""
    try:
        return len(group)
    except HDF5_ERRORS as error:
        raise InvalidStructure("corrupt", f"its members cannot be counted ({get_first_line(error)})") from None


def open_child(group: Group, name: str) -> Group:
    """Open a group in a group; raises InvalidStructure if it does not exist."""
    try:
        return h5py.h5g.open(group, name.encode())
    except HDF5_ERRORS as error:
        raise InvalidStructure("corrupt", f"cannot be opened as a group ({get_first_line(error)})") from None


def open_dataset(group: Group, name: str) -> Dataset:
    """Open a dataset of a group; raises InvalidStructure, with the existing names, if there is none."""
    try:
        result = h5py.h5d.open(group, name.encode())
        _reject_decompression_bombs(result, name)
    except KeyError:
        raise InvalidStructure("missing key", describe_missing_key(name, _list_member_names(group))) from None
    except HDF5_ERRORS as error:
        if isinstance(error, InvalidStructure):
            raise
        raise InvalidStructure("corrupt", f"{name!r} cannot be opened ({get_first_line(error)})") from None
    return result


def _reject_decompression_bombs(dataset: Dataset, name: str) -> None:
    """Raise InvalidStructure for a dataset that is far larger decompressed than stored."""
    numbers = math.prod(dataset.shape or ())
    if numbers * 8 > max(SUSPICIOUS_BYTES, MAX_COMPRESSION * dataset.get_storage_size()):
        raise InvalidStructure(
            "too large", f"{name!r} claims to have {numbers} numbers, too many for the size of the file"
        )
    if numbers > MAX_NUMBERS:
        layout = dataset.get_create_plist()
        if layout.get_layout() == h5py.h5d.CHUNKED and math.prod(layout.get_chunk()) > MAX_NUMBERS:
            raise InvalidStructure("too large", f"{name!r} is stored in chunks of more than {MAX_NUMBERS} numbers")


def count_rows(dataset: Dataset) -> int:
    """Return the length of a dataset's first dimension, or 0 if it has none."""
    shape = dataset.shape
    return shape[0] if shape else 0


def read_values(dataset: Dataset, first: int | None = None, stop: int = 0) -> Array:
    """Read a dataset, or its rows first..stop - 1, as float64.

    Args:
        dataset: The dataset.
        first: Index of the first row; None for the whole dataset.
        stop: Index after the last row.

    Raises:
        InvalidStructure: The data are damaged, or more than MAX_NUMBERS.
    """
    try:
        shape = dataset.shape
        if shape is None:
            raise InvalidStructure("corrupt", "an empty dataset")
        extent = shape if first is None else (stop - first, *shape[1:])
        if math.prod(extent) > MAX_NUMBERS:
            raise InvalidStructure("too large", f"{math.prod(extent)} numbers, more than one structure can have")
        if first is None:
            array = np.empty(shape)
            dataset.read(h5py.h5s.ALL, h5py.h5s.ALL, array, h5py.h5t.NATIVE_DOUBLE)
            return array
        array = np.empty(extent)
        space = dataset.get_space()
        space.select_hyperslab((first, *(0 for _ in shape[1:])), array.shape)
        dataset.read(h5py.h5s.create_simple(array.shape), space, array, h5py.h5t.NATIVE_DOUBLE)
    except InvalidStructure:
        raise
    except (*HDF5_ERRORS, MemoryError) as error:
        raise InvalidStructure("corrupt", f"its data cannot be read ({get_first_line(error)})") from None
    return array


def read_atomic_numbers(group: Group, name: str) -> NDArray[np.uint8]:
    """Read the atomic numbers of a group, [n]; raises InvalidStructure."""
    numbers = read_values(open_dataset(group, name)).reshape(-1)
    fits = (numbers >= 0) & (numbers <= MAX_BYTE) & (numbers == np.floor(numbers))
    if not fits.all():
        raise InvalidStructure("atomic number", f"{name!r} holds {numbers[~fits][0]:g}")
    return numbers.astype(np.uint8)


def iter_conformations(
    group: Group, numbers: NDArray[np.uint8], keys: tuple[str, str, str]
) -> Iterator[tuple[int, Array, Array, Array]]:
    """Yield the conformations of a molecule of n atoms, at most MAX_CONFORMATIONS at a time.

    Args:
        group: The group of the molecule.
        numbers: [n] atomic numbers.
        keys: The names of positions, energies and forces.

    Yields:
        (index of the first conformation, positions [c, n, 3], energy [c], forces [c, n, 3]).
    """
    datasets = [open_dataset(group, key) for key in keys]
    count = count_rows(datasets[0])
    n = len(numbers)
    for key, part, expected in zip(keys, datasets, ((count, n, 3), (count,), (count, n, 3)), strict=True):
        if tuple(part.shape or ()) not in (expected, (*expected, 1)):
            raise InvalidStructure("shape", f"{key!r} has shape {tuple(part.shape or ())}, expected {expected}")
    if n > MAX_ATOMS:
        raise InvalidStructure("too large", f"{n} atoms, more than {MAX_ATOMS}")
    step = max(1, min(MAX_CONFORMATIONS, MAX_NUMBERS // (3 * max(n, 1))))
    for first in range(0, count, step):
        stop = min(first + step, count)
        rows = (None, 0) if count <= step else (first, stop)
        positions, energy, forces = (read_values(part, *rows) for part in datasets)
        yield first, positions, energy.reshape(stop - first), forces


def count_dataset_rows(group: Group, name: str) -> int:
    """Return the number of rows of a dataset in a group, 0 if the dataset does not exist or cannot be read."""
    try:
        return count_rows(h5py.h5d.open(group, name.encode()))
    except HDF5_ERRORS:
        return 0


def tabulate_conformations(
    ids: list[str],
    group: str,
    *,
    numbers: NDArray[np.uint8],
    positions: Array,
    energy: Array,
    forces: Array,
) -> StructureTable:
    """Return a table of c conformations of one molecule of n atoms.

    Args:
        ids: [c] names.
        group: The name of the molecule.
        numbers: [n] atomic numbers.
        positions: [c, n, 3] angstrom.
        energy: [c] eV.
        forces: [c, n, 3] eV/angstrom.
    """
    count = len(ids)
    return StructureTable(
        ids=np.array(ids),
        groups=np.full(count, group),
        sizes=np.full(count, len(numbers), dtype=np.int64),
        numbers=np.tile(numbers, count),
        positions=positions.reshape(-1, 3),
        energy=energy,
        cell=np.zeros((count, 3, 3)),
        periodic=np.zeros((count, 3), dtype=bool),
        charge=np.zeros(count, dtype=np.int64),
        multiplicity=np.zeros(count, dtype=np.int64),
        forces=forces.reshape(-1, 3),
    )
