"""Detect changes of level in measurements over commits, with few false alarms for any distribution of the noise.

A series with one value per commit is replaced by the ranks of its values and scanned for steps. Interleaved rounds,
each of which measures every commit once, are ranked within each round, since all commits of a round share the machine's
state.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike

from harness.stats import Floats
from harness.stats.changepoints.null_distribution import (
    SEED,
    Scanner,
    compute_p_values,
    simulate_null_distribution_with_ties,
)
from harness.stats.changepoints.scan import (
    compute_rank_scores,
    compute_rank_sums,
    find_best_levels,
    scan_one_step,
    scan_two_steps,
)
from harness.stats.changepoints.segmentation import Detection, combine_detections, segment
from harness.stats.intervals import compute_median_interval
from harness.stats.two_sample import TwoSampleEstimate, estimate_ratio

MIN_ALPHA = 0.001
MIN_LENGTH, MIN_LENGTH_FOR_TWO = 8, 12  # minimum number of values of a search for one step, or for two
MAX_TIED_SHARE = 0.3  # a series with a larger share of equal values needs a separate null distribution
TIE_CHECK_P = 0.05  # the separate null distribution is only simulated below this p
MIN_COMMITS = 1  # one commit can form a level of interleaved rounds, since many rounds measure it
# Limits of a simulation of random orders: total number of values, and largest and smallest number of orders.
SIMULATED_VALUES, MAX_ORDERS, MIN_ORDERS = 3_000_000, 30_000, 4_000


@dataclass(frozen=True)
class ChangePoint:
    """A change of level.

    Attributes:
        index: Index of the first value of the new level.
        p: Probability that a series without a change shows as strong a change anywhere.
        shift: Ratio of the level after the change to the level before it; its p assumes that the index was known.
    """

    index: int
    p: float
    shift: TwoSampleEstimate[float]


def detect_change_points(values: ArrayLike, alpha: float = 0.01) -> list[ChangePoint]:
    """Detect changes of level in one series.

    With noise of lag-1 correlation 0.5, a series of 60 values gives 2 to 3 times as many false alarms as alpha implies,
    and shorter series give more (reports/measured/detection). Rounds remove the drift between rounds. To detect a
    change between two commits, 8 rounds are needed at alpha 0.01, and 6 at 0.05. Within a round, commits must be in
    random order, since an effect of the order is not removed.

    Args:
        values: One value per commit (n,), or interleaved rounds (rounds, n), each of which measures every commit once;
            NaN is a missing value.
        alpha: Probability of a false alarm in a series without a change, for any distribution and scale of its values.

    Raises:
        ValueError: alpha is below 0.001, which the simulated null distributions do not resolve, or not below 1.
    """
    _check_alpha(alpha)
    x = np.asarray(values, dtype=float)
    if x.ndim == 1 or len(x) == 1:
        return detect_in_each(x.reshape(1, -1), alpha)[0]
    measured = np.flatnonzero(~np.isnan(x).all(axis=0))
    block = x[:, measured]
    return [
        ChangePoint(
            int(measured[step.start]),
            step.p,
            _estimate_ratio_of_rounds(block[:, step.before], block[:, step.after], step.p),
        )
        for step in segment([block], _detect_in_rounds, alpha)[0]
    ]


def detect_in_each(series: ArrayLike, alpha: float = 0.01) -> list[list[ChangePoint]]:
    """Detect changes of level in each of m series with one value per commit; see detect_change_points.

    Args:
        series: Values (m, n); NaN is a missing value.
        alpha: Probability of a false alarm in each series.

    Returns:
        The change points of each series.
    """
    _check_alpha(alpha)
    x = np.asarray(series, dtype=float)
    measured = [np.flatnonzero(~np.isnan(row)) for row in x]
    rows = [row[indices] for row, indices in zip(x, measured, strict=True)]
    return [
        [
            ChangePoint(int(indices[step.start]), step.p, estimate_ratio(row[step.before], row[step.after]))
            for step in steps
        ]
        for row, indices, steps in zip(rows, measured, segment(rows, _detect_in_series, alpha), strict=True)
    ]


def _check_alpha(alpha: float) -> None:
    if not MIN_ALPHA <= alpha < 1:
        raise ValueError(f"alpha is {alpha:g}; it must be at least {MIN_ALPHA:g} and below 1")


def _detect_in_series(segments: Sequence[Floats], search_two: bool) -> list[Detection]:
    """Return the likeliest steps in each segment (n,); segments of one length are scanned together."""
    detections = [Detection()] * len(segments)
    by_length = defaultdict(list)
    for i, values in enumerate(segments):
        by_length[len(values)].append(i)
    for n, members in by_length.items():
        if n < MIN_LENGTH:
            continue
        rows = np.stack([segments[i] for i in members])
        best = _scan(scan_one_step, rows)
        if search_two and n >= MIN_LENGTH_FOR_TWO:
            best = [combine_detections(*pair) for pair in zip(best, _scan(scan_two_steps, rows), strict=True)]
        for i, detection in zip(members, best, strict=True):
            detections[i] = detection
    return detections


def _scan(scanner: Scanner, rows: Floats) -> list[Detection]:
    """Return the detection of each row (m, n); rows with many equal values get a null distribution with these ties."""
    scan = scanner(compute_rank_scores(rows))
    p = compute_p_values(scanner, scan, rows.shape[1])
    for i in np.flatnonzero(p <= TIE_CHECK_P).tolist():
        tie_sizes = tuple(np.unique(rows[i], return_counts=True)[1].tolist())
        if max(tie_sizes) > MAX_TIED_SHARE * rows.shape[1]:
            p[i] = max(
                p[i], simulate_null_distribution_with_ties(scanner, tie_sizes).compute_p_values(scan.row(i)).item()
            )
    return [Detection(*pair) for pair in zip(p.tolist(), map(tuple, scan.starts.tolist()), strict=True)]


def _detect_in_rounds(segments: Sequence[Floats], search_two: bool) -> list[Detection]:
    """Return the likeliest steps in each segment (rounds, n), with the p of a permutation test within rounds."""
    return [_detect_in_block(block, search_two) for block in segments]


def _detect_in_block(block: Floats, search_two: bool) -> Detection:
    """Return the likeliest step, or pair of steps, in interleaved rounds (rounds, n)."""
    rounds, n = block.shape
    if n < 2:
        return Detection()
    z = _compute_friedman_scores(block)[None]
    sums = compute_rank_sums(z, MIN_COMMITS)[0]
    one_step = Detection(
        _compute_permutation_p(_get_null_of_one_step(rounds, n), sums.max()), (int(sums.argmax()) + MIN_COMMITS,)
    )
    if not search_two or n < 3:
        return one_step
    between, pair = find_best_levels(z, MIN_COMMITS)
    return combine_detections(
        one_step,
        Detection(_compute_permutation_p(_get_null_of_two_steps(rounds, n), between[0]), tuple(pair[0].tolist())),
    )


def _compute_friedman_scores(block: Floats) -> Floats:
    """Return ranks within each round of (rounds, n), standardized and summed over rounds, (n,).

    The variance of the scores is 1 under the null hypothesis; ties lower it, which makes the test conservative. A
    missing value (NaN) counts as the middle of its round. Source: Friedman, J. Am. Stat. Assoc. 32, 675 (1937).
    """
    from scipy.stats import rankdata  # type: ignore[import-untyped]  # importing it takes most of a second

    count = (~np.isnan(block)).sum(axis=1, keepdims=True)
    usable = count[:, 0] >= 2
    if not usable.any():
        return np.zeros(block.shape[1])
    ranks, count = rankdata(block[usable], axis=1, nan_policy="omit"), count[usable]
    z = (ranks - (count + 1) / 2) / np.sqrt((count**2 - 1) / 12)
    return np.nan_to_num(z).sum(axis=0) / np.sqrt(usable.sum())


def _compute_permutation_p(ordered: Floats, statistic: float) -> float:
    """Return the share of orders whose statistic is at least as large, among random orders and the observed one."""
    above = len(ordered) - np.searchsorted(ordered, statistic * (1 - 1e-9), side="left")
    return float((above + 1) / (len(ordered) + 1))


@lru_cache(maxsize=256)
def _get_null_of_one_step(rounds: int, n: int) -> Floats:
    return np.sort(compute_rank_sums(_draw_random_scores(rounds, n), MIN_COMMITS).max(axis=1))


@lru_cache(maxsize=256)
def _get_null_of_two_steps(rounds: int, n: int) -> Floats:
    return np.sort(find_best_levels(_draw_random_scores(rounds, n), MIN_COMMITS)[0])


def _draw_random_scores(rounds: int, n: int) -> Floats:
    """Return scores (orders, n) of rounds that are each ordered at random."""
    rng = np.random.default_rng([SEED, rounds, n])
    orders = min(max(SIMULATED_VALUES // (rounds * n), MIN_ORDERS), MAX_ORDERS)
    levels = np.arange(n) - (n - 1) / 2
    levels /= levels.std()
    total = np.zeros((orders, n))
    for _ in range(rounds):
        total += levels[np.argsort(rng.random((orders, n)), axis=1)]
    return total / np.sqrt(rounds)


def _estimate_ratio_of_rounds(before: Floats, after: Floats, p: float) -> TwoSampleEstimate[float]:
    """Return the median over rounds of the ratio of after (rounds, n_b) to before (rounds, n_a) within each round."""
    is_complete = ~(np.isnan(before).all(axis=1) | np.isnan(after).all(axis=1))
    with np.errstate(divide="ignore", invalid="ignore"):
        log_ratio = np.log(np.nanmedian(after[is_complete], axis=1)) - np.log(np.nanmedian(before[is_complete], axis=1))
    interval = compute_median_interval(log_ratio[~np.isnan(log_ratio)].tolist())
    estimate, low, high = np.exp([interval.value, interval.low, interval.high]).tolist()
    return TwoSampleEstimate(
        estimate=estimate, low=low, high=high, p=p, coverage=interval.coverage, n_a=_count(before), n_b=_count(after)
    )


def _count(block: Floats) -> int:
    return int((~np.isnan(block)).sum())
