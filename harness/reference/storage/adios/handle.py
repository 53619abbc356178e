"""A BP file as one thread has it open through ADIOS2."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from adios2 import bindings
from numpy.typing import NDArray

from harness.reference.errors import InputError

OWN = "harness/"
TYPES = {"double": "float64", "float": "float32"} | {f"{t}_t": t for t in ("int64", "int32", "uint8", "int8", "int16")}


@dataclass(frozen=True)
class Array:
    """A variable as it lies in the file: a key of a split, or a table of one."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    axis: int = 0

    @property
    def rows(self) -> int:
        """Rows along the axis."""
        return self.shape[self.axis]

    @property
    def row_bytes(self) -> int:
        """Size of one row."""
        rest = self.shape[: self.axis] + self.shape[self.axis + 1 :]
        return math.prod(rest) * np.dtype(self.dtype).itemsize

    def selection(self, first: int, rows: int) -> list[list[int]]:
        """Start and count of some rows along the axis."""
        start, count = [0] * len(self.shape), list(self.shape)
        start[self.axis], count[self.axis] = first, rows
        return [start, count]

    def cut(self, values: NDArray[Any], first: int, stop: int) -> NDArray[Any]:
        """Some of the rows that were read, contiguous."""
        return np.ascontiguousarray(values[(slice(None),) * self.axis + (slice(first, stop),)])


class Handle:
    """The file as one thread has it open."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.adios = bindings.ADIOS()
        self.io = self.adios.DeclareIO("store")
        try:
            self.engine = self.io.Open(str(path), bindings.Mode.ReadRandomAccess)
        except (RuntimeError, ValueError) as error:
            raise InputError(f"{path}: ADIOS2 cannot open it ({reason(error)})") from None
        self._variables: dict[str, Any] = {}

    def attribute(self, name: str) -> Any:
        """Text, a list of texts, a number or an array; a mapping where this project wrote one."""
        result = self.io.InquireAttribute(name)
        if result.Type() != "string":
            return result.Data().item() if result.SingleValue() else result.Data()
        if not result.SingleValue():
            return result.DataString()
        text = result.DataString()[0]
        return json.loads(text) if name.startswith(OWN) and text.startswith("{") else text

    def read(self, array: Array, first: int, rows: int) -> NDArray[Any]:
        """Rows along the axis; the caller has checked that they are there."""
        selection = array.selection(first, rows)
        values = np.empty(selection[1], array.dtype)
        if values.size:
            variable = self._variable(array.name)
            variable.SetSelection(selection)
            try:
                self.engine.Get(variable, values, bindings.Mode.Sync)
            except (RuntimeError, ValueError) as error:
                raise InputError(f"{self.path}: {array.name} cannot be read ({reason(error)})") from None
        return values

    def _variable(self, name: str) -> Any:
        if name not in self._variables:
            self._variables[name] = self.io.InquireVariable(name)
        return self._variables[name]

    def close(self) -> None:
        """Close the file."""
        with suppress(RuntimeError):  # of a damaged one, which was refused before
            self.engine.Close()


def shape_of(variable: Mapping[str, str]) -> tuple[int, ...]:
    """Return an array's shape, from what ADIOS2 says of it."""
    return tuple(int(n) for n in variable["Shape"].split(",") if n.strip())


def size_of(variable: Mapping[str, str]) -> int:
    """Return an array's size in bytes, from what ADIOS2 says of it."""
    return math.prod(shape_of(variable)) * np.dtype(TYPES.get(variable["Type"], "uint8")).itemsize


def reason(error: Exception) -> str:
    """What ADIOS2 says, without its colours and ranks."""
    lines = str(error).split("] : ")[-1].split(" : ")[-1].strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
