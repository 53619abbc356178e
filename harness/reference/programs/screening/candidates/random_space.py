"""The paper's workload by number: for each rank an endless stream of random structures, in constant memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, islice

import numpy as np

from harness.reference.data.structure import Structure
from harness.reference.datasets.random_structures import BOX_ANGSTROM, ELEMENTS, SEED
from harness.reference.errors import InputError

PER_RANK = 15_000


def random_stream(rank: int, atoms: tuple[int, int], first: int = 0) -> Iterator[Structure]:
    """Structures first, first + 1, ... of those that `random_structures` gives the rank, without end.

    What comes before is drawn too, as all share one generator, but made into nothing.
    """
    rng = np.random.default_rng(SEED + rank)
    unused = np.empty(3 * atoms[1])
    for _ in range(first):
        n = int(rng.integers(atoms[0], atoms[1] + 1))
        rng.integers(ELEMENTS[0], ELEMENTS[1] + 1, n)
        rng.random(out=unused[: 3 * n])
    for k in count(first):
        n = int(rng.integers(atoms[0], atoms[1] + 1))
        numbers = rng.integers(ELEMENTS[0], ELEMENTS[1] + 1, n)
        yield Structure(f"random/{k}", numbers, rng.uniform(0.0, BOX_ANGSTROM, (n, 3)))


@dataclass(frozen=True)
class RandomSpace:
    """Candidate r * per_rank + k is structure k of rank r. atoms: fewest and most of a structure.

    Raises InputError where there is nothing to choose from.
    """

    ranks: int
    per_rank: int = PER_RANK
    atoms: tuple[int, int] = (2, 500)

    def __post_init__(self) -> None:
        if self.ranks < 1 or self.per_rank < 1:
            raise InputError(f"{self.ranks} ranks of {self.per_rank} random structures: expected 1 or more of each")
        if not 1 <= self.atoms[0] <= self.atoms[1]:
            raise InputError(f"{self.atoms[0]} to {self.atoms[1]} atoms: expected the fewest, 1 or more, and the most")

    def __len__(self) -> int:
        return self.ranks * self.per_rank

    def block(self, start: int, stop: int) -> Iterator[Structure]:
        """The candidates start, ..., stop - 1, one by one; raises InputError if not all exist."""
        if not 0 <= start <= stop <= len(self):
            raise InputError(f"candidates {start} to {stop}: expected 0 to {len(self)}, in this order")
        while start < stop:
            rank, first = divmod(start, self.per_rank)
            here = min(stop - start, self.per_rank - first)
            yield from islice(random_stream(rank, self.atoms, first), here)
            start += here

    def structure(self, index: int) -> Structure:
        """One candidate in full."""
        if not 0 <= index < len(self):
            raise InputError(f"candidate {index}: expected 0 to {len(self) - 1}")
        return next(self.block(index, index + 1))
