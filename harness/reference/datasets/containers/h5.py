"""Reading HDF5 groups through h5py's low-level calls, which cost a third of the usual ones on small datasets."""

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
from harness.reference.data.structure_table import Frames
from harness.reference.datasets.parsing import paths
from harness.reference.datasets.parsing.base import BLOCK, MOST_ATOMS
from harness.reference.datasets.parsing.structure_builder import LARGEST_BYTE, Unfit, missing, one_line
from harness.reference.errors import InputError

Group = Any  # h5py.h5g.GroupID, which has no types
Dataset = Any
LIBRARY_ERRORS = (OSError, RuntimeError, KeyError, ValueError, TypeError)
AT_ONCE = 4 * BLOCK  # conformations of a group that are read in one go
LARGEST = 1 << 24  # numbers that are read in one go, or stored in one chunk
UNFOLDED = 1 << 30  # bytes of a dataset from which it is compared with what the file stores of it
DENSEST = 1000  # times that deflate shrinks zeros


@contextmanager
def opened(path: Path) -> Iterator[Group]:
    """The root group, read-only; raises InputError for what is no HDF5 file or is cut short."""
    with paths.opened(path):
        pass
    if not h5py.is_hdf5(path):
        raise InputError(f"{path}: not an HDF5 file, or one whose first bytes are damaged")
    try:
        hdf5 = h5py.File(path, "r")
    except LIBRARY_ERRORS as error:
        raise InputError(f"{path}: cannot be read as HDF5 ({one_line(error)})") from None
    try:
        yield hdf5["/"].id
    except (OSError, RuntimeError, KeyError) as error:
        raise InputError(f"{path}: damaged ({one_line(error)})") from None
    finally:
        hdf5.close()


def names(group: Group, where: str) -> list[str]:
    """What is in a group, by name; raises InputError where that cannot be read."""
    try:
        return _names(group)
    except Unfit as error:
        raise InputError(f"{where}: {error}") from None


def _names(group: Group) -> list[str]:
    try:
        return sorted(name.decode("utf-8", "replace") for name in group)
    except LIBRARY_ERRORS as error:
        raise Unfit("corrupt", f"what it holds cannot be listed ({one_line(error)})") from None


def length(group: Group) -> int:
    """How much is in a group; raises Unfit where that cannot be read."""
    try:
        return len(group)
    except LIBRARY_ERRORS as error:
        raise Unfit("corrupt", f"what it holds cannot be counted ({one_line(error)})") from None


def child(group: Group, name: str) -> Group:
    """A group in a group; raises Unfit where there is none."""
    try:
        return h5py.h5g.open(group, name.encode())
    except LIBRARY_ERRORS as error:
        raise Unfit("corrupt", f"cannot be opened as a group ({one_line(error)})") from None


def dataset(group: Group, name: str) -> Dataset:
    """A dataset of a group; raises Unfit with the names that are there."""
    try:
        found = h5py.h5d.open(group, name.encode())
        _refuse_bombs(found, name)
    except KeyError:
        raise Unfit("missing key", missing(name, _names(group))) from None
    except LIBRARY_ERRORS as error:
        if isinstance(error, Unfit):
            raise
        raise Unfit("corrupt", f"{name!r} cannot be opened ({one_line(error)})") from None
    return found


def _refuse_bombs(found: Dataset, name: str) -> None:
    """Raise Unfit for a dataset that unfolds to far more than the file holds of it."""
    numbers = math.prod(found.shape or ())
    if numbers * 8 > max(UNFOLDED, DENSEST * found.get_storage_size()):
        raise Unfit("too large", f"{name!r} claims {numbers} numbers of which the file does not hold so much")
    if numbers > LARGEST:
        layout = found.get_create_plist()
        if layout.get_layout() == h5py.h5d.CHUNKED and math.prod(layout.get_chunk()) > LARGEST:
            raise Unfit("too large", f"{name!r} is stored in chunks of more than {LARGEST} numbers")


def rows(found: Dataset) -> int:
    """The length of a dataset's first dimension, 0 where it has none."""
    shape = found.shape
    return shape[0] if shape else 0


def values(found: Dataset, first: int | None = None, stop: int = 0) -> Array:
    """A dataset, or its rows from first to before stop, as float64; raises Unfit where it cannot be read."""
    try:
        shape = found.shape
        if shape is None:
            raise Unfit("corrupt", "a dataset that holds nothing")
        wanted = shape if first is None else (stop - first, *shape[1:])
        if math.prod(wanted) > LARGEST:
            raise Unfit("too large", f"{math.prod(wanted)} numbers where those of one structure were expected")
        if first is None:
            array = np.empty(shape)
            found.read(h5py.h5s.ALL, h5py.h5s.ALL, array, h5py.h5t.NATIVE_DOUBLE)
            return array
        array = np.empty(wanted)
        space = found.get_space()
        space.select_hyperslab((first, *(0 for _ in shape[1:])), array.shape)
        found.read(h5py.h5s.create_simple(array.shape), space, array, h5py.h5t.NATIVE_DOUBLE)
    except Unfit:
        raise
    except (*LIBRARY_ERRORS, MemoryError) as error:
        raise Unfit("corrupt", f"its data cannot be read ({one_line(error)})") from None
    return array


def atomic_numbers(group: Group, name: str) -> NDArray[np.uint8]:
    """The atomic numbers of a group, [n]; raises Unfit."""
    found = values(dataset(group, name)).reshape(-1)
    fits = (found >= 0) & (found <= LARGEST_BYTE) & (found == np.floor(found))
    if not fits.all():
        raise Unfit("atomic number", f"{name!r} holds {found[~fits][0]:g}")
    return found.astype(np.uint8)


def conformations(
    group: Group, numbers: NDArray[np.uint8], keys: tuple[str, str, str]
) -> Iterator[tuple[int, Array, Array, Array]]:
    """(first row, positions [c, n, 3], energy [c], forces [c, n, 3]) in runs of at most AT_ONCE rows; raises Unfit.

    keys: of positions, energies and forces.
    """
    found = [dataset(group, key) for key in keys]
    count = rows(found[0])
    n = len(numbers)
    for key, part, expected in zip(keys, found, ((count, n, 3), (count,), (count, n, 3)), strict=True):
        if tuple(part.shape or ()) not in (expected, (*expected, 1)):
            raise Unfit("shape", f"{key!r} has shape {tuple(part.shape or ())}, expected {expected}")
    if n > MOST_ATOMS:
        raise Unfit("too large", f"{n} atoms, more than {MOST_ATOMS}")
    step = max(1, min(AT_ONCE, LARGEST // (3 * max(n, 1))))
    for first in range(0, count, step):
        stop = min(first + step, count)
        run = (None, 0) if count <= step else (first, stop)
        positions, energy, forces = (values(part, *run) for part in found)
        yield first, positions, energy.reshape(stop - first), forces


def size(group: Group, name: str) -> int:
    """The rows of a dataset of a group, as far as can be seen; 0 where there is none."""
    try:
        return rows(h5py.h5d.open(group, name.encode()))
    except LIBRARY_ERRORS:
        return 0


def same_molecule(
    ids: list[str],
    group: str,
    numbers: NDArray[np.uint8],
    positions: Array,
    energy: Array,
    forces: Array,
) -> Frames:
    """Frames of c conformations of one molecule: positions and forces [c, n, 3], energy [c]."""
    count = len(ids)
    return Frames(
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
