"""Ratios of the errors of two kinds of training, from runs with equal seeds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from harness.experiments.training.quantities import Quantity, average_by_seed
from harness.results.tables import interval_columns
from harness.stats.intervals import compute_geometric_mean_interval


def pair_seeds(sides: Mapping[str, pd.DataFrame], quantity: Quantity) -> list[dict[str, Any]]:
    """Return a row per seed with the errors of both kinds of training and their ratio; no rows if there are no labels.

    Args:
        sides: The held-out errors of one head by the name of the column: first those that are divided, then those that
            divide.
        quantity: The quantity.
    """
    first, second = sides
    if sides[first][quantity.baseline_mae].isna().all() and sides[first][quantity.mae].isna().all():
        return []
    errors = {name: average_by_seed(rows, quantity.mae) for name, rows in sides.items()}
    pairs = pd.concat(errors, axis=1, join="inner").rename_axis("seed").reset_index()
    pairs["ratio"] = pairs[first] / pairs[second]
    return [{"quantity": quantity.name} | {str(k): v for k, v in row.items()} for row in pairs.to_dict("records")]


def average_over_heads(pairs: pd.DataFrame) -> dict[str, Any]:
    """Return the geometric mean of the ratio over heads and seeds, with its interval over seeds, as columns.

    Seeds for which a head has no errors are left out.
    """
    heads = pairs["head"].nunique()
    complete = [rows["ratio"].astype(float) for _, rows in pairs.groupby("seed") if rows["head"].nunique() == heads]
    ratio = compute_geometric_mean_interval(compute_geometric_mean_interval(ratios).value for ratios in complete)
    return {"heads": heads, "seeds": ratio.n, **interval_columns("ratio", ratio)}
