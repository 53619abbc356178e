"""Samples of a split by index, on disk or in memory, and several splits as one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Collection, Sequence
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.reference.errors import InputError
from harness.reference.storage.adios.reader import BPFile
from harness.reference.storage.schema import Block, Record

ColumnGroup = tuple[Any, list[tuple[str, NDArray[Any], int]]]


class Samples(ABC):
    """Samples 0..len-1. thread_safe: whether `get` may run concurrently in threads."""

    thread_safe = True

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def get(self, indices: Sequence[int] | NDArray[np.int64]) -> list[Record]:
        """Return the samples in the order asked for, read only; raises InputError for an index that does not exist."""

    def close(self) -> None:  # noqa: B027
        """Let go of files, memory and windows; collective where opening was."""

    def __enter__(self) -> Samples:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        # A rank that fails must not wait for the others: it leaves its windows to the end of the process.
        if kind is None:
            self.close()


class OnDemandSamples(Samples):
    """Each sample read from disk when asked for."""

    def __init__(self, file: BPFile, label: str, keys: Collection[str] | None = None) -> None:
        self._file, self._label, self._keys = file, label, keys
        self._length = file.samples(label)

    def __len__(self) -> int:
        return self._length

    def get(self, indices: Sequence[int] | NDArray[np.int64]) -> list[Record]:
        """Return the samples in the order asked for."""
        return [self._file.record(self._label, int(i), self._keys) for i in indices]

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class PreloadedSamples(Samples):
    """Samples in memory as columns, given out as views. first: index of the first one that is there."""

    def __init__(self, groups: Sequence[ColumnGroup], held: int, first: int = 0, length: int | None = None) -> None:
        """Hold groups of keys that have equal numbers of rows, each with the sample boundaries in them, [held + 1]."""
        self._groups = groups
        self.held = range(first, first + held)
        self._length = held if length is None else length

    @classmethod
    def from_block(cls, block: Block, first: int = 0, length: int | None = None) -> PreloadedSamples:
        """Return the samples of a block; length: of the split that the block is a part of."""
        groups: list[ColumnGroup] = []
        for name, column in block.columns.items():
            ends = column.ends(block.samples)
            column.values.flags.writeable = False
            same = next((group for group in groups if np.array_equal(group[0], ends)), None)
            if same is None:
                groups.append((ends, []))
            (same or groups[-1])[1].append((name, column.values, column.axis))
        return cls([(ends.tolist(), columns) for ends, columns in groups], block.samples, first, length)

    def __len__(self) -> int:
        return self._length

    def get(self, indices: Sequence[int] | NDArray[np.int64]) -> list[Record]:
        """Return the samples in the order asked for, as views."""
        records = []
        first, held = self.held.start, len(self.held)
        for index in indices.tolist() if isinstance(indices, np.ndarray) else indices:
            i = index - first
            if not 0 <= i < held:
                raise InputError(f"samples {first}..{self.held.stop - 1} are in memory, not {index}")
            record: Record = {}
            for ends, columns in self._groups:
                a, b = ends[i], ends[i + 1]
                for name, values, axis in columns:
                    record[name] = values[a:b] if axis == 0 else values[(slice(None),) * axis + (slice(a, b),)]
            records.append(record)
        return records


class FilteredSamples(Samples):
    """The samples of a split but for some that are left out."""

    def __init__(self, samples: Samples, left_out: Sequence[int]) -> None:
        """Leave out the samples with these indices, which are sorted and distinct."""
        self._samples = samples
        # Left-out samples before index i of the rest: those with at most i of the rest before them.
        self._before = np.asarray(left_out, dtype=np.int64) - np.arange(len(left_out))
        self.thread_safe = samples.thread_safe

    def __len__(self) -> int:
        return len(self._samples) - len(self._before)

    def get(self, indices: Sequence[int] | NDArray[np.int64]) -> list[Record]:
        """Return the samples in the order asked for."""
        wanted = np.asarray(indices, dtype=np.int64)
        beyond = wanted[(wanted < 0) | (wanted >= len(self))]
        if len(beyond):
            raise InputError(f"there are samples 0..{len(self) - 1}, not {beyond[0]}")
        return self._samples.get(wanted + np.searchsorted(self._before, wanted, side="right"))

    def close(self) -> None:
        """Close the samples."""
        self._samples.close()


class ConcatenatedSamples(Samples):
    """Several datasets as one, one after the other."""

    def __init__(self, parts: Sequence[Samples]) -> None:
        self.parts = list(parts)
        self.starts = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).tolist()
        self.thread_safe = all(part.thread_safe for part in parts)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def datasets(self, indices: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the dataset of each sample, [n]."""
        return np.searchsorted(self.starts, np.asarray(indices), side="right") - 1

    def index(self, dataset: int, sample: int) -> int:
        """Return the index of a dataset's sample among all."""
        return int(self.starts[dataset]) + sample

    def get(self, indices: Sequence[int] | NDArray[np.int64]) -> list[Record]:
        """Return the samples in the order asked for, each dataset asked once."""
        wanted: dict[int, tuple[list[int], list[int]]] = {}
        for position, index in enumerate(indices.tolist() if isinstance(indices, np.ndarray) else indices):
            if not 0 <= index < len(self):
                raise InputError(f"there are samples 0..{len(self) - 1}, not {index}")
            dataset = bisect_right(self.starts, index) - 1
            positions, local_indices = wanted.setdefault(dataset, ([], []))
            positions.append(position)
            local_indices.append(index - self.starts[dataset])
        records: list[Record] = [{} for _ in indices]
        for dataset, (positions, local_indices) in wanted.items():
            for position, record in zip(positions, self.parts[dataset].get(local_indices), strict=True):
                records[position] = record
        return records

    def close(self) -> None:
        """Close all."""
        for part in self.parts:
            part.close()


def concatenate_samples(parts: Sequence[Samples]) -> ConcatenatedSamples:
    """Return several datasets in one index space; `ConcatenatedSamples.datasets` tells the dataset of a sample."""
    if not parts:
        raise InputError("no datasets to merge")
    return ConcatenatedSamples(parts)


def split_evenly(samples: int, rank: int, ranks: int) -> tuple[int, int]:
    """Return the first and one past the last of a rank's consecutive samples; shares differ by one at most."""
    each, more = divmod(samples, ranks)
    first = rank * each + min(rank, more)
    return first, first + each + (rank < more)
