"""Steps in interleaved rounds: each measures every commit once, so all share the state of the machine."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from harness.stats.changepoints.null_distribution import SEED
from harness.stats.changepoints.scan import explained, rank_sums
from harness.stats.changepoints.segmentation import Finding, better
from harness.stats.ranks import Floats, midranks

LEAST = 1  # commits that make a level: each has been measured in many rounds
VALUES, MOST_ORDERS, FEWEST_ORDERS = 3_000_000, 30_000, 4_000


def block_scores(rounds: Floats) -> Floats:
    """Ranks within each round of (rounds, n), standardised and summed over rounds, (n,): variance 1 under the null.

    Ties make the variance less, and the test careful.
    Source: Friedman, J. Am. Stat. Assoc. 32, 675 (1937). A missing value (NaN) counts as the middle of its round.
    """
    here = ~np.isnan(rounds)
    ranks = np.where(here, midranks(rounds), np.nan)
    count = here.sum(axis=1, keepdims=True)
    rows = count[:, 0] >= 2
    if not rows.any():
        return np.zeros(rounds.shape[1])
    ranks, count = ranks[rows], count[rows]
    z = (ranks - (count + 1) / 2) / np.sqrt((count**2 - 1) / 12)
    return np.nan_to_num(z).sum(axis=0) / np.sqrt(rows.sum())


def findings(pieces: Sequence[Floats], two: bool) -> list[Finding]:
    """The likeliest steps in each piece (rounds, n), with the p of a permutation test within rounds."""
    return [_finding(piece, two) for piece in pieces]


def _finding(piece: Floats, two: bool) -> Finding:
    rounds, n = piece.shape
    if n < 2:
        return Finding()
    z = block_scores(piece)[None]
    sums = rank_sums(z, LEAST)[0]
    one = Finding(_share_above(_null_of_one(rounds, n), sums.max()), (int(sums.argmax()) + LEAST,))
    if not two or n < 3:
        return one
    best, pair = explained(z, LEAST)
    return better(one, Finding(_share_above(_null_of_two(rounds, n), best[0]), tuple(pair[0].tolist())))


def _share_above(ordered: Floats, found: float) -> float:
    """The p of a permutation test: how many of the random orders give as much, the one found among them."""
    above = len(ordered) - np.searchsorted(ordered, found * (1 - 1e-9), side="left")
    return float((above + 1) / (len(ordered) + 1))


@lru_cache(maxsize=256)
def _null_of_one(rounds: int, n: int) -> Floats:
    return np.sort(rank_sums(_random_orders(rounds, n), LEAST).max(axis=1))


@lru_cache(maxsize=256)
def _null_of_two(rounds: int, n: int) -> Floats:
    return np.sort(explained(_random_orders(rounds, n), LEAST)[0])


def _random_orders(rounds: int, n: int) -> Floats:
    """Scores (orders, n) where every round is ordered at random, each by itself."""
    rng = np.random.default_rng([SEED, rounds, n])
    orders = min(max(VALUES // (rounds * n), FEWEST_ORDERS), MOST_ORDERS)
    levels = np.arange(n) - (n - 1) / 2
    levels /= levels.std()
    summed = np.zeros((orders, n))
    for _ in range(rounds):
        summed += levels[np.argsort(rng.random((orders, n)), axis=1)]
    return summed / np.sqrt(rounds)
