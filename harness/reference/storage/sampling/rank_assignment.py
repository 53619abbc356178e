"""The division of ranks and samples among datasets of very different sizes, and batches of balanced cost."""

from __future__ import annotations

import heapq
import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from harness.reference.errors import InputError
from harness.reference.storage.sampling.permutations import Integers


def compute_weights(counts: Sequence[int], temperature: float = 1.0) -> NDArray[np.float64]:
    """Return shares that sum to 1, proportional to count ** (1 / temperature), [d]: by size for 1, equal for infinity.

    Raises InputError for an empty dataset and for a temperature that is not positive.
    """
    if not counts or min(counts) < 1:
        raise InputError(f"sampling: every dataset needs at least one sample, got {list(counts)}")
    if not temperature > 0:
        raise InputError(f"sampling: the temperature must be positive, got {temperature}")
    logs = np.log(np.asarray(counts, dtype=float)) / temperature
    raw = np.exp(logs - logs.max())
    return raw / raw.sum()


def round_shares(shares: ArrayLike, total: int, at_least: int = 0) -> Integers:
    """Return whole numbers that sum to total, [d]: at_least each, the rest by largest remainder, ties to the first.

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
class RankGroup:
    """Ranks first .. first + size - 1, which share the samples of the same datasets."""

    datasets: tuple[int, ...]
    first: int
    size: int


@dataclass(frozen=True)
class Assignment:
    """The assignment of ranks to datasets; groups are in the order of their ranks."""

    groups: tuple[RankGroup, ...]

    def find_group(self, rank: int) -> RankGroup:
        """Return the group that a rank belongs to."""
        return self.groups[bisect_right([g.first for g in self.groups], rank) - 1]

    def find_datasets(self, rank: int) -> tuple[int, ...]:
        """Return the datasets that a rank serves: one, or several where there are fewer ranks than datasets."""
        return self.find_group(rank).datasets

    @property
    def ranks_per_dataset(self) -> tuple[int, ...]:
        """How many ranks serve each dataset, shared or not, [d]."""
        sizes = {d: g.size for g in self.groups for d in g.datasets}
        return tuple(sizes[d] for d in range(len(sizes)))


def assign_ranks(counts: Sequence[int], ranks: int, temperature: float = 1.0) -> Assignment:
    """Assign one rank to each dataset, and the rest in proportion to their weights by largest remainder.

    With fewer ranks than datasets, each dataset, the largest first, goes whole to the rank with the least weight so
    far, and a rank draws from its datasets in proportion to their weights. Raises InputError for no ranks.
    """
    if ranks < 1:
        raise InputError(f"sampling: expected at least one rank, got {ranks}")
    share = compute_weights(counts, temperature)
    if ranks < len(counts):
        served = balance_costs(share, ranks)
        return Assignment(tuple(RankGroup(tuple(datasets.tolist()), rank, 1) for rank, datasets in enumerate(served)))
    sizes = round_shares(share, ranks, at_least=1).tolist()
    firsts = np.cumsum([0, *sizes]).tolist()
    return Assignment(tuple(RankGroup((d,), firsts[d], size) for d, size in enumerate(sizes)))


def balance_costs(costs: ArrayLike, parts: int) -> list[Integers]:
    """Return the samples of each part, ascending, such that the parts have nearly equal sums of the costs [n].

    Each sample, the costliest first, goes to the part with the lowest cost so far, and among equal ones to that with
    the fewest samples, so that no part is empty if there are as many samples as parts. Source: Graham, SIAM J. Appl.
    Math. 17, 416 (1969): the costliest part is at most 4/3 of the best possible.
    """
    price = np.asarray(costs, dtype=float)
    heap = [(0.0, 0, k) for k in range(parts)]
    assigned: list[list[int]] = [[] for _ in range(parts)]
    for k in np.argsort(-price, kind="stable").tolist():
        cost, samples, part = heap[0]
        assigned[part].append(k)
        heapq.heapreplace(heap, (cost + float(price[k]), samples + 1, part))
    return [np.sort(np.array(shares, dtype=np.int64)) for shares in assigned]


def pack_batches(costs: ArrayLike, budget: float, multiple: int = 1) -> list[Integers]:
    """Return the samples of each batch, ascending, such that the costs [n] of no batch exceed the budget.

    A sample over the budget gets a batch of its own. The number of batches is the smallest multiple of `multiple` that
    allows this, so that so many ranks make equally many steps; the costliest batches come first, so that those of a
    step have similar costs. Raises InputError where so many batches are needed that one would be empty.
    """
    price = np.asarray(costs, dtype=float)
    if not budget > 0 or multiple < 1:
        raise InputError(f"batches: expected a budget and a multiple above zero, got {budget} and {multiple}")
    fewest = max(1, math.ceil(np.minimum(price, budget).sum() / budget))
    for parts in range(multiple * math.ceil(fewest / multiple), len(price) + 1, multiple):
        batches = balance_costs(price, parts)
        if all(len(batch) == 1 or price[batch].sum() <= budget for batch in batches):
            return sorted(batches, key=lambda batch: -price[batch].sum())
    raise InputError(
        f"batches: {len(price)} samples do not fill a multiple of {multiple} batches of at most {budget:g} each"
    )


def compute_imbalance(costs: ArrayLike, batches: Sequence[Integers], ranks: int) -> float:
    """Return the largest cost of a rank over the mean, averaged over steps of `ranks` batches; 1 is balanced."""
    price = np.asarray(costs, dtype=float)
    steps = np.array([price[batch].sum() for batch in batches]).reshape(-1, ranks)
    return float((steps.max(1) / steps.mean(1)).mean())
