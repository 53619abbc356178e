"""Access to BP files through ADIOS2: a handle that reads a file in one thread, and an engine that writes one."""

from __future__ import annotations

import ctypes
import errno
import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import adios2
import numpy as np
from adios2 import bindings
from numpy.typing import NDArray

from harness.reference.errors import InputError

ATTRIBUTE_PREFIX = "harness/"
TYPES = {"double": "float64", "float": "float32"} | {f"{t}_t": t for t in ("int64", "int32", "uint8", "int8", "int16")}
MAX_CLOSE_ATTEMPTS = 20  # on a full disk


@dataclass(frozen=True)
class StoredArray:
    """A variable of the file: a key of a split, or a table of counts or offsets of a key."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    axis: int = 0

    @property
    def rows(self) -> int:
        """The number of rows along the variable's axis."""
        return self.shape[self.axis]

    @property
    def row_bytes(self) -> int:
        """The size of one row in bytes."""
        rest = self.shape[: self.axis] + self.shape[self.axis + 1 :]
        return math.prod(rest) * np.dtype(self.dtype).itemsize

    def selection(self, first: int, rows: int) -> list[list[int]]:
        """Return the start and count of some rows along the axis."""
        start, count = [0] * len(self.shape), list(self.shape)
        start[self.axis], count[self.axis] = first, rows
        return [start, count]

    def cut(self, values: NDArray[Any], first: int, stop: int) -> NDArray[Any]:
        """Return the rows first..stop - 1 of values that were read, as a contiguous array."""
        return np.ascontiguousarray(values[(slice(None),) * self.axis + (slice(first, stop),)])


