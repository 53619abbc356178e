"""Measures of a risk: how well it finds large errors, and what remains if predictions with a large risk are refused."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata  # type: ignore[import-untyped]

Values = NDArray[np.float64]


def compute_auroc(risk: Values, is_large: NDArray[np.bool_]) -> float:
    """Return the probability that a large error has a larger risk than a small error, where equal risks count half.

    It is the area under the receiver operating characteristic, and NaN if all errors are large or all are small.
    """
    large, small = int(is_large.sum()), int((~is_large).sum())
    if not large or not small:
        return float("nan")
    return float((rankdata(risk)[is_large].sum() - large * (large + 1) / 2) / (large * small))


def compute_retained_errors(risk: Values, error: Values) -> tuple[Values, Values]:
    """Return the mean and the largest error of the k predictions with the smallest risks, for k = 1 to n, [n] each."""
    ordered = error[np.argsort(risk, kind="stable")]
    return np.cumsum(ordered) / np.arange(1, len(ordered) + 1), np.maximum.accumulate(ordered)


def compute_roc(risk: Values, is_large: NDArray[np.bool_]) -> tuple[Values, Values]:
    """Return the ROC curve: shares of small and of large errors whose risk is at least each limit, as limits decrease.

    The curve begins at the origin. Errors with equal risks form one point, so that the area is that of `compute_auroc`.
    Shares are NaN without errors of their kind.
    """
    limits = np.unique(risk)[::-1]
    return _compute_shares_at_least(limits, risk[~is_large]), _compute_shares_at_least(limits, risk[is_large])


def _compute_shares_at_least(limits: Values, values: Values) -> Values:
    """Return 0, and then the share of values that are at least each limit."""
    if not len(values):
        return np.full(len(limits) + 1, np.nan)
    below = np.searchsorted(np.sort(values), limits, side="left")
    return np.r_[0.0, (len(values) - below) / len(values)]
