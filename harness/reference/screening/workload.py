"""What a screening asks of its candidates, whatever they are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from harness.reference.batches import Batch
from harness.reference.structures import Structure


@dataclass(frozen=True)
class Made:
    """A batch of candidates, in double precision on the CPU. index: [g]. left_out: candidates that a filter took out
    on the way to this batch, by filter."""

    index: NDArray[np.int64]
    batch: Batch
    left_out: dict[str, int] = field(default_factory=dict)


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
