"""Tables on multi-task against single-task training: the ratios of the errors of each head."""

from __future__ import annotations

from typing import Any

import pandas as pd

from harness.experiments.training.pairs import average_over_heads, pair_seeds
from harness.experiments.training.quantities import HEAD, QUANTITIES
from harness.results.tables import Columns, Table, interval_columns
from harness.stats.intervals import compute_geometric_mean_interval

PAIRS = Columns(
    "ablation_pairs",
    setup="setup recipe",
    head=HEAD,
    quantity="quantity",
    errors="seed multi_task single_task ratio",
)
HEADS = Columns(
    "ablation_heads",
    setup="setup recipe",
    head=HEAD,
    quantity="quantity",
    errors="seeds multi_task single_task ratio ratio_low ratio_high verdict",
)
OVERALL = Columns("ablation_overall", columns="setup recipe quantity heads seeds ratio ratio_low ratio_high")
# The largest ratio of multi-task to single-task error that does not count as worse.
TOLERANCE = 1.10


def build_ablation_tables(test_errors: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return the tables on multi-task against single-task training, from the held-out errors of every run.

    `ablation_pairs` has a row per multi-task setup, head, quantity and seed that both kinds of training have.
    `ablation_heads` has averages over seeds, and `ablation_overall` has averages over seeds and heads.
    """
    pairs = _build_pairs(test_errors)
    heads, overall = _average_over_seeds(pairs), _average_over_heads(pairs)
    return {"ablation_pairs": pairs, "ablation_heads": heads, "ablation_overall": overall}


def _build_pairs(test_errors: pd.DataFrame) -> Table:
    single_task = test_errors[test_errors["regime"] == "single-task"]
    multi_task = test_errors[test_errors["regime"] == "multi-task"]
    rows = []
    for (_, recipe, head), group in multi_task.groupby(["setup", "recipe", "head"], sort=False):
        baselines = single_task[(single_task["recipe"] == recipe) & (single_task["head"] == head)]
        sides = {"multi_task": group, "single_task": baselines}
        identity = {k: group.iloc[0][k] for k in (*PAIRS["setup"], *HEAD)}
        rows += [identity | row for quantity in QUANTITIES for row in pair_seeds(sides, quantity)]
    return PAIRS.build(rows)


def _average_over_seeds(pairs: pd.DataFrame) -> Table:
    """Return the mean errors over seeds, and the geometric mean over seeds of their ratio, with its 95% interval.

    The verdict is "worse" if the ratio is above TOLERANCE, "ok" if it is not, or "not finite".
    """
    groups = pairs.groupby(["setup", "head", "quantity"], sort=False)
    return HEADS.build(_compare(rows) for _, rows in groups)


def _compare(rows: pd.DataFrame) -> dict[str, Any]:
    ratio = compute_geometric_mean_interval(rows["ratio"].astype(float))
    verdict = "worse" if ratio.value > TOLERANCE else "ok" if ratio.value <= TOLERANCE else "not finite"
    return {
        **{k: rows.iloc[0][k] for k in (*HEADS["setup"], *HEAD, "quantity")},
        "seeds": ratio.n,
        "multi_task": rows["multi_task"].mean(skipna=False),
        "single_task": rows["single_task"].mean(skipna=False),
        **interval_columns("ratio", ratio),
        "verdict": verdict,
    }


def _average_over_heads(pairs: pd.DataFrame) -> Table:
    """Return the geometric mean of the ratio over heads and seeds, for the seeds for which all heads have errors."""
    rows = []
    for (setup, recipe, quantity), group in pairs.groupby(["setup", "recipe", "quantity"], sort=False):
        rows.append({"setup": setup, "recipe": recipe, "quantity": quantity, **average_over_heads(group)})
    return OVERALL.build(rows)
