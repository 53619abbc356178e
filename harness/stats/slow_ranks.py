"""Find ranks that are slower than the others, from repeated measurements of each."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special  # type: ignore[import-untyped]

from harness.stats import Floats

# With fewer ranks, the median does not show which of them is the exception.
MIN_RANKS = 4
# A slow rank is below the median by at least this share.
MIN_LOSS = 0.1
# The probability that a test of equally fast ranks, with normally distributed rates, finds any of them slow.
FALSE_ALARMS = 1e-3
# The standard deviation of normally distributed numbers divided by their median absolute deviation.
SIGMA_PER_MAD = 1.4826


@dataclass(frozen=True)
class RankScores:
    """The scores of ranks.

    Attributes:
        relative: The score of each rank: its median rate divided by the median over ranks; NaN without a rate.
        limit: The score below which a rank is slow.
        is_slow: Whether each rank is slow.
    """

    relative: Floats
    limit: float
    is_slow: NDArray[np.bool_]


def score_ranks(rates: Floats) -> RankScores:
    """Return the scores of ranks, and which ranks are slow.

    A rank is slow if its score is below the limit in all rounds together, in the first half of them, and in the second
    half, so that a disturbance that ends during the test is not taken for a slow rank. A half without a rate does not
    count, and a rank without any is not slow.

    Args:
        rates: Rates [ranks, rounds]; NaN for a round that a rank has not measured.
    """
    relative = _score(rates)
    deviation = SIGMA_PER_MAD * float(np.nanmedian(np.abs(relative - 1.0)))
    deviations = -float(special.ndtri(FALSE_ALARMS / len(rates)))
    limit = 1.0 - max(MIN_LOSS, deviations * deviation)
    middle = rates.shape[1] // 2
    parts = (rates[:, :middle], rates[:, middle:]) if middle else ()
    is_slow = np.all([relative < limit, *(~(_score(part) >= limit) for part in parts)], axis=0)
    return RankScores(relative, limit, is_slow & (len(rates) >= MIN_RANKS))


def _score(rates: Floats) -> Floats:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All-NaN slice", RuntimeWarning)
        medians = np.nanmedian(rates, axis=1)
    return np.asarray(medians / np.nanmedian(medians))
