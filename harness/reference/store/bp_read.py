"""Reading BP files, this project's and HydraGNN's own: single samples on demand, ranges in one go."""

from __future__ import annotations

import json
import os
import threading
import zlib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from adios2 import bindings
from numpy.typing import NDArray

from harness.reference.errors import InputError
from harness.reference.store.bp_folder import PART, check_payload, check_whole
from harness.reference.store.layout import Block, Column, Counts, Record, sample_major

OWN = "harness/"
TYPES = {"double": "float64", "float": "float32"} | {f"{t}_t": t for t in ("int64", "int32", "uint8", "int8", "int16")}
VERIFY_BYTES = 16 << 20


@dataclass(frozen=True)
class Array:
    """A key of a split as it lies in the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    axis: int

    def selection(self, first: int, rows: int) -> list[list[int]]:
        """Start and count of some rows along the axis."""
        start, count = [0] * len(self.shape), list(self.shape)
        start[self.axis], count[self.axis] = first, rows
        return [start, count]


class BPFile:
    """A finished BP file, opened once for each process and thread that reads; it pickles as its path.

    attributes: what the file says of itself, those of this project without their prefix.
    Raises InputError for a folder that is no whole BP file, and for samples that are not there.
    """

    def __init__(self, path: Path | str, *, unfinished: bool = False) -> None:
        self.path = Path(path)
        if self.path.name.endswith(PART) and not unfinished:
            raise InputError(f"{self.path}: half-written, its writer did not finish")
        check_whole(self.path)
        self._handles: dict[tuple[int, int], _Handle] = {}
        self._ends: dict[str, dict[str, list[int]]] = {}
        found = self._handle.io.AvailableVariables()
        self.attributes, keys, axes = self._read_attributes()
        self._arrays: dict[str, dict[str, Array]] = {}
        for (label, name), axis in axes.items():
            stem = f"{label}/{name}"
            if label in keys and stem in found and stem + "/variable_count" in found:
                shape = tuple(int(n) for n in found[stem]["Shape"].split(","))
                kind = TYPES.get(found[stem]["Type"], "")
                if not kind:
                    raise InputError(f"{self.path}: {stem} is of type {found[stem]['Type']}, which no store has")
                self._arrays.setdefault(label, {})[name] = Array(stem, kind, shape, axis)
        for label, names in keys.items():
            missing = [n for n in names if n not in self._arrays.get(label, {}) and n != "dataset_name"]
            if missing or label not in self._arrays:
                raise InputError(f"{self.path}: damaged, {label}/{'/'.join(missing[:1])} is listed and not there")
        if not keys:
            raise InputError(f"{self.path}: has no splits; not a store")
        check_payload(self.path, sum(map(_nbytes, found.values())))

    def _read_attributes(self) -> tuple[dict[str, Any], dict[str, list[str]], dict[tuple[str, str], int]]:
        """Facts of the file; listed keys of each split; the axis of each array along which samples follow."""
        facts: dict[str, Any] = {}
        keys: dict[str, list[str]] = {}
        axes: dict[tuple[str, str], int] = {}
        self._samples: dict[str, int] = {}
        for name in self._handle.io.AvailableAttributes():
            value = self._handle.attribute(name)
            words = name.split("/")
            if name.startswith(OWN):
                facts[name.removeprefix(OWN)] = value
            elif len(words) == 3 and words[2] == "variable_dim":
                axes[words[0], words[1]] = int(value)
            elif len(words) == 2 and words[1] == "ndata":
                self._samples[words[0]] = int(value)
            elif len(words) == 2 and words[1] == "keys":
                keys[words[0]] = [value] if isinstance(value, str) else list(value)
            else:
                facts[name] = value
        return facts, {label: names for label, names in keys.items() if self._samples.get(label)}, axes

    def __reduce__(self) -> tuple[type[BPFile], tuple[Path]]:
        return BPFile, (self.path,)

    def __enter__(self) -> BPFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    @property
    def splits(self) -> tuple[str, ...]:
        """Labels of the splits that have samples."""
        return tuple(self._arrays)

    def samples(self, label: str) -> int:
        """How many samples a split has."""
        self._of(label)
        return self._samples[label]

    def keys(self, label: str) -> tuple[str, ...]:
        """What its samples have."""
        return tuple(self._of(label))

    def shape(self, label: str, key: str) -> tuple[int, ...]:
        """Of all samples of a split together."""
        return self._array(label, key).shape

    def nbytes(self, label: str, keys: Collection[str]) -> int:
        """Size of some keys of all samples of a split."""
        arrays = (self._array(label, key) for key in keys)
        return sum(int(np.prod(a.shape)) * np.dtype(a.dtype).itemsize for a in arrays)

    def field(self, label: str, key: str) -> tuple[str, str, int, tuple[int, ...]]:
        """A key's name, type, axis along which samples follow, and other axes."""
        array = self._array(label, key)
        return key, array.dtype, array.axis, array.shape[: array.axis] + array.shape[array.axis + 1 :]

    def counts(self, label: str, key: str, first: int, stop: int) -> Counts:
        """Rows of consecutive samples, [stop - first]."""
        self._check_range(label, first, stop)
        return self._table(self._array(label, key), "count", first, stop - first)

    def ends(self, label: str, key: str) -> Counts:
        """Where each sample begins and the last one ends along the axis, [samples + 1]."""
        array, samples = self._array(label, key), self.samples(label)
        table = np.concatenate([[0], np.cumsum(self._table(array, "count", 0, samples))])
        if table[-1] != array.shape[array.axis]:
            raise InputError(f"{self.path}: damaged, {array.name} has {array.shape[array.axis]} rows, not {table[-1]}")
        return table

    def _check_range(self, label: str, first: int, stop: int) -> None:
        if not 0 <= first < stop <= self.samples(label):
            raise InputError(f"{self.path}: {label} has samples 0..{self.samples(label) - 1}, not {first}..{stop - 1}")

    def record(self, label: str, index: int, keys: Collection[str] | None = None) -> Record:
        """One sample, read from disk."""
        if not 0 <= index < self.samples(label):
            raise InputError(f"{self.path}: {label} has samples 0..{self.samples(label) - 1}, not {index}")
        found = {}
        for key in self.keys(label) if keys is None else keys:
            ends = self._ends.get(label, {}).get(key) or self._load_ends(label, key)
            found[key] = self._handle.read(self._array(label, key), ends[index], ends[index + 1] - ends[index])
        return found

    def columns(self, label: str, first: int, stop: int, keys: Collection[str] | None = None) -> Block:
        """Consecutive samples, each key in one read."""
        self._check_range(label, first, stop)
        columns = {}
        for key in self.keys(label) if keys is None else keys:
            array = self._array(label, key)
            counts = self._table(array, "count", first, stop - first)
            at = int(self._table(array, "offset", first, 1)[0])
            rows = int(counts.sum())
            if at < 0 or rows < 0 or at + rows > array.shape[array.axis]:
                raise InputError(f"{self.path}: damaged, {array.name} has no rows {at}..{at + rows - 1}")
            columns[key] = Column(self._handle.read(array, at, rows), counts, array.axis)
        return Block(stop - first, columns)

    def verify(self) -> None:
        """Read everything and compare with the checksums that were taken while it was written; raises InputError."""
        for label, arrays in self._arrays.items():
            for key, array in arrays.items():
                expected = self.attributes.get(f"{label}/{key}/crc32")
                if expected is None:
                    raise InputError(f"{self.path}: {array.name} was written without a checksum")
                found, rows = 0, array.shape[array.axis]
                row_bytes = np.dtype(array.dtype).itemsize * int(np.prod(array.shape)) // rows
                step = max(1, VERIFY_BYTES // row_bytes)
                for first in range(0, rows, step):
                    part = self._handle.read(array, first, min(step, rows - first))
                    found = zlib.crc32(sample_major(part, array.axis).data, found)
                if found != int(expected):
                    raise InputError(f"{self.path}: damaged, {array.name} is not as it was written")

    def close(self) -> None:
        """Close what this process has opened."""
        for place in [p for p in self._handles if p[0] == os.getpid()]:
            self._handles.pop(place).close()

    @property
    def _handle(self) -> _Handle:
        place = (os.getpid(), threading.get_ident())
        if place not in self._handles:
            self._handles[place] = _Handle(self.path)
        return self._handles[place]

    def _of(self, label: str) -> dict[str, Array]:
        if label not in self._arrays:
            raise InputError(f"{self.path}: no split {label!r}; there are {', '.join(self._arrays)}")
        return self._arrays[label]

    def _array(self, label: str, key: str) -> Array:
        arrays = self._of(label)
        if key not in arrays:
            raise InputError(f"{self.path}: {label} has no {key!r}; there are {', '.join(arrays)}")
        return arrays[key]

    def _table(self, array: Array, what: str, first: int, rows: int) -> Counts:
        """variable_count or variable_offset of some samples."""
        table = self._handle.any_type(f"{array.name}/variable_{what}", first, rows)
        return table.astype(np.int64, copy=False)

    def _load_ends(self, label: str, key: str) -> list[int]:
        """Where the samples of a key begin and end; keys with as many rows share the table."""
        table = self.ends(label, key)
        known = self._ends.setdefault(label, {})
        return known.setdefault(key, next((t for t in known.values() if np.array_equal(t, table)), table.tolist()))


class _Handle:
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
        found = self.io.InquireAttribute(name)
        if found.Type() != "string":
            return found.Data().item() if found.SingleValue() else found.Data()
        if not found.SingleValue():
            return found.DataString()
        text = found.DataString()[0]
        return json.loads(text) if name.startswith(OWN) and text.startswith("{") else text

    def read(self, array: Array, first: int, rows: int) -> NDArray[Any]:
        """Rows along the axis; the caller has checked that they are there."""
        return self._get(array.name, array.selection(first, rows), array.dtype)

    def any_type(self, name: str, first: int, rows: int) -> NDArray[Any]:
        """Part of a table, whatever its type."""
        return self._get(name, [[first], [rows]], TYPES.get(self._variable(name).Type(), "int64"))

    def _variable(self, name: str) -> Any:
        if name not in self._variables:
            self._variables[name] = self.io.InquireVariable(name)
        return self._variables[name]

    def _get(self, name: str, selection: list[list[int]], dtype: str) -> NDArray[Any]:
        values = np.empty(selection[1], dtype)
        if values.size:
            variable = self._variable(name)
            variable.SetSelection(selection)
            try:
                self.engine.Get(variable, values, bindings.Mode.Sync)
            except (RuntimeError, ValueError) as error:
                raise InputError(f"{self.path}: {name} cannot be read ({reason(error)})") from None
        return values

    def close(self) -> None:
        self.engine.Close()


def _nbytes(variable: dict[str, str]) -> int:
    """Size of an array, from what ADIOS2 says of it."""
    shape = [int(n) for n in variable["Shape"].split(",") if n.strip()]
    return int(np.prod(shape, dtype=np.int64)) * np.dtype(TYPES.get(variable["Type"], "uint8")).itemsize


def reason(error: Exception) -> str:
    """What ADIOS2 says, without its colours and ranks."""
    return str(error).split("] : ")[-1].split(" : ")[-1].strip().splitlines()[0][:200]
