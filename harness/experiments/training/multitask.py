"""Multi-task against single-task training: errors of each head beside those of a model that learnt it alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd

from harness.experiments.training.metrics import ABOUT, QUANTITIES, Quantity, by_seed, spread
from harness.stats.means import geometric_interval

PAIRS = ("experiment", "recipe", *ABOUT, "quantity", "seed", "multi_task", "single_task", "ratio")
ABLATION = (
    "experiment", "recipe", *ABOUT, "quantity", "seeds", "multi_task", "single_task", "ratio", "ratio_low",
    "ratio_high", "verdict",
)  # fmt: skip
OVERALL = ("experiment", "recipe", "quantity", "heads", "seeds", "ratio", "ratio_low", "ratio_high")
# How much larger than its twin's an error may be before it counts as worse.
TOLERANCE = 1.10


@dataclass(frozen=True)
class AblationTables:
    """pairs: a row a multi-task experiment, head, quantity and seed that both kinds of training have.

    heads: the same over all seeds. overall: over all heads as well.
    """

    pairs: pd.DataFrame
    heads: pd.DataFrame
    overall: pd.DataFrame


def ablation_tables(held_out: pd.DataFrame) -> AblationTables:
    """All tables from the held-out errors of every run."""
    pairs = _all_pairs(held_out)
    return AblationTables(pairs, _by_head(pairs), _over_heads(pairs))


def _all_pairs(held_out: pd.DataFrame) -> pd.DataFrame:
    alone = held_out[held_out["task"] == "single-task"]
    joint = held_out[held_out["task"] == "multi-task"]
    rows = []
    for (_, recipe, head), own in joint.groupby(["experiment", "recipe", "head"], sort=False):
        twins = alone[(alone["recipe"] == recipe) & (alone["head"] == head)]
        rows += [row for quantity in QUANTITIES for row in _pairs(own, twins, quantity)]
    return pd.DataFrame(rows, columns=PAIRS)


def _pairs(own: pd.DataFrame, twins: pd.DataFrame, quantity: Quantity) -> list[dict[str, Any]]:
    """Errors of both by seed; none where there are no labels."""
    if own[quantity.baseline_mae].isna().all() and own[quantity.mae].isna().all():
        return []
    both = {"multi_task": by_seed(own, quantity.mae), "single_task": by_seed(twins, quantity.mae)}
    found = pd.concat(both, axis=1, join="inner").rename_axis("seed").reset_index()
    about = {k: own.iloc[0][k] for k in ("experiment", "recipe", *ABOUT)} | {"quantity": quantity.name}
    found["ratio"] = found["multi_task"] / found["single_task"]
    return [about | {str(k): v for k, v in row.items()} for row in found.to_dict("records")]


def _by_head(pairs: pd.DataFrame) -> pd.DataFrame:
    """Errors and their ratio, the geometric mean over seeds with 95% interval.

    verdict: "worse" where the multi-task error is larger by more than TOLERANCE, "ok", or "not finite".
    """
    groups = pairs.groupby(["experiment", "head", "quantity"], sort=False)
    return pd.DataFrame([_compared(own) for _, own in groups], columns=ABLATION)


def _compared(own: pd.DataFrame) -> dict[str, Any]:
    ratio = geometric_interval(own["ratio"].astype(float))
    verdict = "worse" if ratio.value > TOLERANCE else "ok" if ratio.value <= TOLERANCE else "not finite"
    return {
        **{k: own.iloc[0][k] for k in ("experiment", "recipe", *ABOUT, "quantity")},
        "seeds": ratio.n,
        "multi_task": own["multi_task"].mean(skipna=False),
        "single_task": own["single_task"].mean(skipna=False),
        **spread("ratio", ratio),
        "verdict": verdict,
    }


def _over_heads(pairs: pd.DataFrame) -> pd.DataFrame:
    """The geometric mean over heads, of those seeds that have all of them."""
    rows = []
    for (experiment, recipe, quantity), own in pairs.groupby(["experiment", "recipe", "quantity"], sort=False):
        heads = own["head"].nunique()
        whole = [o["ratio"].astype(float) for _, o in own.groupby("seed") if o["head"].nunique() == heads]
        ratio = geometric_interval(geometric_interval(ratios).value for ratios in whole)
        common = {"experiment": experiment, "recipe": recipe, "quantity": quantity, "heads": heads, "seeds": ratio.n}
        rows.append({**common, **spread("ratio", ratio)})
    return pd.DataFrame(rows, columns=OVERALL)
