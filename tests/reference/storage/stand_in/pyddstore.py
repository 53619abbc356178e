"""A stand-in for DDStore where it is not installed: its documented behaviour on MPI, with checks of its arguments."""

from __future__ import annotations

from typing import Any

import numpy as np
from mpi4py import MPI


class PyDDStore:
    """Rows of all ranks, in the order of ranks; `get` copies consecutive rows of one rank, without epochs."""

    def __init__(self, comm: MPI.Comm, method: int = 0) -> None:
        assert method == 0
        self.comm = comm
        self.variables: dict[str, Any] = {}

    def add(self, name: str, array: np.ndarray) -> None:
        assert array.flags.c_contiguous
        assert array.dtype in (np.int32, np.int64, np.uint8, np.float32, np.float64)
        assert name not in self.variables
        row = array.size // array.shape[0]  # as in DDStore, an array without rows is a division by zero
        rows = array.copy()
        window = MPI.Win.Create(rows, 1, comm=self.comm)
        ends = np.cumsum(self.comm.allgather(array.shape[0]))
        self.variables[name] = (window, rows, row * array.itemsize, ends)

    def get(self, name: str, array: np.ndarray, start: int = 0) -> None:
        window, rows, row_bytes, ends = self.variables[name]
        assert array.flags.c_contiguous
        assert array.dtype == rows.dtype
        assert array.nbytes == len(array) * row_bytes
        owner = int(np.searchsorted(ends, start, side="right"))
        first = int(ends[owner - 1]) if owner else 0
        if start < 0 or start + len(array) > ends[owner]:
            raise ValueError("Invalid count on target")
        window.Lock(owner, MPI.LOCK_SHARED)
        window.Get([array, MPI.BYTE], owner, ((start - first) * row_bytes, array.nbytes, MPI.BYTE))
        window.Unlock(owner)

    def free(self) -> None:
        for window, *_ in self.variables.values():
            window.Free()
        self.variables.clear()
