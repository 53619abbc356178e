"""Multi-task against single-task training: errors of each head over those of a model that was trained on it alone."""

from __future__ import annotations

from typing import Any

import pandas as pd

from harness.experiments.training.quantities import HEAD, QUANTITIES, Quantity, by_seed
from harness.results.tables import Columns, Table, interval_columns
from harness.stats.intervals import geometric_mean_interval

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
# How many times the single-task error the multi-task error may be before it counts as worse.
TOLERANCE = 1.10


def ablation_tables(held_out: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return the tables from the held-out errors of every run.

    ablation_pairs: a row per multi-task experiment, head, quantity and seed that both kinds of training have.
    ablation_heads: the same over all seeds. ablation_overall: over all heads as well.
    """
    pairs = _pairs(held_out)
    return {"ablation_pairs": pairs, "ablation_heads": _by_head(pairs), "ablation_overall": _over_heads(pairs)}


def _pairs(held_out: pd.DataFrame) -> Table:
    single_task = held_out[held_out["task"] == "single-task"]
    multi_task = held_out[held_out["task"] == "multi-task"]
    rows = []
    for (_, recipe, head), group in multi_task.groupby(["experiment", "recipe", "head"], sort=False):
        baselines = single_task[(single_task["recipe"] == recipe) & (single_task["head"] == head)]
        rows += [row for quantity in QUANTITIES for row in _pair_seeds(group, baselines, quantity)]
    return PAIRS.build(rows)


def _pair_seeds(multi_task: pd.DataFrame, single_task: pd.DataFrame, quantity: Quantity) -> list[dict[str, Any]]:
    """Return the errors of both by seed; none where there are no labels."""
    if multi_task[quantity.baseline_mae].isna().all() and multi_task[quantity.mae].isna().all():
        return []
    both = {"multi_task": by_seed(multi_task, quantity.mae), "single_task": by_seed(single_task, quantity.mae)}
    pairs = pd.concat(both, axis=1, join="inner").rename_axis("seed").reset_index()
    pairs["ratio"] = pairs["multi_task"] / pairs["single_task"]
    first = multi_task.iloc[0]
    about = {k: first[k] for k in (*PAIRS["experiment"], *HEAD)} | {"quantity": quantity.name}
    return [about | {str(k): v for k, v in row.items()} for row in pairs.to_dict("records")]


def _by_head(pairs: pd.DataFrame) -> Table:
    """Return errors and their ratio, the geometric mean over seeds with its 95% interval.

    verdict: "worse" where the multi-task error is larger by more than TOLERANCE, "ok", or "not finite".
    """
    groups = pairs.groupby(["experiment", "head", "quantity"], sort=False)
    return HEADS.build(_compare(rows) for _, rows in groups)


def _compare(rows: pd.DataFrame) -> dict[str, Any]:
    ratio = geometric_mean_interval(rows["ratio"].astype(float))
    verdict = "worse" if ratio.value > TOLERANCE else "ok" if ratio.value <= TOLERANCE else "not finite"
    return {
        **{k: rows.iloc[0][k] for k in (*HEADS["experiment"], *HEAD, "quantity")},
        "seeds": ratio.n,
        "multi_task": rows["multi_task"].mean(skipna=False),
        "single_task": rows["single_task"].mean(skipna=False),
        **interval_columns("ratio", ratio),
        "verdict": verdict,
    }


def _over_heads(pairs: pd.DataFrame) -> Table:
    """Return the geometric mean over heads, of those seeds that have all of them."""
    rows = []
    for (experiment, recipe, quantity), group in pairs.groupby(["experiment", "recipe", "quantity"], sort=False):
        heads = group["head"].nunique()
        complete = [
            of_seed["ratio"].astype(float) for _, of_seed in group.groupby("seed") if of_seed["head"].nunique() == heads
        ]
        ratio = geometric_mean_interval(geometric_mean_interval(ratios).value for ratios in complete)
        about = {"experiment": experiment, "recipe": recipe, "quantity": quantity, "heads": heads, "seeds": ratio.n}
        rows.append(about | interval_columns("ratio", ratio))
    return OVERALL.build(rows)
