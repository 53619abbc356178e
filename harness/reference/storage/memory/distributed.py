"""One copy of a split, spread over the memory of ranks; any rank reads any sample by one-sided access.

The semantics are those of DDStore (github.com/ORNL/DDStore), which can manage the memory instead of MPI: the
communicator is split into groups of `width` ranks, each group holds all samples once, and the owner of a sample is not
involved when another rank reads it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from importlib.util import find_spec
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from harness.reference.errors import InputError
from harness.reference.storage import collectives
from harness.reference.storage.adios.reader import BPFile
from harness.reference.storage.record_codec import UNIT, RecordSchema
from harness.reference.storage.samples import Samples, split_evenly
from harness.reference.storage.schema import Sample

if TYPE_CHECKING:
    from mpi4py import MPI

Words = NDArray[np.int64]  # memory, one element for each unit of eight bytes
Lengths = NDArray[np.int64]  # lengths of records in units
_VARIABLE_NUMBERS = count()


class MemoryBackend(ABC):
    """Memory of all ranks that each rank can read, in units of eight bytes; the constructor is collective."""

    name: str
    thread_safe: bool

    @abstractmethod
    def allocate(self, comm: Any, units: int) -> Words:
        """Return this rank's memory, [units], which must be filled before `open`."""

    @abstractmethod
    def open(self) -> None:
        """Allow all ranks to read; collective."""

    @abstractmethod
    def fetch(self, out: Words, owners: list[int], starts: list[int], lengths: list[int]) -> None:
        """Copy ranges of the memory of other ranks into `out`, one after the other.

        Args:
            out: The target; its length is the sum of `lengths`.
            owners: The rank that holds each range.
            starts: The start of each range in its owner's memory, in units.
            lengths: The length of each range in units.
        """

    @abstractmethod
    def close(self) -> None:
        """Free all memory; collective."""


class RmaBackend(MemoryBackend):
    """An MPI window (remote memory access) on which all ranks hold a shared lock, as no rank writes to it.

    One get per record and a single flush for all were chosen by measurement: a record of 8 kB takes 1.4 us this way,
    1.0 to 3.7 us with one derived datatype per owner (depending on the number of records per owner), and 12 us with a
    lock per get.
    """

    name = "rma"

    def __init__(self) -> None:
        from mpi4py import MPI  # starts MPI

        self._mpi = MPI
        self._window: MPI.Win | None = None

    @property
    def thread_safe(self) -> bool:  # type: ignore[override]
        """Whether MPI was initialized with MPI_THREAD_MULTIPLE."""
        return self._mpi.Query_thread() == self._mpi.THREAD_MULTIPLE

    def allocate(self, comm: Any, units: int) -> Words:
        """Allocate memory in a new window."""
        self._window = self._mpi.Win.Allocate(max(1, units) * UNIT, 1, comm=comm)
        self._comm = comm
        return np.asarray(self._window.tomemory()).view(np.int64)[:units]

    def open(self) -> None:
        """Lock the window until it is closed, after all ranks have filled their memory."""
        assert self._window is not None
        self._window.Lock_all(self._mpi.MODE_NOCHECK)
        self._window.Sync()
        self._comm.Barrier()
        self._window.Sync()

    def fetch(self, out: Words, owners: list[int], starts: list[int], lengths: list[int]) -> None:
        """Issue all gets, then flush once."""
        assert self._window is not None
        get, byte, offset = self._window.Get, self._mpi.BYTE, 0
        target = out.data.cast("B")
        for owner, start, length in zip(owners, starts, lengths, strict=True):
            size = length * UNIT
            get((target[offset : offset + size], byte), owner, (start * UNIT, size, byte))
            offset += size
        self._window.Flush_all()

    def close(self) -> None:
        """Unlock and free the window."""
        if self._window is not None:
            self._window.Unlock_all()
            self._window.Free()
            self._window = None


