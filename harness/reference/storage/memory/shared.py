"""One copy of a split for all processes of a node, in memory that the system frees with the last of them.

The memory has no name in any file system (memfd, Linux), so that nothing is left even when all are killed.
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
from harness.reference.storage.schema import Counts, Record

CHUNK_BYTES = 64 << 20
ALIGN = 64
NAME = "harness-samples"


@dataclass(frozen=True)
class Place:
    """An array in the memory; `ends` says which array has where samples begin and end in it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    axis: int
    start: int
    ends: int


@dataclass(frozen=True)
class Plan:
    """What lies where: the ends tables first, then the keys. owner, handle: the process that holds the memory."""

    samples: int
    places: tuple[Place, ...]
    nbytes: int
    tables: int
    owner: int = 0
    handle: int = 0


class SharedSamples(Samples):
    """Samples in memory that processes of a node share; pickles as a reference, good while the first process lives."""

    def __init__(self, plan: Plan, handle: int | None = None) -> None:
        """Attach to the planned memory; handle: of the memory, if this process created it."""
        self.plan = plan
        self._own = handle
        if handle is None:
            handle = _attach_memory(plan)
        self._memory = mmap.mmap(handle, max(1, plan.nbytes))
        if self._own is None:
            os.close(handle)
        self._reader = self._readers()

    @classmethod
    def load(cls, file: BPFile, label: str, keys: Collection[str] | None, comm: Any) -> SharedSamples:
        """Read the split into the node's memory, each rank of the node its part. Collective."""
        if comm is None:
            memory = cls(*_create_memory(file, label, keys))
            _fill_memory(memory, file, label, 0, memory.plan.samples)
            return memory
        from mpi4py import MPI

        node = comm.Split_type(MPI.COMM_TYPE_SHARED)
        first = collectives.run_collectively(
            comm, lambda: _create_memory(file, label, keys) if node.Get_rank() == 0 else None
        )
        plan = node.bcast(None if first is None else first[0])
        result = collectives.run_collectively(comm, lambda: cls(plan, None if first is None else first[1]))
        part = split_evenly(plan.samples, node.Get_rank(), node.Get_size())
        collectives.run_collectively(comm, lambda: _fill_memory(result, file, label, *part))
        node.Free()
        return result

    def array(self, place: Place) -> NDArray[Any]:
        """Return a view of the memory."""
        return np.ndarray(place.shape, place.dtype, self._memory, place.start)

    def _readers(self) -> PreloadedSamples:
        tables = self.plan.tables
        groups: list[ColumnGroup] = [
            (memoryview(self._memory)[p.start :][: 8 * p.shape[0]].cast("q"), []) for p in self.plan.places[:tables]
        ]
        for place in self.plan.places[tables:]:
            values = self.array(place)
            values.flags.writeable = False
            groups[place.ends][1].append((place.name, values, place.axis))
        return PreloadedSamples(groups, self.plan.samples)

    def __len__(self) -> int:
        return self.plan.samples

    def get(self, indices: Sequence[int] | NDArray[np.int64]) -> list[Record]:
        """Return the samples in the order asked for, as views of the shared memory."""
        return self._reader.get(indices)

    def __reduce__(self) -> tuple[type[SharedSamples], tuple[Plan]]:
        return SharedSamples, (self.plan,)

    def close(self) -> None:
        """Let go of the memory; views that were given out keep it alive."""
        self._reader = PreloadedSamples([], 0)
        if self._own is not None:
            os.close(self._own)
            self._own = None


def _create_memory(file: BPFile, label: str, keys: Collection[str] | None) -> tuple[Plan, int]:
    """Create memory of the right size and return it with its plan."""
    samples = file.samples(label)
    names = file.keys(label) if keys is None else tuple(keys)
    tables: list[Counts] = []
    which: dict[str, int] = {}
    for name in names:
        ends = file.ends(label, name)
        which[name] = next((k for k, t in enumerate(tables) if np.array_equal(t, ends)), len(tables))
        if which[name] == len(tables):
            tables.append(ends)
    places: list[Place] = []
    at = 0
    for k in range(len(tables)):
        places.append(Place("", "int64", (samples + 1,), axis=0, start=at, ends=k))
        at += -(-8 * (samples + 1) // ALIGN) * ALIGN
    for name in names:
        _, dtype, axis, _ = file.field(label, name)
        shape = file.shape(label, name)
        places.append(Place(name, dtype, shape, axis=axis, start=at, ends=which[name]))
        at += -(-int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize // ALIGN) * ALIGN
    handle = os.memfd_create(NAME, os.MFD_CLOEXEC)
    try:
        os.posix_fallocate(handle, 0, max(1, at))
    except OSError as error:
        os.close(handle)
        raise InputError(f"{file.path}: {at} bytes of shared memory cannot be had ({error.strerror})") from None
    memory = mmap.mmap(handle, max(1, at))
    for place, table in zip(places, tables, strict=False):
        np.ndarray(place.shape, place.dtype, memory, place.start)[:] = table
    return Plan(samples, tuple(places), at, tables=len(tables), owner=os.getpid(), handle=handle), handle


def _attach_memory(plan: Plan) -> int:
    """Return a handle of another process's memory."""
    place = f"/proc/{plan.owner}/fd/{plan.handle}"
    try:
        if NAME not in os.readlink(place):  # another process by now
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        return os.open(place, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise InputError(f"the shared samples of process {plan.owner} are out of reach ({error.strerror})") from None


def _fill_memory(shared: SharedSamples, file: BPFile, label: str, first: int, stop: int) -> None:
    """Copy samples first..stop from the file, a piece at a time."""
    plan = shared.plan
    step = max(1, CHUNK_BYTES * plan.samples // max(1, plan.nbytes))
    names = [place.name for place in plan.places[plan.tables :]]
    for start in range(first, stop, step):
        end = min(start + step, stop)
        block = file.columns(label, start, end, names)
        for place in plan.places[plan.tables :]:
            ends = shared.array(plan.places[place.ends])
            cut = (slice(None),) * place.axis + (slice(int(ends[start]), int(ends[end])),)
            shared.array(place)[cut] = block.columns[place.name].values
