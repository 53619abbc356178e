"""Find ranks that are slower than the others, from repeated measurements of each."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special  # type: ignore[import-untyped]

from harness.stats import Floats

# With fewer ranks, the median does not show which of them is the exception: no rank is slow.
MIN_RANKS = 4
# At most this share of the ranks can be slow; the others show how much equally fast ranks differ.
MAX_SHARE = 0.25
# The score of a slow rank is below the median by at least this share of it.
MIN_LOSS = 0.1
# The score of a rank is this quantile of its rates. Other processes can slow a rank down, but nothing makes it faster
# than it is; a quarter of the rounds without a disturbance therefore suffices.
QUANTILE = 0.75
# The prior for how much equally fast ranks differ: the standard deviation of the logarithms of their scores, and its
# weight as a number of ranks.
USUAL_SPREAD, USUAL_RANKS = 0.03, 10
# The probability that a test of equally fast ranks, with lognormally distributed rates, finds any of them slow.
FALSE_ALARMS = 5e-4


@dataclass(frozen=True)
class RankScores:
    """The scores of ranks.

    Attributes:
        relative: The score of each rank: the QUANTILE of its rates, divided by the median of this quantile over the
            ranks; NaN if the rank has no rate.
        limit: The score below which a rank is slow, at most 1 - MIN_LOSS.
        is_slow: Whether each rank is slow.
    """

    relative: Floats
    limit: float
    is_slow: NDArray[np.bool_]


def score_ranks(rates: Floats, false_alarms: float = FALSE_ALARMS) -> RankScores:
    """Return the scores of ranks, and which ranks are slow.

    A rank is slow if its score is below the limit in all rounds together, in the first half of them, and in the second
    half, so that a disturbance that ends during the test is not taken for a slow rank. A half without a rate does not
    count, and a rank without any is not slow.

    Args:
        rates: Rates [ranks, rounds] in any unit; NaN for a round that a rank has not measured.
        false_alarms: The probability that a test of equally fast ranks finds any of them slow.
    """
    relative = _score(rates)
    limit = min(1.0 - MIN_LOSS, _find_limit(relative[np.isfinite(relative)], false_alarms))
    middle = rates.shape[1] // 2
    parts = (rates[:, :middle], rates[:, middle:]) if middle else ()
    is_slow = np.all([relative < limit, *(~(_score(part) >= limit) for part in parts)], axis=0)
    return RankScores(relative, limit, is_slow & (len(rates) >= MIN_RANKS))


def _score(rates: Floats) -> Floats:
    """Return the scores [ranks] relative to their median."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All-NaN slice", RuntimeWarning)
        scores = np.nanquantile(rates, QUANTILE, axis=1)
    return np.asarray(scores / np.nanmedian(scores))


def _find_limit(relative: Floats, false_alarms: float) -> float:
    """Return the score below which a rank is too slow to be the slowest of equally fast ranks.

    The k slowest ranks are compared with the mean and the standard deviation of the logarithms of the others, for each
    k up to MAX_SHARE of the ranks; the largest k whose fastest rank is an outlier counts, so that several slow ranks do
    not hide each other. Sources: Rosner, Technometrics 25, 165 (1983), for outliers on one side; Smyth, Stat. Appl.
    Genet. Mol. Biol. 3, 3 (2004), for the weight of the usual variance.

    Args:
        relative: Scores [ranks], without NaN.
        false_alarms: The probability of any outlier among equally fast ranks.
    """
    if len(relative) < MIN_RANKS:
        return 0.0
    logarithms = np.sort(np.log(relative))[::-1]
    # element i of each array below is for k = i + 1
    slow = np.arange(1, max(1, int(MAX_SHARE * len(relative))) + 1)
    others = len(relative) - slow
    means = np.cumsum(logarithms)[others - 1] / others
    squares = np.cumsum(np.square(logarithms))[others - 1] / others
    sums = np.maximum(squares - np.square(means), 0.0) * others
    freedom = USUAL_RANKS + others - 1
    variances = (USUAL_RANKS * USUAL_SPREAD**2 + sums) / freedom
    deviations = -special.stdtrit(freedom, false_alarms / (others + 1))
    limits = means - deviations * np.sqrt(variances * (1.0 + 1.0 / others))
    outliers = np.flatnonzero(logarithms[others] < limits)
    return float(np.exp(limits[outliers[-1] if len(outliers) else 0]))
