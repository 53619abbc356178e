"""What a screening asks of its candidates, whatever they are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from harness.reference.data.batch import Batch
from harness.reference.data.structure import Structure
from harness.reference.programs.screening.candidates.graph_arrays import GraphArrays


@dataclass(frozen=True)
class Made:
    """A batch of candidates, in double precision on the CPU, or None where all were left out. index: [g].

    left_out: candidates taken out on the way to this batch, by reason. outside: which of the batch the model cannot
    know anything of, [g], by reason, as of Coverage.outside.
    """

    index: NDArray[np.int64]
    batch: Batch | None
    left_out: dict[str, int] = field(default_factory=dict)
    outside: dict[str, NDArray[np.bool_]] = field(default_factory=dict)


class Workload(Protocol):
    """Candidates 0 .. total - 1, of which any can be made by anybody."""

    name: str
    total: int
    facts: dict[str, object]

    def batches(self, first: int, stop: int, edges: int) -> Iterator[Made]:
        """The candidates from first to before stop, in batches of at most about so many edges each."""
        ...

    def structure(self, index: int) -> Structure:
        """One candidate."""
        ...

    def described(self, index: int) -> dict[str, str]:
        """What a table says of one candidate besides its formula."""
        ...


def batch_of(arrays: GraphArrays) -> Batch:
    """Structures of no known charge as a batch."""
    nothing = np.zeros(0, dtype=np.int64)
    unknown = np.zeros(len(arrays.atoms))
    columns = (
        arrays.numbers, arrays.positions, arrays.receiver, arrays.sender, arrays.shift, arrays.graph,
        arrays.edge_graph, arrays.cell, arrays.composition, unknown, unknown, np.full(len(arrays.atoms), -1), nothing,
        nothing,
    )  # fmt: skip
    return Batch(*(torch.from_numpy(np.ascontiguousarray(c)) for c in columns))


def cut(counts: NDArray[np.int64], most: int) -> Iterator[slice]:
    """Consecutive stretches whose counts sum to at most `most` each, or hold one alone."""
    ends = np.cumsum(counts)
    first = 0
    while first < len(counts):
        before = int(ends[first - 1]) if first else 0
        stop = max(first + 1, int(np.searchsorted(ends, before + most, side="right")))
        yield slice(first, stop)
        first = stop
