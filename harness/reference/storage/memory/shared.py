"""One copy of a split for all processes of a node, in memory that the system frees when the last process ends.

The memory has no name in any file system (memfd of Linux), so that nothing remains even if all processes are killed.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.reference.errors import InputError
from harness.reference.storage import collectives
from harness.reference.storage.adios.reader import BPFile
from harness.reference.storage.samples import ColumnGroup, PreloadedSamples, Samples, split_evenly
from harness.reference.storage.schema import Counts, Sample

CHUNK_BYTES = 64 << 20
ALIGN = 64
NAME = "harness-samples"


@dataclass(frozen=True)
class ArrayPlacement:
    """The location of an array in the memory.

    Attributes:
        name: The key; "" for a table of sample boundaries.
        dtype: The name of the data type.
        shape: The shape of the array.
        axis: The samples' axis (harness.reference.storage.schema).
        start: Offset in bytes.
        ends: Position, in `MemoryLayout.placements`, of the table with the array's sample boundaries.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    axis: int
    start: int
    ends: int


@dataclass(frozen=True)
class MemoryLayout:
    """The layout of the memory.

    Attributes:
        samples: Number of samples.
        placements: The tables of sample boundaries, then the keys.
        nbytes: Size of the memory in bytes.
        tables: Number of tables of sample boundaries.
        owner: Id of the process that created the memory.
        handle: The file descriptor of the memory in that process.
    """

    samples: int
    placements: tuple[ArrayPlacement, ...]
    nbytes: int
    tables: int
    owner: int = 0
    handle: int = 0


class SharedSamples(Samples):
    """Samples in memory that processes of a node share.

    A pickle is a reference to the memory, which is valid as long as the process that created the memory lives.
    """

    def __init__(self, layout: MemoryLayout, handle: int | None = None) -> None:
        """Attach to the memory.

        Args:
            layout: The layout of the memory.
            handle: The file descriptor of the memory if this process created it; None otherwise.
        """
        self.layout = layout
        self._handle = handle
        if handle is None:
            handle = _attach_memory(layout)
        self._memory = mmap.mmap(handle, max(1, layout.nbytes))
        if self._handle is None:
            os.close(handle)
        self._reader = self._build_reader()

    @classmethod
    def load(cls, file: BPFile, split: str, keys: Collection[str] | None, comm: Any) -> SharedSamples:
        """Read the split into memory that the ranks of a node share; each rank reads its part. Collective."""
        if comm is None:
            memory = cls(*_create_memory(file, split, keys))
            _fill_memory(memory, file, split, 0, memory.layout.samples)
            return memory
        from mpi4py import MPI

        node = comm.Split_type(MPI.COMM_TYPE_SHARED)
        first = collectives.run_collectively(
            comm, lambda: _create_memory(file, split, keys) if node.Get_rank() == 0 else None
        )
        layout = node.bcast(None if first is None else first[0])
        result = collectives.run_collectively(comm, lambda: cls(layout, None if first is None else first[1]))
        part = split_evenly(layout.samples, node.Get_rank(), node.Get_size())
        collectives.run_collectively(comm, lambda: _fill_memory(result, file, split, *part))
        node.Free()
        return result

    def array(self, placement: ArrayPlacement) -> NDArray[Any]:
        """Return an array as a view of the memory."""
        return np.ndarray(placement.shape, placement.dtype, self._memory, placement.start)

    def _build_reader(self) -> PreloadedSamples:
        tables = self.layout.tables
        groups: list[ColumnGroup] = [
            (memoryview(self._memory)[p.start :][: 8 * p.shape[0]].cast("q"), [])
            for p in self.layout.placements[:tables]
        ]
        for placement in self.layout.placements[tables:]:
            values = self.array(placement)
            values.flags.writeable = False
            groups[placement.ends][1].append((placement.name, values, placement.axis))
        return PreloadedSamples(groups, self.layout.samples)

    def __len__(self) -> int:
        return self.layout.samples

    def get(self, indices: Sequence[int] | NDArray[np.int64]) -> list[Sample]:
        """Return the samples in the requested order, as views of the shared memory."""
        return self._reader.get(indices)

    def __reduce__(self) -> tuple[type[SharedSamples], tuple[MemoryLayout]]:
        return SharedSamples, (self.layout,)

    def close(self) -> None:
        """Release the memory; views that were returned keep it alive."""
        self._reader = PreloadedSamples([], 0)
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


def _create_memory(file: BPFile, split: str, keys: Collection[str] | None) -> tuple[MemoryLayout, int]:
    """Create memory of the right size, and return its layout and file descriptor."""
    samples = file.count_samples(split)
    names = file.keys(split) if keys is None else tuple(keys)
    tables: list[Counts] = []
    table_of: dict[str, int] = {}
    for name in names:
        ends = file.bounds(split, name)
        table_of[name] = next((k for k, t in enumerate(tables) if np.array_equal(t, ends)), len(tables))
        if table_of[name] == len(tables):
            tables.append(ends)
    placements: list[ArrayPlacement] = []
    size = 0
    for k in range(len(tables)):
        placements.append(ArrayPlacement("", "int64", (samples + 1,), axis=0, start=size, ends=k))
        size += -(-8 * (samples + 1) // ALIGN) * ALIGN
    for name in names:
        _, dtype, axis, _ = file.describe_key(split, name)
        shape = file.shape(split, name)
        placements.append(ArrayPlacement(name, dtype, shape, axis=axis, start=size, ends=table_of[name]))
        size += -(-int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize // ALIGN) * ALIGN
    handle = os.memfd_create(NAME, os.MFD_CLOEXEC)
    try:
        os.posix_fallocate(handle, 0, max(1, size))
    except OSError as error:
        os.close(handle)
        raise InputError(f"{file.path}: {size} bytes of shared memory cannot be allocated ({error.strerror})") from None
    memory = mmap.mmap(handle, max(1, size))
    for placement, table in zip(placements, tables, strict=False):
        np.ndarray(placement.shape, placement.dtype, memory, placement.start)[:] = table
    return MemoryLayout(samples, tuple(placements), size, tables=len(tables), owner=os.getpid(), handle=handle), handle


def _attach_memory(layout: MemoryLayout) -> int:
    """Return a file descriptor of another process's memory."""
    path = f"/proc/{layout.owner}/fd/{layout.handle}"
    try:
        if NAME not in os.readlink(path):  # the process id has been reused
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise InputError(
            f"the shared samples of process {layout.owner} cannot be accessed ({error.strerror})"
        ) from None


def _fill_memory(shared: SharedSamples, file: BPFile, split: str, first: int, stop: int) -> None:
    """Copy the samples first..stop - 1 from the file into the memory, piece by piece."""
    layout = shared.layout
    step = max(1, CHUNK_BYTES * layout.samples // max(1, layout.nbytes))
    names = [placement.name for placement in layout.placements[layout.tables :]]
    for start in range(first, stop, step):
        end = min(start + step, stop)
        block = file.columns(split, start, end, names)
        for placement in layout.placements[layout.tables :]:
            ends = shared.array(layout.placements[placement.ends])
            cut = (slice(None),) * placement.axis + (slice(int(ends[start]), int(ends[end])),)
            shared.array(placement)[cut] = block.columns[placement.name].values
