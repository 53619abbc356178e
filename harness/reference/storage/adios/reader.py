"""Read BP files of this project and of HydraGNN: single samples on demand, or ranges of samples at once."""

from __future__ import annotations

import os
import threading
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.reference.errors import InputError
from harness.reference.storage.adios.handle import (
    ATTRIBUTE_PREFIX,
    TYPES,
    Handle,
    StoredArray,
    extract_reason,
    parse_shape,
    parse_size,
)
from harness.reference.storage.adios.integrity import PART, Seal, Verifier, check_folder, check_payload, count_blocks
from harness.reference.storage.schema import Block, Column, Counts, Sample, move_samples_first

VERIFY_BYTES = 16 << 20
TABLES = ("count", "offset")


class BPFile:
    """A BP file that is open for reading. Each process and thread that reads it gets its own handle.

    A pickle of the object holds the path alone.

    If the file is sealed, each block is compared with its checksum when it is first read.

    Args:
        path: The folder of the file.
        unfinished: Whether to open a file that its writer has not finished.

    Attributes:
        attributes: The attributes of the file, without this project's prefix, and the facts of its seal.
        is_from_hydragnn: Whether HydraGNN wrote the file.

    Raises:
        InputError: The folder is not a complete BP file or is damaged; methods raise it for samples that do not exist
            and for damaged blocks.
    """

    def __init__(self, path: Path | str, *, unfinished: bool = False) -> None:
        self.path = Path(path)
        if self.path.name.endswith(PART) and not unfinished:
            raise InputError(f"{self.path}: incomplete: its writer did not finish")
        self._seal = check_folder(self.path, unfinished=unfinished)
        self._handles: dict[tuple[int, int], Handle] = {}
        self._ends: dict[str, dict[str, list[int]]] = {}
        self._tables: dict[str, StoredArray] = {}
        self._verifiers: dict[str, Verifier] = {}
        try:
            self._describe()
        except InputError:
            raise
        except (RuntimeError, ValueError, TypeError, KeyError, AttributeError, OverflowError, MemoryError) as error:
            raise InputError(f"{self.path}: damaged, it cannot be described ({extract_reason(error)})") from None
        if self._seal is not None:
            self._sum_positions = self._locate_sums(self._seal)
        elif not self.is_from_hydragnn and not unfinished:
            raise InputError(f"{self.path}: harness.json is missing; restore it, or convert the dataset again")

    def _describe(self) -> None:
        """List the variables of the file; raises InputError if they contradict each other."""
        variables = self._handle.io.AvailableVariables()
        attributes, keys, axes = self._read_attributes()
        self.is_from_hydragnn = "format" not in attributes
        self.attributes = attributes | dict(self._seal.facts if self._seal else {})
        self._arrays: dict[str, dict[str, StoredArray]] = {}
        for (split, name), axis in axes.items():
            stem = f"{split}/{name}"
            if split in keys and all(n in variables for n in (stem, *(f"{stem}/variable_{t}" for t in TABLES))):
                self._arrays.setdefault(split, {})[name] = self._describe_array(variables, stem, axis)
                for table in (f"{stem}/variable_{t}" for t in TABLES):
                    self._tables[table] = self._describe_array(variables, table, 0)
                    if (rows := self._tables[table].rows) != self._samples[split]:
                        raise InputError(f"{self.path}: damaged, {table} has {rows} rows, not {self._samples[split]}")
        for split, names in keys.items():
            missing = [n for n in names if n not in self._arrays.get(split, {}) and n != "dataset_name"]
            if missing or split not in self._arrays:
                raise InputError(f"{self.path}: damaged, {split}/{'/'.join(missing[:1])} is listed but missing")
        if not keys:
            raise InputError(f"{self.path}: not a store, as it has no splits")
        check_payload(self.path, sum(map(parse_size, variables.values())))

    def _describe_array(self, variables: dict[str, dict[str, str]], name: str, axis: int) -> StoredArray:
        shape, kind = parse_shape(variables[name]), TYPES.get(variables[name]["Type"], "")
        if not kind:
            raise InputError(f"{self.path}: {name} has the type {variables[name]['Type']}, which is not supported")
        if not 0 <= axis < len(shape) or 0 in shape[:axis] + shape[axis + 1 :]:
            raise InputError(f"{self.path}: damaged, {name} of shape {shape} has no rows along axis {axis}")
        return StoredArray(name, kind, shape, axis)

    def _locate_sums(self, seal: Seal) -> dict[str, tuple[int, int]]:
        """Return the position of the first checksum of each array and the number of its checksums."""
        position, located = 0, {}
        arrays = {array.name: array for array in self.arrays()}
        for name in seal.arrays:
            if name not in arrays:
                raise InputError(f"{seal.path}: damaged, {self.path} has no array {name[:80]!r}")
            blocks = count_blocks(arrays[name].rows, arrays[name].row_bytes)
            located[name] = position, blocks
            position += blocks
        missing = next((name for name in arrays if name not in located), None)
        if missing:
            raise InputError(f"{seal.path}: damaged, there are no checksums of {missing}")
        size = seal.sums.stat().st_size if seal.sums.is_file() else None
        if size != 4 * position:
            raise InputError(f"{seal.sums}: damaged, {size or 'no'} bytes of checksums, expected {4 * position}")
        return located

    def _read_attributes(self) -> tuple[dict[str, Any], dict[str, list[str]], dict[tuple[str, str], int]]:
        """Return the attributes of the file, the listed keys of each split, and the samples' axis of each array."""
        facts: dict[str, Any] = {}
        keys: dict[str, list[str]] = {}
        axes: dict[tuple[str, str], int] = {}
        self._samples: dict[str, int] = {}
        for name in self._handle.io.AvailableAttributes():
            value = self._handle.read_attribute(name)
            words = name.split("/")
            if name.startswith(ATTRIBUTE_PREFIX):
                facts[name.removeprefix(ATTRIBUTE_PREFIX)] = value
            elif len(words) == 3 and words[2] == "variable_dim":
                axes[words[0], words[1]] = int(value)
            elif len(words) == 2 and words[1] == "ndata":
                self._samples[words[0]] = int(value)
            elif len(words) == 2 and words[1] == "keys":
                keys[words[0]] = [value] if isinstance(value, str) else list(value)
            else:
                facts[name] = value
        return facts, {split: names for split, names in keys.items() if self._samples.get(split)}, axes

    def __reduce__(self) -> tuple[type[BPFile], tuple[Path]]:
        return BPFile, (self.path,)

    def __enter__(self) -> BPFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def is_sealed(self) -> bool:
        """Whether there are checksums of all arrays."""
        return self._seal is not None

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits that have samples."""
        return tuple(self._arrays)

    def count_samples(self, split: str) -> int:
        """Return the number of samples in a split."""
        self._split(split)
        return self._samples[split]

    def keys(self, split: str) -> tuple[str, ...]:
        """Return the keys of a split's samples."""
        return tuple(self._split(split))

    def shape(self, split: str, key: str) -> tuple[int, ...]:
        """Return the shape of a key over all samples of a split."""
        return self._array(split, key).shape

    def nbytes(self, split: str, keys: Collection[str]) -> int:
        """Return the size in bytes of some keys over all samples of a split."""
        arrays = (self._array(split, key) for key in keys)
        return sum(a.rows * a.row_bytes for a in arrays)

    def describe_key(self, split: str, key: str) -> tuple[str, str, int, tuple[int, ...]]:
        """Return the name, type, samples' axis and lengths of the other axes of a key."""
        array = self._array(split, key)
        return key, array.dtype, array.axis, array.shape[: array.axis] + array.shape[array.axis + 1 :]

    def counts(self, split: str, key: str, first: int, stop: int) -> Counts:
        """Return the number of rows of a key in each of the samples first..stop - 1, [stop - first]."""
        self._check_range(split, first, stop)
        return self._table(self._array(split, key), "count", first, stop - first)

    def bounds(self, split: str, key: str) -> Counts:
        """Return the start of each sample along the axis, and the end of the last one, [samples + 1]."""
        array, samples = self._array(split, key), self.count_samples(split)
        table = np.concatenate([[0], np.cumsum(self._table(array, "count", 0, samples))])
        if table[-1] != array.rows:
            raise InputError(f"{self.path}: damaged, {array.name} has {array.rows} rows, not {table[-1]}")
        return table

    def offsets(self, split: str, key: str) -> Counts:
        """Return the recorded start of each sample along the axis, [samples]."""
        return self._table(self._array(split, key), "offset", 0, self.count_samples(split))

    def _check_range(self, split: str, first: int, stop: int) -> None:
        if not 0 <= first < stop <= self.count_samples(split):
            raise InputError(
                f"{self.path}: {split}: expected sample indices 0..{self.count_samples(split) - 1},"
                f" got {first}..{stop - 1}"
            )

    def read_sample(self, split: str, index: int, keys: Collection[str] | None = None) -> Sample:
        """Read one sample from disk."""
        if not 0 <= index < self.count_samples(split):
            raise InputError(
                f"{self.path}: {split}: expected sample indices 0..{self.count_samples(split) - 1}, got {index}"
            )
        sample = {}
        for key in self.keys(split) if keys is None else keys:
            ends = self._ends.get(split, {}).get(key) or self._load_ends(split, key)
            sample[key] = self._read(self._array(split, key), ends[index], ends[index + 1] - ends[index])
        return sample

    def columns(self, split: str, first: int, stop: int, keys: Collection[str] | None = None) -> Block:
        """Read the samples first..stop - 1, each key in one read.

        Args:
            split: The name of the split.
            first: Index of the first sample.
            stop: Index after the last sample.
            keys: The keys to read; None for all.

        Raises:
            InputError: The split does not have these samples.
        """
        self._check_range(split, first, stop)
        columns = {}
        for key in self.keys(split) if keys is None else keys:
            array = self._array(split, key)
            counts = self._table(array, "count", first, stop - first)
            start = int(self._table(array, "offset", first, 1)[0])
            rows = int(counts.sum())
            if start + rows > array.rows:
                raise InputError(f"{self.path}: damaged, {array.name} has no rows {start}..{start + rows - 1}")
            columns[key] = Column(self._read(array, start, rows), counts, array.axis)
        return Block(stop - first, columns)

    def tables(self) -> Iterator[StoredArray]:
        """Yield the counts and offsets of all arrays."""
        yield from self._tables.values()

    def arrays(self) -> Iterator[StoredArray]:
        """Yield all arrays, with their tables."""
        yield from (array for arrays in self._arrays.values() for array in arrays.values())
        yield from self.tables()

    def pieces(self, array: StoredArray) -> Iterator[NDArray[Any]]:
        """Yield the rows of an array in pieces, the samples' axis first."""
        step = max(1, VERIFY_BYTES // max(1, array.row_bytes))
        for first in range(0, array.rows, step):
            rows = min(step, array.rows - first)
            yield move_samples_first(self._read(array, first, rows), array.axis)

    def verify(self) -> None:
        """Read all arrays and compare them with their checksums; raises InputError if they differ."""
        if not self.is_sealed:
            raise InputError(f"{self.path}: it was written without checksums")
        for array in self.arrays():
            for _ in self.pieces(array):
                pass

    def _read(self, array: StoredArray, first: int, rows: int) -> NDArray[Any]:
        """Read rows of an array and compare them with their checksums, if it has any."""
        verifier = self._verifier(array) if rows else None
        blocks = verifier.widen(first, rows) if verifier else None
        if verifier is None or blocks is None:
            return self._handle.read(array, first, rows)
        start, stop = blocks
        values = self._handle.read(array, start, stop - start)
        damaged = verifier.find_damage(start, move_samples_first(values, array.axis))
        if damaged is not None:
            low, high = verifier.block_rows(damaged)
            raise InputError(
                f"{self.path}: damaged, {array.name} is not as it was written in block {damaged} (rows {low}..{high});"
                " restore the store, or convert the dataset again"
            )
        return array.cut(values, first - start, first - start + rows)

    def _verifier(self, array: StoredArray) -> Verifier | None:
        if self._seal is None:
            return None
        if array.name not in self._verifiers:
            position, blocks = self._sum_positions[array.name]
            table = np.fromfile(self._seal.sums, "<u4", count=blocks, offset=4 * position)
            if len(table) != blocks or zlib.crc32(table.tobytes()) != self._seal.arrays[array.name]:
                raise InputError(f"{self._seal.sums}: damaged, the checksums of {array.name} are not as written")
            self._verifiers[array.name] = Verifier(table, array.rows, array.row_bytes)
        return self._verifiers[array.name]

    def close(self) -> None:
        """Close the handles that this process has opened."""
        for key in [k for k in self._handles if k[0] == os.getpid()]:
            self._handles.pop(key).close()

    @property
    def _handle(self) -> Handle:
        key = (os.getpid(), threading.get_ident())
        if key not in self._handles:
            self._handles[key] = Handle(self.path)
        return self._handles[key]

    def _split(self, split: str) -> dict[str, StoredArray]:
        if split not in self._arrays:
            raise InputError(f"{self.path}: no split {split!r}; its splits are {', '.join(self._arrays)}")
        return self._arrays[split]

    def _array(self, split: str, key: str) -> StoredArray:
        arrays = self._split(split)
        if key not in arrays:
            raise InputError(f"{self.path}: {split} has no {key!r}; its keys are {', '.join(arrays)}")
        return arrays[key]

    def _table(self, array: StoredArray, name: str, first: int, rows: int) -> Counts:
        """Read some rows of an array's table of counts or of offsets (`name`)."""
        table = self._read(self._tables[f"{array.name}/variable_{name}"], first, rows).astype(np.int64, copy=False)
        if (table < 0).any():
            raise InputError(f"{self.path}: damaged, {array.name}/variable_{name} has negative numbers")
        return table

    def _load_ends(self, split: str, key: str) -> list[int]:
        """Return the bounds of the samples of a key; keys with equal numbers of rows share one table."""
        table = self.bounds(split, key)
        known = self._ends.setdefault(split, {})
        return known.setdefault(key, next((t for t in known.values() if np.array_equal(t, table)), table.tolist()))