class DDStoreBackend(MemoryBackend):
    """Memory in a DDStore: one variable with rows of 8 bytes.

    DDStore's get locks and unlocks the owner's window in each call, and so needs no collective fence. Its get_batch is
    not used, as it is collective with MPI and supports only rows of equal length. Newer versions of DDStore copy the
    data, so that this rank's part is in memory twice; local samples are read from the array of this class.

    Args:
        method: 0 for MPI, 1 for libfabric.
    """

    def __init__(self, method: int) -> None:
        try:
            import pyddstore
        except ImportError:
            raise InputError("pyddstore is not installed; use the backend rma") from None
        self.name = "ddstore-libfabric" if method else "ddstore"
        self._create = pyddstore.PyDDStore
        self._method = method
        self._variable = f"samples-{next(_VARIABLE_NUMBERS)}"

    @property
    def thread_safe(self) -> bool:  # type: ignore[override]
        """Whether samples may be read in threads: with MPI only if it was initialized with MPI_THREAD_MULTIPLE."""
        from mpi4py import MPI

        return self._method == 1 or MPI.Query_thread() == MPI.THREAD_MULTIPLE

    def allocate(self, comm: Any, units: int) -> Words:
        """Allocate plain memory of at least one row."""
        self._comm = comm
        # The first versions have no parameter `method`.
        self._store = self._create(comm, method=self._method) if self._method else self._create(comm)
        self._local = np.zeros(max(1, units), dtype=np.int64)
        return self._local[:units]

    def open(self) -> None:
        """Register this rank's rows with DDStore, and gather the index of each rank's first row."""
        rows = self._comm.allgather(len(self._local))
        self._firsts = np.concatenate([[0], np.cumsum(rows)]).tolist()
        self._store.add(self._variable, self._local)
        self._comm.Barrier()

    def fetch(self, out: Words, owners: list[int], starts: list[int], lengths: list[int]) -> None:
        """Issue one get for each record, which consists of consecutive rows of one rank."""
        offset, firsts, get, variable = 0, self._firsts, self._store.get, self._variable
        for owner, start, length in zip(owners, starts, lengths, strict=True):
            get(variable, out[offset : offset + length], firsts[owner] + start)
            offset += length

    def close(self) -> None:
        """Free the variable."""
        self._comm.Barrier()
        self._store.free()


CHUNK_BYTES = 64 << 20
Spans = tuple[list[int], list[int], list[int]]  # owners, starts and lengths of records


def make_backend(name: str) -> MemoryBackend:
    """Return the backend of this name; "auto" is DDStore if it is installed, else MPI.

    Raises:
        InputError: The backend is unknown or not installed.
    """
    if name == "auto":
        name = "ddstore" if find_spec("pyddstore") else "rma"
    if name == "rma":
        return RmaBackend()
    if name in ("ddstore", "ddstore-libfabric"):
        return DDStoreBackend(method=1 if name == "ddstore-libfabric" else 0)
    raise InputError(f"unknown backend {name!r}; there are auto, rma, ddstore and ddstore-libfabric")


class Directory:
    """The locations of all records; it takes 4 bytes per sample, or 8 if a rank holds more than 32 GiB.

    Args:
        lengths: For each rank, the lengths of its records in units.

    Attributes:
        firsts: [owners + 1] index of the first sample of each owner, and the number of all samples.
        starts: [samples] start of each record in its owner's memory, in units.
        units: [owners] length of each owner's memory in units.
    """

    def __init__(self, lengths: Sequence[Lengths]) -> None:
        self.units = [int(owned.sum()) for owned in lengths]
        is_small = max(self.units) < 1 << 32
        self.firsts = np.concatenate([[0], np.cumsum([len(owned) for owned in lengths])])
        starts = [(np.cumsum(owned) - owned).astype(np.uint32 if is_small else np.int64) for owned in lengths]
        self.starts = np.concatenate(starts)
        owners = zip(self.firsts[1:].tolist(), lengths, self.units, strict=True)
        # by the index of each owner's last record: its end, as the next start belongs to another owner's memory
        self._last_ends = {stop - 1: units for stop, owned, units in owners if len(owned)}

    def __len__(self) -> int:
        return int(self.firsts[-1])

    @property
    def nbytes(self) -> int:
        """The size of the directory on each rank in bytes."""
        return self.starts.nbytes

    def find(self, indices: NDArray[np.int64]) -> Spans:
        """Return the owners, starts and lengths of the records with these indices."""
        owners = (np.searchsorted(self.firsts, indices, side="right") - 1).tolist()
        starts = self.starts[indices].tolist()
        next_starts = self.starts[np.minimum(indices + 1, len(self) - 1)].tolist()
        ends = [self._last_ends.get(i, start) for i, start in zip(indices.tolist(), next_starts, strict=True)]
        return (
            owners,
            starts,
            [end - start for start, end in zip(starts, ends, strict=True)],
        )


