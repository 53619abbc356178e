"""Means and ratios of errors over seeds and structures, with bootstrap intervals."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from harness.stats.intervals import Interval

Floats = NDArray[np.float64]
RESAMPLES = 1000
MIN_STRUCTURES = 5  # with fewer structures outside or inside, there is no estimate
KEYS = ["dataset", "index"]  # which identify a structure


def pivot_errors(structures: pd.DataFrame, column: str) -> pd.DataFrame:
    """Return the errors with a row per seed and a column per structure that has an error for every seed."""
    table = structures.pivot_table(index="seed", columns=KEYS, values=column, aggfunc="mean")
    return table.dropna(axis="columns")


def estimate_ratio(numerator: pd.DataFrame, denominator: pd.DataFrame) -> Interval:
    """Return the ratio of two mean errors with its 95% interval, from tables of `pivot_errors`.

    Seeds and structures are resampled independently. Both tables share the resampled seeds, and also the resampled
    structures if they contain the same ones. Only seeds of both tables count. With one seed, the interval is over
    structures alone. Without a seed, or with fewer structures than MIN_STRUCTURES in a table, the ratio is NaN.
    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), section 13.3 (percentile interval).

    Args:
        numerator: Absolute errors, a row per seed.
        denominator: Absolute errors, a row per seed.
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
    """Return energy errors per atom [k] without an offset, fitted to all structures but the one it is subtracted from.

    If the rule names elements, the offset is one energy for each atom of these elements; else, one for each atom. The
    errors of structures whose offset the others do not determine are NaN.

    Args:
        errors: [k] signed errors in eV/atom.
        shares: [k] share of atoms of elements that the rule names; all 0 if it names none.
    """
    x = shares if shares.any() else np.ones_like(shares)
    products, squares = x * errors, x * x
    rest = squares.sum() - squares
    offset = np.divide(products.sum() - products, rest, out=np.full_like(errors, np.nan), where=rest > 0)
    return np.asarray(errors - x * offset)
