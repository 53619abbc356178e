"""ADIOS2's side of a BP file on its way: its variables, rows and attributes, in one step."""

from __future__ import annotations

import ctypes
import errno
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import adios2
import numpy as np
from adios2 import bindings
from numpy.typing import NDArray

from harness.reference.errors import InputError
from harness.reference.storage.adios.handle import reason

ATTEMPTS = 20  # to close on a full disk


class Engine:
    """One file, written at `part`; path: how errors name it. comm: of the ranks that write together, None for one.

    written: bytes put by this rank. Raises OSError with the system's reason where ADIOS2 fails.
    """

    def __init__(self, path: Path, part: Path, comm: Any) -> None:
        if comm is not None and not adios2.is_built_with_mpi:
            raise InputError("this ADIOS2 is built without MPI: one rank writes a file")
        self.path, self.part, self.comm = path, part, comm
        self.written = 0
        self._open = False
        self._adios = bindings.ADIOS()  # the engine dies with it
        self._io = self._adios.DeclareIO(str(path))
        self._io.SetParameter("StatsLevel", "0")

    def begin(self) -> None:
        """Open the file; collective."""
        with plain_errors(self.part):
            where = (str(self.part), bindings.Mode.Write)
            if self.comm is None:
                self._engine = self._io.Open(*where)
            else:
                self.comm.Barrier()
                self._engine = self._io.Open(*where, self.comm)
            self._open = True
            self._engine.BeginStep()

    def define(self, name: str, like: NDArray[Any], shape: list[int]) -> Any:
        """A new variable of this shape and the type of `like`."""
        zeros = [0] * like.ndim
        return self._io.DefineVariable(name, np.zeros(1, like.dtype), shape, zeros, list(like.shape), False)

    def put_rows(self, variable: Any, values: NDArray[Any], start: list[int], shape: list[int] | None) -> None:
        """Write values at `start` of a variable; shape: of the whole so far, None where it was known beforehand."""
        with plain_errors(self.part):
            if shape is not None:
                variable.SetShape(shape)
            variable.SetSelection([start, list(values.shape)])
            self._engine.Put(variable, np.ascontiguousarray(values), bindings.Mode.Sync)
        self.written += values.nbytes

    def flush(self) -> None:
        """Have what was put leave memory; all ranks would have to do so together, so they wait for the end."""
        if self.comm is None:
            with plain_errors(self.part):
                self._engine.PerformDataWrite()

    def attribute(self, name: str, value: Any) -> None:
        """Define an attribute under its full name."""
        if isinstance(value, np.ndarray):
            value = np.array(value, order="C")  # a copy: ADIOS2 takes no views, and keeps zero dimensions
        elif not isinstance(value, str | list):
            value = np.array(int(value) if isinstance(value, bool) else value)
        try:
            self._io.DefineAttribute(name, value)
        except (TypeError, ValueError, RuntimeError):
            raise InputError(f"{self.path}: the attribute {name!r} cannot be stored: {value!r:.80}") from None

    def end(self) -> None:
        """Close the file, complete; collective."""
        with plain_errors(self.part):
            self._engine.EndStep()
            self._engine.Close()
        self._open = False
        if self.comm is not None:
            self.comm.Barrier()

    def abandon(self, make_room: Callable[[], None]) -> None:
        """Close the file as it is. ADIOS2 ends the process if it cannot write the rest, so room is made for that."""
        for _ in range(ATTEMPTS if self._open else 0):
            make_room()
            try:
                self._engine.Close()
            except (RuntimeError, OSError, ValueError):
                continue
            self._open = False
            break
        if self._open:  # others took the room: never let go of it, rather than be ended
            for kept in (self._adios, self._io, self._engine):
                ctypes.pythonapi.Py_IncRef(ctypes.py_object(kept))


@contextmanager
def plain_errors(path: Path) -> Iterator[None]:
    """ADIOS2's errors, pages long, as OSError with the system's own reason."""
    try:
        yield
    except RuntimeError as error:
        number = re.search(r"errno = (\d+)", str(error))
        code = int(number[1]) if number else errno.EIO
        if not number and os.statvfs(path.parent).f_bavail == 0:
            code = errno.ENOSPC
        text = os.strerror(code) if code != errno.EIO else f"ADIOS2 failed: {reason(error)}"
        raise OSError(code, text, str(path)) from None
