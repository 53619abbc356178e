"""One copy of a split, spread over the memory of ranks; any rank reads any sample by one-sided access.

The semantics are those of DDStore (github.com/ORNL/DDStore): the communicator is split into groups of `width` ranks,
each group holds all samples once, and the owner of a sample takes no part in a get.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.reference.errors import InputError
from harness.reference.storage import collectives
from harness.reference.storage.adios.reader import BPFile
from harness.reference.storage.memory.windows import MemoryBackend, Units
from harness.reference.storage.record_codec import UNIT, RecordSchema
from harness.reference.storage.samples import Samples, split_evenly
from harness.reference.storage.schema import Record

CHUNK_BYTES = 64 << 20
Spans = tuple[list[int], list[int], list[int]]


def make_backend(name: str) -> MemoryBackend:
    """Return the backend of this name, where auto is DDStore if it is installed; raises InputError if it is not."""
    if name == "auto":
        name = "ddstore" if find_spec("pyddstore") else "rma"
    if name == "rma":
        from harness.reference.storage.memory.windows import RmaBackend

        return RmaBackend()
    if name in ("ddstore", "ddstore-libfabric"):
        from harness.reference.storage.memory.windows import DDStoreBackend

        return DDStoreBackend(method=1 if name == "ddstore-libfabric" else 0)
    raise InputError(f"unknown backend {name!r}; there are auto, rma, ddstore and ddstore-libfabric")


class Directory:
    """The owner of each record, and its position and length in units there; 4 bytes per sample, or 8 beyond 32 GiB.

    firsts: first sample of each owner, and the number of all. starts: [samples] position in the owner's memory.
    units: [owners] length of each owner's memory.
    """

    def __init__(self, lengths: Sequence[Units]) -> None:
        self.units = [int(part.sum()) for part in lengths]
        is_small = max(self.units) < 1 << 32
        self.firsts = np.concatenate([[0], np.cumsum([len(part) for part in lengths])])
        starts = [(np.cumsum(part) - part).astype(np.uint32 if is_small else np.int64) for part in lengths]
        self.starts = np.concatenate(starts)
        ends = zip(self.firsts[1:].tolist(), lengths, self.units, strict=True)
        self._stops = {stop - 1: units for stop, part, units in ends if len(part)}

    def __len__(self) -> int:
        return int(self.firsts[-1])

    @property
    def nbytes(self) -> int:
        """Size of the directory on each rank."""
        return self.starts.nbytes

    def find(self, indices: NDArray[np.int64]) -> Spans:
        """Return the owners, positions and lengths of records."""
        owners = (np.searchsorted(self.firsts, indices, side="right") - 1).tolist()
        starts = self.starts[indices].tolist()
        stops = self.starts[np.minimum(indices + 1, len(self) - 1)].tolist()
        last = self._stops
        return (
            owners,
            starts,
            [last.get(i, stop) - start for i, start, stop in zip(indices.tolist(), starts, stops, strict=True)],
        )


class DistributedStore(Samples):
    """Records spread over a group of ranks.

    schema: of all records. local: this rank's memory, with its records one after the other. lengths: of these, [k].
    """

    def __init__(self, comm: Any, backend: MemoryBackend, schema: RecordSchema, local: Units, lengths: Units) -> None:
        self.comm = comm
        self.schema = schema
        self.rank = comm.Get_rank()
        self.backend = backend
        self.thread_safe = backend.thread_safe
        self._local: Units | None = local
        self.directory = Directory(comm.allgather(lengths))
        backend.open()

    @classmethod
    def load(
        cls, file: BPFile, label: str, keys: Collection[str] | None, *, comm: Any, width: int | None, backend: str
    ) -> DistributedStore:
        """Read each rank's share of a split from the file. Collective: if one rank fails, all do."""
        comm, group = _split_communicator(comm, width)
        schema = RecordSchema.from_file(file, label, keys)
        first, stop = split_evenly(file.samples(label), group.Get_rank(), group.Get_size())

        def measure() -> tuple[MemoryBackend, Units]:
            names = [field.name for field in schema.fields] if first < stop else []
            counts: Mapping[str, Any] = {name: file.counts(label, name, first, stop) for name in names}
            return make_backend(backend), schema.units(counts) if names else np.zeros(0, np.int64)

        memory, lengths = collectives.run_collectively(comm, measure)
        local = memory.allocate(group, int(lengths.sum()))

        def fill() -> None:
            step = max(1, CHUNK_BYTES // UNIT * len(lengths) // max(1, int(lengths.sum())))
            ends = np.concatenate([[0], np.cumsum(lengths)])
            for start in range(first, stop, step):
                end = min(start + step, stop)
                block = file.columns(label, start, end, [field.name for field in schema.fields])
                schema.pack_block(block, local[ends[start - first] : ends[end - first]])

        collectives.run_collectively(comm, fill)
        return cls(group, memory, schema, local, lengths)

    def __len__(self) -> int:
        return len(self.directory)

    def get(self, indices: Sequence[int] | NDArray[np.int64]) -> list[Record]:
        """Return the samples in the order asked for: this rank's as views of its memory, the others in one fetch."""
        numbers = np.asarray(indices, dtype=np.int64)
        if self._local is None:
            raise InputError("the distributed store is closed")
        if not numbers.size:
            return []
        if numbers.min() < 0 or numbers.max() >= len(self):
            raise InputError(
                f"there are samples 0..{len(self) - 1}, not {numbers[(numbers < 0) | (numbers >= len(self))][0]}"
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
        """Free the memory, after which views of this rank's samples must not be used. Collective."""
        if self._local is not None:
            self._local = None
            self.backend.close()
            self.comm.Free()


def _split_communicator(comm: Any, width: int | None) -> tuple[Any, Any]:
    """Return the communicator and this rank's group of it; the last group may be smaller."""
    if comm is None:
        from mpi4py import MPI

        comm = MPI.COMM_SELF
    ranks = comm.Get_size()
    if width is not None and not 1 <= width <= ranks:
        raise InputError(f"a distributed store cannot have groups of {width} ranks, there are {ranks}")
    return comm, comm.Split(comm.Get_rank() // (width or ranks), comm.Get_rank())
