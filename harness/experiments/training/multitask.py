"""Multi-task against single-task training: errors of each head over those of a model for its dataset alone."""

from __future__ import annotations

from typing import Any

import pandas as pd

from harness.experiments.training.quantities import HEAD, QUANTITIES, Quantity, average_by_seed
from harness.results.tables import Columns, Table, interval_columns
from harness.stats.intervals import compute_geometric_mean_interval

PAIRS = Columns(
    "ablation_pairs",
    experiment="experiment recipe",
    head=HEAD,
    quantity="quantity",
    errors="seed multi_task single_task ratio",
)
HEADS = Columns(
    "ablation_heads",
    experiment="experiment recipe",
    head=HEAD,
    quantity="quantity",
    errors="seeds multi_task single_task ratio ratio_low ratio_high verdict",
)
OVERALL = Columns("ablation_overall", columns="experiment recipe quantity heads seeds ratio ratio_low ratio_high")
# The largest ratio of multi-task to single-task error that does not count as worse.
TOLERANCE = 1.10


def build_ablation_tables(test_errors: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return the tables on multi-task against single-task training, from the held-out errors of every run.

    ablation_pairs: a row per multi-task experiment, head, quantity and seed that both kinds of training have.
    ablation_heads: the same, averaged over seeds. ablation_overall: averaged over heads as well.
    """
    pairs = _build_pairs(test_errors)
    heads, overall = _average_over_seeds(pairs), _average_over_heads(pairs)
    return {"ablation_pairs": pairs, "ablation_heads": heads, "ablation_overall": overall}


def _build_pairs(test_errors: pd.DataFrame) -> Table:
    single_task = test_errors[test_errors["regime"] == "single-task"]
    multi_task = test_errors[test_errors["regime"] == "multi-task"]
    rows = []
    for (_, recipe, head), group in multi_task.groupby(["experiment", "recipe", "head"], sort=False):
        baselines = single_task[(single_task["recipe"] == recipe) & (single_task["head"] == head)]
        rows += [row for quantity in QUANTITIES for row in _pair_seeds(group, baselines, quantity)]
    return PAIRS.build(rows)


def _pair_seeds(multi_task: pd.DataFrame, single_task: pd.DataFrame, quantity: Quantity) -> list[dict[str, Any]]:
    """Return the errors of both kinds of training by seed, or no rows without labels."""
    if multi_task[quantity.baseline_mae].isna().all() and multi_task[quantity.mae].isna().all():
        return []
    both = {
        "multi_task": average_by_seed(multi_task, quantity.mae),
        "single_task": average_by_seed(single_task, quantity.mae),
    }
    pairs = pd.concat(both, axis=1, join="inner").rename_axis("seed").reset_index()
    pairs["ratio"] = pairs["multi_task"] / pairs["single_task"]
    first = multi_task.iloc[0]
    about = {k: first[k] for k in (*PAIRS["experiment"], *HEAD)} | {"quantity": quantity.name}
    return [about | {str(k): v for k, v in row.items()} for row in pairs.to_dict("records")]


def _average_over_seeds(pairs: pd.DataFrame) -> Table:
    """Return errors and the geometric mean over seeds of their ratio, with its 95% interval.

    verdict: "worse" if the ratio is above TOLERANCE, "ok", or "not finite".
    """
    groups = pairs.groupby(["experiment", "head", "quantity"], sort=False)
    return HEADS.build(_compare(rows) for _, rows in groups)


def _compare(rows: pd.DataFrame) -> dict[str, Any]:
    ratio = compute_geometric_mean_interval(rows["ratio"].astype(float))
    verdict = "worse" if ratio.value > TOLERANCE else "ok" if ratio.value <= TOLERANCE else "not finite"
    return {
        **{k: rows.iloc[0][k] for k in (*HEADS["experiment"], *HEAD, "quantity")},
        "seeds": ratio.n,
        "multi_task": rows["multi_task"].mean(skipna=False),
        "single_task": rows["single_task"].mean(skipna=False),
        **interval_columns("ratio", ratio),
        "verdict": verdict,
    }


def _average_over_heads(pairs: pd.DataFrame) -> Table:
    """Return the geometric mean over heads, for the seeds that have all heads."""
    rows = []
    for (experiment, recipe, quantity), group in pairs.groupby(["experiment", "recipe", "quantity"], sort=False):
        heads = group["head"].nunique()
        complete = [
            seed_rows["ratio"].astype(float)
            for _, seed_rows in group.groupby("seed")
            if seed_rows["head"].nunique() == heads
        ]
        ratio = compute_geometric_mean_interval(compute_geometric_mean_interval(ratios).value for ratios in complete)
        about = {"experiment": experiment, "recipe": recipe, "quantity": quantity, "heads": heads, "seeds": ratio.n}
        rows.append(about | interval_columns("ratio", ratio))
    return OVERALL.build(rows)
