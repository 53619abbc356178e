"""A distributed store's memory by DDStore (pyddstore), where it is installed.

Source: src/pyddstore/_core.pyx and include/ddstore.hpp of github.com/ORNL/DDStore.
"""

from __future__ import annotations

from itertools import count
from typing import Any

import numpy as np

from harness.reference.errors import InputError
from harness.reference.storage.memory.window import Backend, Units

NAMES = count()


class DDStore(Backend):
    """One variable of 8-byte rows. method: 0 MPI, 1 libfabric.

    Its get locks and unlocks the owner's window for each call, and so stands outside its collective fence epochs; its
    get_batch is left alone, being collective by MPI and of rows of equal length. It keeps a copy of its own, which
    older versions do not: this rank's part is held twice, the local samples being read from ours.
    """

    def __init__(self, method: int) -> None:
        try:
            import pyddstore
        except ImportError:
            raise InputError("pyddstore is not installed; use the backend rma") from None
        self.name = "ddstore-libfabric" if method else "ddstore"
        self._new = pyddstore.PyDDStore
        self._method = method
        self._variable = f"samples-{next(NAMES)}"

    @property
    def thread_safe(self) -> bool:  # type: ignore[override]
        """Libfabric's gets lock by themselves; those by MPI need it to be started for threads."""
        from mpi4py import MPI

        return self._method == 1 or MPI.Query_thread() == MPI.THREAD_MULTIPLE

    def allocate(self, comm: Any, units: int) -> Units:
        """Plain memory; a rank needs one row at least."""
        self._comm = comm
        # The first versions know no method, and take none.
        self._store = self._new(comm, method=self._method) if self._method else self._new(comm)
        self._mine = np.zeros(max(1, units), dtype=np.int64)
        return self._mine[:units]

    def open(self) -> None:
        """Register it; where each rank's rows begin among all."""
        rows = self._comm.allgather(len(self._mine))
        self._firsts = np.concatenate([[0], np.cumsum(rows)]).tolist()
        self._store.add(self._variable, self._mine)
        self._comm.Barrier()

    def fetch(self, out: Units, owners: list[int], starts: list[int], lengths: list[int]) -> None:
        """One get for each record: consecutive rows of one rank."""
        at, firsts, get, variable = 0, self._firsts, self._store.get, self._variable
        for owner, start, length in zip(owners, starts, lengths, strict=True):
            get(variable, out[at : at + length], firsts[owner] + start)
            at += length

    def close(self) -> None:
        """Free the variable."""
        self._comm.Barrier()
        self._store.free()