class Handle:
    """A file that one thread has opened for reading."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.adios = bindings.ADIOS()
        self.io = self.adios.DeclareIO("store")
        try:
            self.engine = self.io.Open(str(path), bindings.Mode.ReadRandomAccess)
        except (RuntimeError, ValueError) as error:
            raise InputError(f"{path}: ADIOS2 cannot open it ({extract_reason(error)})") from None
        self._variables: dict[str, Any] = {}

    def read_attribute(self, name: str) -> Any:
        """Return an attribute: text, a list of texts, a number, an array, or a mapping that this project wrote."""
        result = self.io.InquireAttribute(name)
        if result.Type() != "string":
            return result.Data().item() if result.SingleValue() else result.Data()
        if not result.SingleValue():
            return result.DataString()
        text = result.DataString()[0]
        return json.loads(text) if name.startswith(ATTRIBUTE_PREFIX) and text.startswith("{") else text

    def read(self, array: StoredArray, first: int, rows: int) -> NDArray[Any]:
        """Read rows along the axis; the caller has checked that they exist."""
        selection = array.selection(first, rows)
        values = np.empty(selection[1], array.dtype)
        if values.size:
            variable = self._variable(array.name)
            variable.SetSelection(selection)
            try:
                self.engine.Get(variable, values, bindings.Mode.Sync)
            except (RuntimeError, ValueError) as error:
                raise InputError(f"{self.path}: {array.name} cannot be read ({extract_reason(error)})") from None
        return values

    def _variable(self, name: str) -> Any:
        if name not in self._variables:
            self._variables[name] = self.io.InquireVariable(name)
        return self._variables[name]

    def close(self) -> None:
        """Close the file."""
        with suppress(RuntimeError):  # if the file is damaged, reading has reported that already
            self.engine.Close()
        # ADIOS2 writes a profile of each reader there, whatever its parameter `Profile` says
        with suppress(OSError):
            Path(f"/tmp/{self.path.name}_{os.getpid():x}_profiling.json").unlink()


def parse_shape(variable: Mapping[str, str]) -> tuple[int, ...]:
    """Return an array's shape, from ADIOS2's description of the variable."""
    return tuple(int(n) for n in variable["Shape"].split(",") if n.strip())


def parse_size(variable: Mapping[str, str]) -> int:
    """Return an array's size in bytes, from ADIOS2's description of the variable."""
    return math.prod(parse_shape(variable)) * np.dtype(TYPES.get(variable["Type"], "uint8")).itemsize


def extract_reason(error: Exception) -> str:
    """Return the essential part of an error message of ADIOS2, which also contains terminal colours and ranks."""
    lines = str(error).split("] : ")[-1].split(" : ")[-1].strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


class Engine:
    """A BP file that is being written.

    Args:
        path: The final path of the file, which messages name.
        part: The path while the file is being written.
        comm: The ranks that write the file together; None for one rank.

    Attributes:
        written: Number of bytes that this rank has written.

    Raises:
        OSError: ADIOS2 fails to write; the message gives the reason of the operating system.
    """

    def __init__(self, path: Path, part: Path, comm: Any) -> None:
        if comm is not None and not adios2.is_built_with_mpi:
            raise InputError("this ADIOS2 is built without MPI: one rank writes a file")
        self.path, self.part, self.comm = path, part, comm
        self.written = 0
        self._open = False
        self._adios = bindings.ADIOS()  # a reference is needed as long as the engine exists
        self._io = self._adios.DeclareIO(str(path))
        self._io.SetParameter("StatsLevel", "0")

    def begin(self) -> None:
        """Open the file; collective."""
        with simplified_errors(self.part):
            arguments = (str(self.part), bindings.Mode.Write)
            if self.comm is None:
                self._engine = self._io.Open(*arguments)
            else:
                self.comm.Barrier()
                self._engine = self._io.Open(*arguments, self.comm)
            self._open = True
            self._engine.BeginStep()

    def define(self, name: str, like: NDArray[Any], shape: list[int]) -> Any:
        """Define a variable of this shape and the type of `like`."""
        zeros = [0] * like.ndim
        return self._io.DefineVariable(name, np.zeros(1, like.dtype), shape, zeros, list(like.shape), False)

    def put_rows(self, variable: Any, values: NDArray[Any], start: list[int], shape: list[int] | None) -> None:
        """Write values to a variable.

        Args:
            variable: The variable.
            values: The values.
            start: The position of the values in the variable.
            shape: The new shape of the variable; None if it does not grow.
        """
        with simplified_errors(self.part):
            if shape is not None:
                variable.SetShape(shape)
            variable.SetSelection([start, list(values.shape)])
            self._engine.Put(variable, np.ascontiguousarray(values), bindings.Mode.Sync)
        self.written += values.nbytes

    def flush(self) -> None:
        """Write buffered data to disk; with several ranks, `end` does that, as the operation is collective."""
        if self.comm is None:
            with simplified_errors(self.part):
                self._engine.PerformDataWrite()

    def define_attribute(self, name: str, value: Any) -> None:
        """Define an attribute under its full name."""
        if isinstance(value, np.ndarray):
            value = np.array(value, order="C")  # a copy, as ADIOS2 rejects views
        elif not isinstance(value, str | list):
            value = np.array(int(value) if isinstance(value, bool) else value)
        try:
            self._io.DefineAttribute(name, value)
        except (TypeError, ValueError, RuntimeError):
            raise InputError(f"{self.path}: the attribute {name!r} cannot be stored: {value!r:.80}") from None

    def end(self) -> None:
        """Close the complete file; collective."""
        with simplified_errors(self.part):
            self._engine.EndStep()
            self._engine.Close()
        self._open = False
        if self.comm is not None:
            self.comm.Barrier()

    def abandon(self, make_room: Callable[[], None]) -> None:
        """Close the incomplete file.

        Args:
            make_room: Frees disk space; without space for the rest of the data, ADIOS2 would end the process.
        """
        for _ in range(MAX_CLOSE_ATTEMPTS if self._open else 0):
            make_room()
            try:
                self._engine.Close()
            except (RuntimeError, OSError, ValueError):
                continue
            self._open = False
            break
        if self._open:  # the disk is still full: leak the engine, as its destructor would end the process
            for reference in (self._adios, self._io, self._engine):
                ctypes.pythonapi.Py_IncRef(ctypes.py_object(reference))


@contextmanager
def simplified_errors(path: Path) -> Iterator[None]:
    """Convert the long errors of ADIOS2 to OSError with the reason of the operating system."""
    try:
        yield
    except RuntimeError as error:
        number = re.search(r"errno = (\d+)", str(error))
        code = int(number[1]) if number else errno.EIO
        if not number and os.statvfs(path.parent).f_bavail == 0:
            code = errno.ENOSPC
        text = os.strerror(code) if code != errno.EIO else f"ADIOS2 failed: {extract_reason(error)}"
        raise OSError(code, text, str(path)) from None
