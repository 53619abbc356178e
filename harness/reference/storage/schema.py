"""The schema of stored structures: names, types and shapes, as in the BP files (ADIOS2) that HydraGNN writes.

A key k of a split L is one array `L/k`, in which the samples are concatenated along one axis, the samples' axis;
`L/k/variable_count` is the number of rows of each sample along it. Source: the ADIOS writer and reader of HydraGNN 5
(github.com/ORNL/HydraGNN).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from harness.reference.errors import InputError

ELEMENTS = 118
FORMAT_VERSION = 1
Sample = dict[str, NDArray[Any]]  # the arrays of one sample, by key
Counts = NDArray[np.int64]
# Types that ADIOS2 writes and HydraGNN reads; ADIOS2 rejects bool and float16.
DTYPES = frozenset(np.dtype(t) for t in ("float64", "float32", "int64", "int32", "uint8"))


@dataclass(frozen=True)
class KeySpec:
    """The specification of one key.

    Attributes:
        name: The key.
        dtype: A data type of numpy, or "real" for that of the store, float64 or float32.
        per: What one row along `axis` describes.
        rows: Number of rows per structure; None if it varies.
        rest: The lengths of the axes other than `axis`.
        meaning: The quantity, with its unit.
        axis: The samples' axis.
        listed: Whether `L/keys` lists the key; HydraGNN ignores keys that are not listed.
    """

    name: str
    dtype: str
    per: Literal["structure", "atom", "edge", "text"]
    rows: int | None
    rest: tuple[int, ...]
    meaning: str
    axis: int = 0
    listed: bool = True


KEYS: dict[str, KeySpec] = {
    key.name: key
    for key in (
        KeySpec("pos", "real", "atom", rows=None, rest=(3,), meaning="position, angstrom"),
        KeySpec("atomic_numbers", "real", "atom", rows=None, rest=(1,), meaning="atomic number"),
        KeySpec(
            "x",
            "real",
            "atom",
            rows=None,
            rest=(7,),
            meaning="atomic number, position and, where known, force side by side",
        ),
        KeySpec("forces", "real", "atom", rows=None, rest=(3,), meaning="eV/angstrom"),
        KeySpec("energy", "real", "structure", rows=1, rest=(), meaning="eV"),
        KeySpec("energy_per_atom", "real", "structure", rows=1, rest=(), meaning="eV"),
        KeySpec("y", "real", "structure", rows=1, rest=(), meaning="the graph's target: energy, or energy per atom"),
        KeySpec("cell", "real", "structure", rows=3, rest=(3,), meaning="rows are lattice vectors, angstrom"),
        KeySpec("pbc", "int32", "structure", rows=3, rest=(), meaning="1 where periodic along a lattice vector"),
        KeySpec("natoms", "int32", "structure", rows=1, rest=(), meaning="atoms"),
        KeySpec(
            "chemical_composition",
            "real",
            "structure",
            rows=ELEMENTS,
            rest=(1,),
            meaning="atoms of each element, from hydrogen on",
        ),
        KeySpec(
            "graph_attr",
            "real",
            "structure",
            rows=2,
            rest=(),
            meaning="charge and spin multiplicity, 1 where not known",
        ),
        KeySpec("stress", "real", "structure", rows=3, rest=(3,), meaning="eV/angstrom^3, tension positive"),
        KeySpec(
            "edge_index",
            "int64",
            "edge",
            rows=None,
            rest=(2,),
            meaning="sender and receiver, as indices within the structure",
            axis=1,
        ),
        KeySpec("edge_attr", "real", "edge", rows=None, rest=(1,), meaning="distance, angstrom"),
        KeySpec(
            "edge_shifts",
            "real",
            "edge",
            rows=None,
            rest=(3,),
            meaning="receiver - sender + shift is the edge's vector, angstrom",
        ),
        KeySpec("id", "uint8", "text", rows=None, rest=(), meaning="name within the dataset, UTF-8", listed=False),
        KeySpec(
            "group",
            "uint8",
            "text",
            rows=None,
            rest=(),
            meaning="structures of one group stay in one split, UTF-8",
            listed=False,
        ),
    )
}


@dataclass(frozen=True)
class Column:
    """One key of consecutive samples.

    Attributes:
        values: The rows of all samples along `axis`.
        counts: [samples] number of rows of each sample, or one number if all are equal.
        axis: The samples' axis.
    """

    values: NDArray[Any]
    counts: Counts | int
    axis: int = 0

    def rows(self, samples: int) -> Counts:
        """Return the number of rows of each sample, [samples]."""
        if isinstance(self.counts, int):
            return np.full(samples, self.counts, dtype=np.int64)
        return self.counts

    def ends(self, samples: int) -> Counts:
        """Return the start of each sample along the axis, and the end of the last one, [samples + 1]."""
        if isinstance(self.counts, int):
            return np.arange(samples + 1, dtype=np.int64) * self.counts
        return np.concatenate([[0], np.cumsum(self.counts)])

    def cut(self, first: int, stop: int) -> NDArray[Any]:
        """Return a view of the rows first..stop - 1 along the axis."""
        return self.values[(slice(None),) * self.axis + (slice(first, stop),)]


@dataclass(frozen=True)
class Block:
    """Consecutive samples of a split, key by key."""

    samples: int
    columns: Mapping[str, Column]

    @property
    def nbytes(self) -> int:
        """The size of the values in bytes."""
        return sum(column.values.nbytes for column in self.columns.values())

    def pieces(self, size: int) -> Iterator[Block]:
        """Yield the block in pieces of at most `size` samples, without copying values."""
        if self.samples <= size:
            yield self
            return
        ends = {name: column.ends(self.samples) for name, column in self.columns.items()}
        for first in range(0, self.samples, size):
            stop = min(first + size, self.samples)
            yield Block(
                stop - first,
                {
                    name: Column(
                        c.cut(int(ends[name][first]), int(ends[name][stop])),
                        c.counts if isinstance(c.counts, int) else c.counts[first:stop],
                        c.axis,
                    )
                    for name, c in self.columns.items()
                },
            )

    def iter_samples(self) -> Iterator[Sample]:
        """Yield each sample; its arrays are views of the columns."""
        ends = {name: column.ends(self.samples).tolist() for name, column in self.columns.items()}
        for k in range(self.samples):
            yield {name: c.cut(ends[name][k], ends[name][k + 1]) for name, c in self.columns.items()}

    def check(self, first: int = 0) -> Block:
        """Check types, shapes and values, and return self.

        Args:
            first: Index of the first sample in messages.

        Raises:
            InputError: A value cannot be stored; the message names the first problem and its sample.
        """
        if self.samples < 1 or not self.columns:
            raise InputError("a block without samples or without keys")
        for name, column in self.columns.items():
            _check_column(name, column, self.samples, first)
        return self


def may_be_empty(name: str) -> bool:
    """Return whether a sample may have no rows of this key: an atom without neighbours has no edges."""
    return name in KEYS and KEYS[name].per == "edge"


def is_finite(name: str, values: NDArray[Any]) -> bool:
    """Return whether all values are finite; a stress whose components are all NaN is allowed, as it means no label."""
    if name == "stress" and values.ndim == 2 and len(values) % 3 == 0:
        values = values[~np.isnan(values).reshape(-1, 3, values.shape[1]).all(axis=(1, 2)).repeat(3)]
    return bool(np.isfinite(values).all())


def _check_column(name: str, column: Column, samples: int, first: int) -> None:
    values = column.values
    if values.dtype not in DTYPES or not values.dtype.isnative:
        raise InputError(f"{name}: cannot be stored as {values.dtype}; use {', '.join(sorted(map(str, DTYPES)))}")
    if values.ndim <= column.axis:
        raise InputError(f"{name}: shape {values.shape} has no axis {column.axis}")
    counts = column.rows(samples)
    if len(counts) != samples or counts.sum() != values.shape[column.axis] or (counts < 0).any():
        raise InputError(
            f"{name}: expected {len(counts)} samples with {counts.sum()} rows,"
            f" got {samples} with {values.shape[column.axis]}"
        )
    if not may_be_empty(name) and not counts.all():
        raise InputError(f"{name} of sample {first + int(np.flatnonzero(counts == 0)[0])} is empty")
    if values.dtype.kind == "f" and not is_finite(name, values):
        row = int(np.argwhere(~np.isfinite(values))[0][column.axis])
        sample = int(np.searchsorted(column.ends(samples), row, side="right")) - 1
        raise InputError(f"{name} of sample {first + sample} is not finite")


def move_samples_first(values: NDArray[Any], axis: int) -> NDArray[Any]:
    """Return the values as a contiguous array with the samples' axis first, the order in which checksums read them."""
    return np.ascontiguousarray(np.moveaxis(values, axis, 0))
