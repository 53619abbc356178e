"""Means and ratios of errors over seeds and structures, with bootstrap intervals."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from harness.stats.intervals import Interval

Floats = NDArray[np.float64]
RESAMPLES = 1000
MIN_STRUCTURES = 5  # with fewer structures outside, there is no estimate
KEYS = ["dataset", "index"]


def pivot_errors(structures: pd.DataFrame, column: str) -> pd.DataFrame:
    """Return the errors with a row per seed and a column per structure; structures without a value are left out."""
    table = structures.pivot_table(index="seed", columns=KEYS, values=column, aggfunc="mean")
    return table.dropna(axis="columns")


def estimate_ratio(numerator: pd.DataFrame, denominator: pd.DataFrame) -> Interval:
    """Return the ratio of two mean errors with its 95% interval, from tables of `pivot_errors`.

    Seeds and structures are resampled independently; seeds, and structures that both tables contain, are resampled
    together. Only seeds of both tables count. With one seed, the interval is over structures alone.
    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), section 13.3 (percentile interval).

    Args:
        numerator: Errors, a row per seed.
        denominator: Errors, a row per seed.
    """
    seeds = numerator.index.intersection(denominator.index)
    is_paired = numerator.columns.equals(denominator.columns)
    if not len(seeds) or min(numerator.shape[1], denominator.shape[1]) < MIN_STRUCTURES:
        return Interval(np.nan, np.nan, np.nan, 0.0, len(seeds))
    above, below = (table.loc[seeds].to_numpy(dtype=float) for table in (numerator, denominator))
    rng = np.random.default_rng(0)
    by_seed, by_structure = _draw_weights(rng, len(seeds)), _draw_weights(rng, above.shape[1])
    other = by_structure if is_paired else _draw_weights(rng, below.shape[1])
    ratios = _average(above, by_seed, by_structure) / _average(below, by_seed, other)
    low, high = np.quantile(ratios, [0.025, 0.975])
    return Interval(float(above.mean() / below.mean()), float(low), float(high), 0.95, len(seeds))


def _draw_weights(rng: np.random.Generator, count: int) -> Floats:
    """Return the weights of `count` items in each resample, [r, count], which sum to 1."""
    return np.asarray(rng.multinomial(count, np.full(count, 1.0 / count), RESAMPLES) / count, dtype=np.float64)


def _average(errors: Floats, by_seed: Floats, by_structure: Floats) -> Floats:
    """Return the weighted mean of errors [seeds, structures] in each resample, [r]."""
    return np.asarray(((by_seed @ errors) * by_structure).sum(axis=1))


def remove_offset(errors: Floats, shares: Floats) -> Floats:
    """Return energy errors per atom [k] without one energy per atom, fitted to the other structures.

    Each structure is predicted by a fit to all others (leave one out), so that its own error does not reduce itself. If
    the rule names elements, the offset is an energy per atom of them; otherwise it is an energy per atom.

    Args:
        errors: Signed errors in eV/atom.
        shares: Share of atoms of elements that the rule names; all 0 if it names none.
    """
    x = shares if shares.any() else np.ones_like(shares)
    products, squares = x * errors, x * x
    rest = squares.sum() - squares
    offset = np.divide(products.sum() - products, rest, out=np.full_like(errors, np.nan), where=rest > 0)
    return np.asarray(errors - x * offset)
