"""Batches of equal cost: as many samples as a budget of atoms or edges allows, and ranks with level work."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from harness.reference.errors import InputError
from harness.reference.storage.sampling.permutations import Integers


def level(costs: ArrayLike, parts: int) -> list[Integers]:
    """Samples dealt to parts so that their costs are nearly equal: [n] costs -> for each part what it gets, ascending.

    The costliest first, each goes to the part with the least so far, of equal ones to that with the fewest samples, so
    that with as many samples as parts none goes empty. Source: Graham, SIAM J. Appl. Math. 17, 416 (1969): the
    costliest part is at most 4/3 of the best possible.
    """
    price = np.asarray(costs, dtype=float)
    heap = [(0.0, 0, k) for k in range(parts)]
    dealt: list[list[int]] = [[] for _ in range(parts)]
    for k in np.argsort(-price, kind="stable").tolist():
        cost, held, part = heap[0]
        dealt[part].append(k)
        heapq.heapreplace(heap, (cost + float(price[k]), held + 1, part))
    return [np.sort(np.array(own, dtype=np.int64)) for own in dealt]


def packed(costs: ArrayLike, budget: float, multiple: int = 1) -> list[Integers]:
    """Batches of at most the budget, [n] costs -> for each batch its samples, ascending; none is split or lost.

    A sample over the budget comes alone. The number of batches is the least multiple for which a level deal keeps the
    budget, so that `multiple` ranks make equally many steps; the costliest batches come first, so that those of a step
    are alike. Raises InputError where so many batches are needed that one would be empty.
    """
    price = np.asarray(costs, dtype=float)
    if not budget > 0 or multiple < 1:
        raise InputError(f"batches: expected a budget and a multiple above zero, got {budget} and {multiple}")
    fewest = max(1, math.ceil(np.minimum(price, budget).sum() / budget))
    for parts in range(multiple * math.ceil(fewest / multiple), len(price) + 1, multiple):
        batches = level(price, parts)
        if all(len(own) == 1 or price[own].sum() <= budget for own in batches):
            return sorted(batches, key=lambda own: -price[own].sum())
    raise InputError(
        f"batches: {len(price)} samples do not fill a multiple of {multiple} batches of at most {budget:g} each"
    )


def imbalance(costs: ArrayLike, batches: Sequence[Integers], ranks: int) -> float:
    """The largest cost of a rank over the mean of all, averaged over steps of `ranks` batches each; 1 is level."""
    price = np.asarray(costs, dtype=float)
    steps = np.array([price[own].sum() for own in batches]).reshape(-1, ranks)
    return float((steps.max(1) / steps.mean(1)).mean())
