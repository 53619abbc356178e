"""Access to the samples of a split by index, on disk or in memory, and to several datasets as one."""

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
from harness.reference.storage.schema import Block, Sample

# the boundaries of the samples, and the keys with these boundaries: (key, values, samples' axis)
ColumnGroup = tuple[Any, list[tuple[str, NDArray[Any], int]]]


class Samples(ABC):
    """A sequence of samples.

    Attributes:
        thread_safe: Whether `get` may run concurrently in threads.
    """

    thread_safe = True

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def get(self, indices: Sequence[int] | NDArray[np.int64]) -> list[Sample]:
        """Return the samples in the requested order; do not write to them.

        Raises:
            InputError: An index does not exist.
        """

    def close(self) -> None:  # noqa: B027
        """Release files, memory and MPI windows; collective if the samples were opened collectively."""

    def __enter__(self) -> Samples:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # A rank that fails must not wait for the others; its MPI windows are freed when the process ends.
        if kind is None:
            self.close()


class OnDemandSamples(Samples):
    """Samples that are read from disk on each access."""

    def __init__(self, file: BPFile, split: str, keys: Collection[str] | None = None) -> None:
        self._file, self._split, self._keys = file, split, keys
        self._length = file.count_samples(split)

    def __len__(self) -> int:
        return self._length

    def get(self, indices: Sequence[int] | NDArray[np.int64]) -> list[Sample]:
        """Return the samples in the requested order."""
        return [self._file.read_sample(self._split, int(i), self._keys) for i in indices]

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class PreloadedSamples(Samples):
    """Samples in memory as columns, returned as views.

    Attributes:
        indices: The indices of the samples in memory, a part of the split.
    """

    def __init__(self, groups: Sequence[ColumnGroup], count: int, first: int = 0, length: int | None = None) -> None:
        """Create samples from columns in memory.

        Args:
            groups: Keys with equal numbers of rows, together with the boundaries of their samples, [count + 1].
            count: Number of samples in memory.
            first: Index of the first sample in memory.
            length: Number of samples of the split; None for `count`.
        """
        self._groups = groups
        self.indices = range(first, first + count)
        self._length = count if length is None else length

    @classmethod
    def from_block(cls, block: Block, first: int = 0, length: int | None = None) -> PreloadedSamples:
        """Return the samples of a block that starts at `first` in a split of `length` samples."""
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

    def get(self, indices: Sequence[int] | NDArray[np.int64]) -> list[Sample]:
        """Return the samples in the requested order, as views."""
        records = []
        first, count = self.indices.start, len(self.indices)
        for index in indices.tolist() if isinstance(indices, np.ndarray) else indices:
            i = index - first
            if not 0 <= i < count:
                raise InputError(f"expected sample indices {first}..{self.indices.stop - 1}, got {index}")
            sample: Sample = {}
            for ends, columns in self._groups:
                start, stop = ends[i], ends[i + 1]
                for name, values, axis in columns:
                    sample[name] = (
                        values[start:stop] if axis == 0 else values[(slice(None),) * axis + (slice(start, stop),)]
                    )
            records.append(sample)
        return records


class FilteredSamples(Samples):
    """The samples of a split, except some that are excluded."""

    def __init__(self, samples: Samples, excluded: Sequence[int]) -> None:
        """Exclude the samples with these indices, which must be sorted and distinct."""
        self._samples = samples
        # the number of samples that remain before each excluded one
        self._before = np.asarray(excluded, dtype=np.int64) - np.arange(len(excluded))
        self.thread_safe = samples.thread_safe

    def __len__(self) -> int:
        return len(self._samples) - len(self._before)

    def get(self, indices: Sequence[int] | NDArray[np.int64]) -> list[Sample]:
        """Return the samples in the requested order."""
        numbers = np.asarray(indices, dtype=np.int64)
        invalid = numbers[(numbers < 0) | (numbers >= len(self))]
        if len(invalid):
            raise InputError(f"expected sample indices 0..{len(self) - 1}, got {invalid[0]}")
        return self._samples.get(numbers + np.searchsorted(self._before, numbers, side="right"))

    def close(self) -> None:
        """Close the samples."""
        self._samples.close()


class ConcatenatedSamples(Samples):
    """Several datasets in one index space, one after the other."""

    def __init__(self, parts: Sequence[Samples]) -> None:
        """Concatenate datasets; raises InputError if there are none."""
        if not parts:
            raise InputError("no datasets to merge")
        self.parts = list(parts)
        self.starts = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).tolist()
        self.thread_safe = all(part.thread_safe for part in parts)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def find_datasets(self, indices: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the index of the dataset to which each sample belongs, [n]."""
        return np.searchsorted(self.starts, np.asarray(indices), side="right") - 1

    def index(self, dataset: int, sample: int) -> int:
        """Return the index, among all samples, of one sample of a dataset."""
        return int(self.starts[dataset]) + sample

    def get(self, indices: Sequence[int] | NDArray[np.int64]) -> list[Sample]:
        """Return the samples in the requested order, with one access to each dataset."""
        requests: dict[int, tuple[list[int], list[int]]] = {}
        for position, index in enumerate(indices.tolist() if isinstance(indices, np.ndarray) else indices):
            if not 0 <= index < len(self):
                raise InputError(f"expected sample indices 0..{len(self) - 1}, got {index}")
            dataset = bisect_right(self.starts, index) - 1
            positions, local_indices = requests.setdefault(dataset, ([], []))
            positions.append(position)
            local_indices.append(index - self.starts[dataset])
        records: list[Sample] = [{} for _ in indices]
        for dataset, (positions, local_indices) in requests.items():
            for position, record in zip(positions, self.parts[dataset].get(local_indices), strict=True):
                records[position] = record
        return records

    def close(self) -> None:
        """Close all datasets."""
        for part in self.parts:
            part.close()


def split_evenly(samples: int, rank: int, ranks: int) -> tuple[int, int]:
    """Return (first, stop) of the consecutive samples of one rank; the ranks' shares differ by one at most."""
    quotient, remainder = divmod(samples, ranks)
    first = rank * quotient + min(rank, remainder)
    return first, first + quotient + (rank < remainder)
