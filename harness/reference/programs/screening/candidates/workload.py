"""The interface of a workload, which generates candidates from their numbers, in batches with their neighbours."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from harness.reference.data.batch import Batch
from harness.reference.data.structure import MAX_ATOMIC_NUMBER, Array, Structure


@dataclass(frozen=True)
class GraphArrays:
    """Many structures with their neighbours as plain arrays: g structures, n atoms, e edges, in the order of a batch.

    Attributes:
        numbers: [n] atomic numbers.
        positions: [n, 3] angstrom.
        receiver: [e] index of an atom of the batch, ascending; edges of an atom ascend by distance.
        sender: [e] index of an atom of the batch.
        shift: [e, 3] angstrom, translation from the sender to its periodic image.
        graph: [n] index of the structure of each atom.
        edge_graph: [e] index of the structure of each edge.
        cell: [g, 3, 3] angstrom, rows are lattice vectors.
        atoms: [g] number of atoms.
        edges: [g] number of edges.
    """

    numbers: NDArray[np.int64]
    positions: Array
    receiver: NDArray[np.int64]
    sender: NDArray[np.int64]
    shift: Array
    graph: NDArray[np.int64]
    edge_graph: NDArray[np.int64]
    cell: Array
    atoms: NDArray[np.int64]
    edges: NDArray[np.int64]

    @property
    def composition(self) -> Array:
        """The number of atoms of each element by atomic number, [g, 119]."""
        width = MAX_ATOMIC_NUMBER + 1
        counts = np.bincount(self.graph * width + self.numbers, minlength=len(self.atoms) * width)
        return counts.reshape(-1, width).astype(np.float64)


@dataclass(frozen=True)
class CandidateBatch:
    """A batch of candidates in double precision on the CPU.

    Attributes:
        index: [g] numbers of the candidates.
        batch: The structures, or None if all candidates were filtered out.
        left_out: Number of candidates that were filtered out before this batch, by reason.
        outside: For each reason, [g] whether a candidate is outside the training sets; see `Coverage.find_outside`.
    """

    index: NDArray[np.int64]
    batch: Batch | None
    left_out: dict[str, int] = field(default_factory=dict)
    outside: dict[str, NDArray[np.bool_]] = field(default_factory=dict)


class Workload(Protocol):
    """The candidates 0 .. total - 1; any rank can generate a candidate from its number.

    Attributes:
        name: Name of the workload.
        total: Number of candidates.
        facts: Plain data that describes the candidates.
    """

    name: str
    total: int
    facts: dict[str, object]

    def batches(self, first: int, stop: int, edges: int) -> Iterator[CandidateBatch]:
        """Yield the candidates first .. stop - 1, in batches of at most about `edges` edges."""
        ...

    def structure(self, index: int) -> Structure:
        """Return the structure of one candidate, without neighbours."""
        ...

    def describe(self, index: int) -> dict[str, str]:
        """Return the columns that describe one candidate in a table."""
        ...


def build_batch_from_arrays(arrays: GraphArrays) -> Batch:
    """Convert arrays to a batch of structures of unknown charge and multiplicity."""
    empty = np.zeros(0, dtype=np.int64)
    unknown = np.zeros(len(arrays.atoms))
    columns = (
        arrays.numbers, arrays.positions, arrays.receiver, arrays.sender, arrays.shift, arrays.graph,
        arrays.edge_graph, arrays.cell, arrays.composition, unknown, unknown, np.full(len(arrays.atoms), -1), empty,
        empty,
    )  # fmt: skip
    return Batch(*(torch.from_numpy(np.ascontiguousarray(c)) for c in columns))


def split_by_count(counts: NDArray[np.int64], limit: int) -> Iterator[slice]:
    """Yield consecutive slices whose counts sum to at most the limit, or that contain a single larger count."""
    ends = np.cumsum(counts)
    first = 0
    while first < len(counts):
        before = int(ends[first - 1]) if first else 0
        stop = max(first + 1, int(np.searchsorted(ends, before + limit, side="right")))
        yield slice(first, stop)
        first = stop
