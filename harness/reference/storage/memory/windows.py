"""Memory spread over ranks for a distributed store, by MPI one-sided access or by DDStore."""

from __future__ import annotations

from abc import ABC, abstractmethod
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from harness.reference.errors import InputError
from harness.reference.storage.record_codec import UNIT

if TYPE_CHECKING:
    from mpi4py import MPI

Units = NDArray[np.int64]
NAMES = count()


class MemoryBackend(ABC):
    """Memory of all ranks that each rank can read, in units of eight bytes; the constructor is collective."""

    name: str
    thread_safe: bool

    @abstractmethod
    def allocate(self, comm: Any, units: int) -> Units:
        """Return this rank's part, to be filled before `open`."""

    @abstractmethod
    def open(self) -> None:
        """Let all ranks read; collective."""

    @abstractmethod
    def fetch(self, out: Units, owners: list[int], starts: list[int], lengths: list[int]) -> None:
        """Copy parts of other ranks' memory one after the other into out, which has exactly their length."""

    @abstractmethod
    def close(self) -> None:
        """Free all memory; collective."""


class RmaBackend(MemoryBackend):
    """A window that all ranks keep locked, shared, for its whole life: nobody writes to it.

    For records of 8 kB, a get per record and one flush took 1.4 us per record; a derived datatype for each owner took
    1.0 to 3.7 us, depending on the number of records of an owner, and a lock for each get 12 us.
    """

    name = "rma"

    def __init__(self) -> None:
        from mpi4py import MPI  # starts MPI

        self._mpi = MPI
        self._window: MPI.Win | None = None

    @property
    def thread_safe(self) -> bool:  # type: ignore[override]
        """Whether MPI was started for threads."""
        return self._mpi.Query_thread() == self._mpi.THREAD_MULTIPLE

    def allocate(self, comm: Any, units: int) -> Units:
        """Allocate memory in a new window."""
        self._window = self._mpi.Win.Allocate(max(1, units) * UNIT, 1, comm=comm)
        self._comm = comm
        return np.asarray(self._window.tomemory()).view(np.int64)[:units]

    def open(self) -> None:
        """Lock the window until it is closed; each rank has filled its part before any other reads it."""
        assert self._window is not None
        self._window.Lock_all(self._mpi.MODE_NOCHECK)
        self._window.Sync()
        self._comm.Barrier()
        self._window.Sync()

    def fetch(self, out: Units, owners: list[int], starts: list[int], lengths: list[int]) -> None:
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
    """One variable of 8-byte rows. method: 0 MPI, 1 libfabric.

    Its get locks and unlocks the owner's window in each call, and is therefore independent of its collective fence
    epochs. Its get_batch is not used, as it is collective under MPI and takes rows of equal length only. Newer versions
    keep a copy of their own, so that this rank's part is in memory twice; local samples are read from ours.
    """

    def __init__(self, method: int) -> None:
        try:
            import pyddstore
        except ImportError:
            raise InputError("pyddstore is not installed; use the backend rma") from None
        self.name = "ddstore-libfabric" if method else "ddstore"
        self._create = pyddstore.PyDDStore
        self._method = method
        self._variable = f"samples-{next(NAMES)}"

    @property
    def thread_safe(self) -> bool:  # type: ignore[override]
        """Whether gets may run in threads: always with libfabric, with MPI if it was started for threads."""
        from mpi4py import MPI

        return self._method == 1 or MPI.Query_thread() == MPI.THREAD_MULTIPLE

    def allocate(self, comm: Any, units: int) -> Units:
        """Allocate plain memory of at least one row."""
        self._comm = comm
        # The first versions have no parameter `method`.
        self._store = self._create(comm, method=self._method) if self._method else self._create(comm)
        self._local = np.zeros(max(1, units), dtype=np.int64)
        return self._local[:units]

    def open(self) -> None:
        """Register this rank's rows, and find the first row of each rank."""
        rows = self._comm.allgather(len(self._local))
        self._firsts = np.concatenate([[0], np.cumsum(rows)]).tolist()
        self._store.add(self._variable, self._local)
        self._comm.Barrier()

    def fetch(self, out: Units, owners: list[int], starts: list[int], lengths: list[int]) -> None:
        """Issue one get for each record, which is consecutive rows of one rank."""
        offset, firsts, get, variable = 0, self._firsts, self._store.get, self._variable
        for owner, start, length in zip(owners, starts, lengths, strict=True):
            get(variable, out[offset : offset + length], firsts[owner] + start)
            offset += length

    def close(self) -> None:
        """Free the variable."""
        self._comm.Barrier()
        self._store.free()
