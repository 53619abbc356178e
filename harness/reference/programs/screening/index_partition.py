"""The index space of a screening in parts: who takes which, and a checksum that shows that each was taken once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from harness.reference.errors import InputError

AT_ONCE = 1 << 20
MASK = (1 << 64) - 1


def mixed(index: NDArray[np.int64]) -> NDArray[np.uint64]:
    """A number for each index with all bits stirred: the finalizer of splitmix64.

    Source: Steele, Lea and Flood, Fast splittable pseudorandom number generators, OOPSLA 2014.
    """
    x = index.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(x ^ (x >> np.uint64(31)))


def checksum(indices: NDArray[np.int64]) -> int:
    """The sum of the mixed indices modulo 2^64: what is left out, or comes twice, changes it."""
    return int(mixed(indices).sum(dtype=np.uint64))


def checksum_of_range(first: int, stop: int) -> int:
    """Of all indices from first to before stop."""
    pieces = (np.arange(k, min(stop, k + AT_ONCE), dtype=np.int64) for k in range(first, stop, AT_ONCE))
    return sum(map(checksum, pieces)) & MASK


@dataclass(frozen=True)
class Parts:
    """total: candidates of the whole space. size: candidates of a part, of the last one what is left.

    wanted: how many parts are screened, evenly spread over the space; all of them by default.
    """

    total: int
    size: int
    wanted: int | None = None

    def __post_init__(self) -> None:
        if self.total < 1 or self.size < 1 or (self.wanted is not None and self.wanted < 1):
            raise InputError(f"{self.total} candidates in parts of {self.size}: expected at least one of each")

    @classmethod
    def about(cls, total: int, size: int, candidates: int | None) -> Parts:
        """As many parts as make about so many candidates, or all of them."""
        return cls(total, size, None if candidates is None else max(1, round(candidates / max(1, size))))

    @property
    def all(self) -> int:
        """Parts of the whole space."""
        return -(-self.total // self.size)

    @property
    def numbers(self) -> range | list[int]:
        """Those that are screened."""
        if self.wanted is None or self.wanted >= self.all:
            return range(self.all)
        return [k * self.all // self.wanted for k in range(self.wanted)]

    def bounds(self, number: int) -> tuple[int, int]:
        """First candidate of a part, and one past its last."""
        return number * self.size, min(self.total, (number + 1) * self.size)

    @property
    def candidates(self) -> int:
        """In the parts that are screened."""
        return sum(stop - first for first, stop in map(self.bounds, self.numbers))

    def checksum(self) -> int:
        """Of all candidates that are screened, from their indices alone."""
        return sum(checksum_of_range(*self.bounds(k)) for k in self.numbers) & MASK
