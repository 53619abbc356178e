"""The index space of a screening in parts, and a checksum that shows that each candidate was screened once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from harness.reference.errors import InputError

CHUNK = 1 << 20
MASK = (1 << 64) - 1


def splitmix64(index: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Hash each index with the finalizer of splitmix64.

    Source: Steele, Lea and Flood, Fast splittable pseudorandom number generators, OOPSLA 2014.
    """
    x = index.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(x ^ (x >> np.uint64(31)))


def checksum(indices: NDArray[np.int64]) -> int:
    """Return the sum of the hashed indices modulo 2^64, which a missing or repeated index changes."""
    return int(splitmix64(indices).sum(dtype=np.uint64))


def checksum_of_range(first: int, stop: int) -> int:
    """Return the checksum of the indices first .. stop - 1."""
    pieces = (np.arange(k, min(stop, k + CHUNK), dtype=np.int64) for k in range(first, stop, CHUNK))
    return sum(map(checksum, pieces)) & MASK


@dataclass(frozen=True)
class IndexPartition:
    """A partition of the candidates, of which some parts or all are screened.

    Attributes:
        total: Candidates of the whole space.
        size: Candidates of a part; the last part may have fewer.
        n_selected: Number of parts that are screened, evenly spaced; None for all.
    """

    total: int
    size: int
    n_selected: int | None = None

    def __post_init__(self) -> None:
        if self.total < 1 or self.size < 1 or (self.n_selected is not None and self.n_selected < 1):
            raise InputError(f"{self.total} candidates in parts of {self.size}: expected at least one of each")

    @classmethod
    def for_candidates(cls, total: int, size: int, candidates: int | None) -> IndexPartition:
        """Return a partition that screens about so many candidates, or all of them."""
        return cls(total, size, None if candidates is None else max(1, round(candidates / max(1, size))))

    @property
    def n_parts(self) -> int:
        """Return the number of parts of the whole space."""
        return -(-self.total // self.size)

    @property
    def selected(self) -> range | list[int]:
        """Return the numbers of the parts that are screened."""
        if self.n_selected is None or self.n_selected >= self.n_parts:
            return range(self.n_parts)
        return [k * self.n_parts // self.n_selected for k in range(self.n_selected)]

    def bounds(self, number: int) -> tuple[int, int]:
        """Return the first candidate of a part, and the one after its last."""
        return number * self.size, min(self.total, (number + 1) * self.size)

    @property
    def candidates(self) -> int:
        """Return the number of candidates in the parts that are screened."""
        return sum(stop - first for first, stop in map(self.bounds, self.selected))

    def checksum(self) -> int:
        """Return the checksum of all candidates that are screened, from their indices alone."""
        return sum(checksum_of_range(*self.bounds(k)) for k in self.selected) & MASK
