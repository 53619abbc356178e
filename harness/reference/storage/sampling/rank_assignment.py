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
    """Return the weight of each dataset, proportional to count ** (1 / temperature), [d]; weights sum to 1.

    At temperature 1, weights are proportional to size; at infinity, they are equal. Raises InputError for an empty
    dataset and for a temperature that is not positive.
    """
    if not counts or min(counts) < 1:
        raise InputError(f"sampling: every dataset needs at least one sample, got {list(counts)}")
    if not temperature > 0:
        raise InputError(f"sampling: the temperature must be positive, got {temperature}")
    logs = np.log(np.asarray(counts, dtype=float)) / temperature
    raw = np.exp(logs - logs.max())
    return raw / raw.sum()


def compute_loss_weights(
    counts: Sequence[int], draws: ArrayLike, temperature: float | None = None
) -> NDArray[np.float64]:
    """Return the weight in the loss of the samples of each dataset, [d]; its mean over all draws is 1.

    With these weights, the expected loss is that of unweighted samples that are drawn at the temperature.

    Args:
        counts: [d] number of samples of each dataset.
        draws: [d] number of draws from each dataset per epoch.
        temperature: As in `compute_weights`; None: all weights are 1.
    """
    if temperature is None:
        return np.ones(len(counts))
    shares = np.asarray(draws, dtype=float) / np.sum(draws)
    return compute_weights(counts, temperature) / shares


def round_shares(shares: ArrayLike, total: int, at_least: int = 0) -> Integers:
    """Divide a total into integers in proportion to shares, by the largest-remainder method.

    Args:
        shares: [d] the proportions.
        total: The sum of the result.
        at_least: The smallest allowed integer.

    Returns:
        [d] integers; of equal remainders, the first is rounded up.

    Raises:
        InputError: The total is too small.
    """
    proportions = np.asarray(shares, dtype=float)
    divisible = total - at_least * len(proportions)
    if divisible < 0:
        raise InputError(f"sampling: {total} is too few for {len(proportions)} datasets with at least {at_least} each")
    quota = proportions / proportions.sum() * divisible
    rounded = np.floor(quota).astype(np.int64)
    rounded[np.argsort(rounded - quota, kind="stable")[: divisible - int(rounded.sum())]] += 1
    return rounded + at_least


@dataclass(frozen=True)
class RankGroup:
    """A group of ranks, first..first + size - 1, that divide the samples of the same datasets among themselves."""

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
        """Return the datasets that a rank serves: one, or several if there are fewer ranks than datasets."""
        return self.find_group(rank).datasets

    @property
    def ranks_per_dataset(self) -> tuple[int, ...]:
        """The number of ranks that serve each dataset, [d]."""
        sizes = {d: g.size for g in self.groups for d in g.datasets}
        return tuple(sizes[d] for d in range(len(sizes)))


def assign_ranks(counts: Sequence[int], ranks: int, temperature: float = 1.0) -> Assignment:
    """Assign at least one rank to each dataset, and further ranks in proportion to the weights of the datasets.

    With fewer ranks than datasets, each dataset, the largest first, is assigned to the rank with the smallest weight so
    far; a rank then draws from its datasets in proportion to their weights.

    Args:
        counts: [d] number of samples of each dataset.
        ranks: Number of ranks.
        temperature: As in `compute_weights`.

    Raises:
        InputError: There are no ranks.
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
    """Divide samples into parts with nearly equal costs.

    Each sample, the costliest first, goes to the part with the lowest cost so far; if several parts have this cost, it
    goes to the one with the fewest samples. No part is empty if there are at least as many samples as parts. Source:
    Graham, SIAM J. Appl. Math. 17, 416 (1969): the costliest part costs at most 4/3 of the optimum.

    Args:
        costs: [n] cost of each sample.
        parts: Number of parts.

    Returns:
        The indices of the samples of each part, ascending.
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
    """Pack samples into batches whose costs do not exceed a budget.

    A sample that exceeds the budget gets its own batch. The costliest batches come first, so that the batches of a step
    have similar costs.

    Args:
        costs: [n] cost of each sample.
        budget: Maximum cost of a batch.
        multiple: The number of batches is a multiple of this number, such as the number of ranks.

    Returns:
        The indices of the samples of each batch, ascending; as few batches as `balance_costs` keeps within the budget.

    Raises:
        InputError: So many batches are needed that one would be empty.
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
    """Return the ratio of the largest to the mean cost of the ranks, averaged over steps; 1 means perfect balance.

    Args:
        costs: [n] cost of each sample.
        batches: The samples of each rank in the first step, then of each rank in the next step, and so on.
        ranks: Number of ranks.
    """
    price = np.asarray(costs, dtype=float)
    steps = np.array([price[batch].sum() for batch in batches]).reshape(-1, ranks)
    return float((steps.max(1) / steps.mean(1)).mean())