class DistributedStore(Samples):
    """Samples as records that are spread over the memory of a group of ranks.

    Args:
        comm: The communicator of the group.
        backend: The memory.
        schema: The schema of all records.
        local: This rank's memory, which holds its records one after the other.
        lengths: [k] lengths of these records in units.
    """

    def __init__(self, comm: Any, backend: MemoryBackend, schema: RecordSchema, local: Words, lengths: Lengths) -> None:
        self.comm = comm
        self.schema = schema
        self.rank = comm.Get_rank()
        self.backend = backend
        self.thread_safe = backend.thread_safe
        self._local: Words | None = local
        self.directory = Directory(comm.allgather(lengths))
        backend.open()

    @classmethod
    def load(
        cls, file: BPFile, split: str, keys: Collection[str] | None, *, comm: Any, width: int | None, backend: str
    ) -> DistributedStore:
        """Read each rank's share of a split from the file. Collective; if one rank fails, all ranks raise an error."""
        comm, group = _split_communicator(comm, width)
        schema = RecordSchema.from_file(file, split, keys)
        first, stop = split_evenly(file.count_samples(split), group.Get_rank(), group.Get_size())

        def prepare() -> tuple[MemoryBackend, Lengths]:
            names = [field.name for field in schema.fields] if first < stop else []
            counts: Mapping[str, Any] = {name: file.counts(split, name, first, stop) for name in names}
            return make_backend(backend), schema.compute_lengths(counts) if names else np.zeros(0, np.int64)

        memory, lengths = collectives.run_collectively(comm, prepare)
        local = memory.allocate(group, int(lengths.sum()))

        def fill() -> None:
            step = max(1, CHUNK_BYTES // UNIT * len(lengths) // max(1, int(lengths.sum())))
            ends = np.concatenate([[0], np.cumsum(lengths)])
            for start in range(first, stop, step):
                end = min(start + step, stop)
                block = file.columns(split, start, end, [field.name for field in schema.fields])
                schema.pack_block(block, local[ends[start - first] : ends[end - first]])

        collectives.run_collectively(comm, fill)
        return cls(group, memory, schema, local, lengths)

    def __len__(self) -> int:
        return len(self.directory)

    def get(self, indices: Sequence[int] | NDArray[np.int64]) -> list[Sample]:
        """Return the samples in the requested order; those of this rank are views of its memory."""
        numbers = np.asarray(indices, dtype=np.int64)
        if self._local is None:
            raise InputError("the distributed store is closed")
        if not numbers.size:
            return []
        if numbers.min() < 0 or numbers.max() >= len(self):
            raise InputError(
                f"expected sample indices 0..{len(self) - 1}, got {numbers[(numbers < 0) | (numbers >= len(self))][0]}"
            )
        owners, starts, lengths = self.directory.find(numbers)
        remote = [k for k, owner in enumerate(owners) if owner != self.rank]
        unpack = self.schema.unpack
        sizes = [lengths[k] for k in remote]
        buffer = np.empty(sum(sizes), np.int64)
        if remote:
            self.backend.fetch(buffer, [owners[k] for k in remote], [starts[k] for k in remote], sizes)
        local, offset, records = self._local, 0, []
        for owner, start, length in zip(owners, starts, lengths, strict=True):
            if owner == self.rank:
                records.append(unpack(local, start))
            else:
                records.append(unpack(buffer, offset))
                offset += length
        return records

    def close(self) -> None:
        """Free the memory; views of this rank's samples must not be used any more. Collective."""
        if self._local is not None:
            self._local = None
            self.backend.close()
            self.comm.Free()


def _split_communicator(comm: Any, width: int | None) -> tuple[Any, Any]:
    """Return the communicator (that of this process alone if it is None) and the group of this rank in it."""
    if comm is None:
        from mpi4py import MPI

        comm = MPI.COMM_SELF
    ranks = comm.Get_size()
    if width is not None and not 1 <= width <= ranks:
        raise InputError(f"a distributed store cannot have groups of {width} ranks, there are {ranks}")
    return comm, comm.Split(comm.Get_rank() // (width or ranks), comm.Get_rank())
