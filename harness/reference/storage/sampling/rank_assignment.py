"""Shares of datasets of very different sizes: in ranks, and in what is drawn."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from harness.reference.errors import InputError
from harness.reference.storage.sampling.load_balance import level
from harness.reference.storage.sampling.permutations import Integers


def weights(counts: Sequence[int], temperature: float = 1.0) -> NDArray[np.float64]:
    """Shares that sum to 1, proportional to count ** (1 / temperature), [d]: 1 is by size, infinity all alike.

    Raises InputError for an empty dataset and for a temperature that is not positive.
    """
    if not counts or min(counts) < 1:
        raise InputError(f"sampling: every dataset needs at least one sample, got {list(counts)}")
    if not temperature > 0:
        raise InputError(f"sampling: the temperature must be positive, got {temperature}")
    logs = np.log(np.asarray(counts, dtype=float)) / temperature
    raw = np.exp(logs - logs.max())
    return raw / raw.sum()


def apportioned(shares: ArrayLike, total: int, at_least: int = 0) -> Integers:
    """Whole numbers that sum to total, [d]: at_least each, the rest by largest remainder, ties to the first.

    Raises InputError when total is too small.
    """
    part = np.asarray(shares, dtype=float)
    spare = total - at_least * len(part)
    if spare < 0:
        raise InputError(f"sampling: {total} is too few for {len(part)} datasets with at least {at_least} each")
    quota = part / part.sum() * spare
    whole = np.floor(quota).astype(np.int64)
    whole[np.argsort(whole - quota, kind="stable")[: spare - int(whole.sum())]] += 1
    return whole + at_least


@dataclass(frozen=True)
class Group:
    """Ranks first .. first + size - 1, which share out the samples of the same datasets."""

    datasets: tuple[int, ...]
    first: int
    size: int


@dataclass(frozen=True)
class Assignment:
    """Which ranks serve which datasets; groups stand in the order of their ranks."""

    groups: tuple[Group, ...]

    def group_of(self, rank: int) -> Group:
        """The group that a rank belongs to."""
        return self.groups[bisect_right([g.first for g in self.groups], rank) - 1]

    def datasets_of(self, rank: int) -> tuple[int, ...]:
        """The datasets that a rank serves: one, or several where there are fewer ranks than datasets."""
        return self.group_of(rank).datasets

    @property
    def ranks_per_dataset(self) -> tuple[int, ...]:
        """How many ranks serve each dataset, shared or not, [d]."""
        sizes = {d: g.size for g in self.groups for d in g.datasets}
        return tuple(sizes[d] for d in range(len(sizes)))


def assign(counts: Sequence[int], ranks: int, temperature: float = 1.0) -> Assignment:
    """Ranks for every dataset: one each, the rest in proportion to their weights by largest remainder.

    With fewer ranks than datasets, the largest first, each dataset goes whole to the rank with the least weight so
    far, and a rank draws from its datasets in proportion to their weights. Raises InputError for no ranks.
    """
    if ranks < 1:
        raise InputError(f"sampling: expected at least one rank, got {ranks}")
    share = weights(counts, temperature)
    if ranks < len(counts):
        served = level(share, ranks)
        return Assignment(tuple(Group(tuple(own.tolist()), rank, 1) for rank, own in enumerate(served)))
    sizes = apportioned(share, ranks, at_least=1).tolist()
    firsts = np.cumsum([0, *sizes]).tolist()
    return Assignment(tuple(Group((d,), firsts[d], size) for d, size in enumerate(sizes)))
