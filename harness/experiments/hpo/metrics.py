"""Tables on hyperparameter searches: trials, best configurations, and the importance of each hyperparameter.

A search logs the facts `search`, `warm_start` and `overhead`, and an event `trial` for each trial that has ended,
whatever its state. An interrupted search is evaluated like a complete one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from harness.experiments.experiment import THROUGHPUT, Metric, MetricSamples, WorkCount, select_numbers
from harness.protocol.types import Scope
from harness.results.runs import RunRecord
from harness.results.tables import Columns

STATES = ("done", "pruned", "failed", "diverged", "timeout", "lost")
SEARCHES = Columns(
    "hpo_searches",
    search="campaign suite system case id search state max_trials trials",
    states=STATES,
    totals="earlier_trials_received earlier_trials_excluded best_objective elapsed_h node_hours trial_s optimizer_s"
    " optimizer_time_fraction stand_ins",
    folder="folder",
)
TRIALS = Columns(
    "hpo_trials",
    search="campaign case search",
    event="trial backbone state reason objective energy_mae_ev_per_atom force_mae_ev_per_angstrom structures_per_s"
    " epochs",
    times="start_h end_h node_hours cumulative_node_hours",
    standing="best_so_far is_pareto_optimal",
    run="nodes configuration folder",
)
POINTS = Columns(
    "hpo_points", search="campaign case search", value="trial objective hyperparameter value normalized_value"
)
IMPORTANCE = Columns(
    "hpo_importance",
    search="campaign case search",
    value="hyperparameter kind trials explained_variance direction p_value",
)
# The mean of the energy error per atom and the force error, in eV and eV/angstrom.
BEST_ERROR = Metric("best trial's error", "", "lower")
# Searches with fewer trials have no importance of hyperparameters.
MIN_TRIALS = 5
# The number of random permutations from which a p value is computed.
PERMUTATIONS = 2000


def build_tables(records: Sequence[RunRecord]) -> dict[str, pd.DataFrame]:
    """Return the tables on searches; missing values are NaN or None.

    `hpo_searches` has a row per search, and `hpo_trials` a row per trial in the order in which trials ended. `hpo_best`
    has the trial with the highest objective of each search and backbone. `hpo_points` has a row per trial and
    hyperparameter. For `hpo_importance`, see `rank_importance`.
    """
    runs = [r for r in records if r.program == "hpo" and r.events("trial")]
    trials = TRIALS.build(row for r in runs for row in _list_trials(r))
    trials["is_pareto_optimal"] = False
    for _, group in trials.groupby("campaign"):
        objectives, rates = (group[k].to_numpy(dtype=float) for k in ("objective", "structures_per_s"))
        trials.loc[group.index, "is_pareto_optimal"] = find_pareto_front(objectives, rates)
    points = POINTS.build(row for r in runs for row in _list_points(r))
    best = trials[trials["objective"].notna()].sort_values("objective", ascending=False, kind="stable")
    best = best.drop_duplicates(["campaign", "case", "backbone"]).sort_values(["campaign", "case"], kind="stable")
    return {
        "hpo_searches": SEARCHES.build(_describe_search(r, trials) for r in runs),
        "hpo_trials": trials,
        "hpo_best": best,
        "hpo_points": points,
        "hpo_importance": rank_importance(points),
    }


def list_metric_samples(record: RunRecord) -> Iterator[MetricSamples]:
    """Yield the error of the best trial, and the training throughput of every trial."""
    trials = record.events("trial")
    objectives = select_numbers(t.get("objective") for t in trials)
    yield MetricSamples(BEST_ERROR, (-max(objectives),) if objectives else ())
    yield MetricSamples(THROUGHPUT, select_numbers(t.get("structures_per_s") for t in trials))


def count_work(record: RunRecord, scope: Scope, name: str) -> WorkCount:
    """Return the number of trials."""
    del scope, name
    return float(len(record.events("trial"))), "trial"


def _get_search_columns(record: RunRecord) -> dict[str, Any]:
    case = record.case
    search = case.get("axis_values", {}).get("search") or record.facts.get("search", {}).get("backbone")
    return {"campaign": record.campaign, "case": case.get("name"), "search": search}


def _list_trials(record: RunRecord) -> list[dict[str, Any]]:
    """Return a row per trial, with times since the first trial started, node-hours, and the best objective so far."""
    events = record.events("trial")
    first = min(e["start_time_s"] for e in events)
    rows, spent, best = [], 0.0, math.nan
    for e in sorted(events, key=lambda e: (e["end_time_s"], e["trial"])):
        spent += e["node_hours"]
        objective = math.nan if e["objective"] is None else e["objective"]
        best = np.fmax(best, objective)
        rows.append(
            {
                **_get_search_columns(record),
                **{k: e.get(k) for k in TRIALS["event"]},
                "objective": objective,
                "start_h": (e["start_time_s"] - first) / 3600,
                "end_h": (e["end_time_s"] - first) / 3600,
                "node_hours": e["node_hours"],
                "cumulative_node_hours": spent,
                "best_so_far": best,
                "nodes": " ".join(e["nodes"]),
                "configuration": json.dumps(e["configuration"], sort_keys=True),
                "folder": str(record.folder / e["folder"]),
            }
        )
    return rows


def find_pareto_front(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return a mask of the Pareto-optimal points, (n,), where larger values of both quantities are better.

    A point with a value that is not finite is never optimal.
    """
    is_known = np.isfinite(first) & np.isfinite(second)
    a, b = (np.where(is_known, x, -np.inf) for x in (first, second))
    is_as_good = (a[None, :] >= a[:, None]) & (b[None, :] >= b[:, None])
    is_better = (a[None, :] > a[:, None]) | (b[None, :] > b[:, None])
    return is_known & ~(is_as_good & is_better).any(axis=1)


def _list_points(record: RunRecord) -> list[dict[str, Any]]:
    """Return a row per trial and hyperparameter; see normalize_value for the column `normalized_value`."""
    space = record.facts.get("search", {}).get("space", {})
    return [
        {
            **_get_search_columns(record),
            "trial": e["trial"],
            "objective": math.nan if e["objective"] is None else e["objective"],
            "hyperparameter": name,
            "value": value,
            "normalized_value": normalize_value(value, space[name]),
        }
        for e in record.events("trial")
        for name, value in e["configuration"].items()
        if name in space
    ]


def normalize_value(value: Any, dimension: dict[str, Any]) -> float:
    """Return the position of a value in its range or among its choices, from 0 to 1."""
    if "values" in dimension:
        return dimension["values"].index(value) / max(1, len(dimension["values"]) - 1)
    numbers = (dimension["low"], dimension["high"], value)
    low, high, x = map(math.log, numbers) if dimension["log"] else numbers
    return float((x - low) / (high - low))


def _describe_search(record: RunRecord, trials: pd.DataFrame) -> dict[str, Any]:
    names = _get_search_columns(record)
    rows = trials[(trials["campaign"] == names["campaign"]) & (trials["case"] == names["case"])]
    facts, warm_start = record.facts, record.facts.get("warm_start", {})
    overhead = facts.get("overhead", {})
    trial_s = 3600 * (rows["end_h"] - rows["start_h"]).sum()
    trial_parameters = facts.get("search", {}).get("trial", {})
    return {
        **names,
        **{k: record.case.get(k) for k in ("suite", "system", "id")},
        "state": record.state,
        "max_trials": facts.get("search", {}).get("max_trials"),
        "trials": len(rows),
        **{state: int((rows["state"] == state).sum()) for state in STATES},
        "earlier_trials_received": warm_start.get("received", 0),
        "earlier_trials_excluded": warm_start.get("outside_space", 0) + warm_start.get("failed", 0),
        "best_objective": rows["objective"].max(),
        "elapsed_h": rows["end_h"].max(),
        "node_hours": rows["node_hours"].sum(),
        "trial_s": trial_s,
        "optimizer_s": overhead.get("optimizer_s"),
        "optimizer_time_fraction": overhead["optimizer_s"] / trial_s if overhead and trial_s else None,
        "stand_ins": not trial_parameters.get("store_folder"),
        "folder": record.location,
    }


def rank_importance(points: pd.DataFrame) -> pd.DataFrame:
    """Return how much of the variance of the ranked objectives each hyperparameter explains on its own.

    For a number, this is the square of Spearman's correlation, and the sign of the correlation is the direction; for a
    choice, it is the correlation ratio. The p value is (1 + k) / (1 + n) if the hyperparameter explains at least as
    much for k of n random permutations of the objectives. The table omits trials without an objective, hyperparameters
    with only one value, and searches with fewer than MIN_TRIALS trials.
    """
    rows = []
    groups = points[points["objective"].notna()].groupby([*IMPORTANCE["search"], "hyperparameter"], sort=False)
    for names, group in groups:
        values = group["value"]
        if len(group) < MIN_TRIALS or values.nunique() < 2:
            continue
        is_choice = bool(values.map(lambda v: isinstance(v, str)).any())
        ranks = np.asarray(group["objective"].rank(), dtype=np.float64)
        shuffled = ranks[_list_permutations(len(ranks))]
        if is_choice:
            choices = values.astype(str).to_numpy()
            explained, direction = float(_compute_correlation_ratios(choices, ranks[None])[0]), math.nan
            shuffled_explained = _compute_correlation_ratios(choices, shuffled)
        else:
            x = values.astype(float).rank().to_numpy()
            rho = float(np.corrcoef(x, ranks)[0, 1])
            explained, direction = rho**2, math.copysign(1.0, rho)
            shuffled_explained = _compute_correlations(x, shuffled) ** 2
        rows.append(
            {
                **dict(zip([*IMPORTANCE["search"], "hyperparameter"], names, strict=True)),
                "kind": "choice" if is_choice else "number",
                "trials": len(group),
                "explained_variance": explained,
                "direction": direction,
                "p_value": (1 + int((shuffled_explained >= explained - 1e-12).sum())) / (1 + PERMUTATIONS),
            }
        )
    table = IMPORTANCE.build(rows)
    return table.sort_values(["campaign", "case", "explained_variance"], ascending=[True, True, False], kind="stable")


@lru_cache(maxsize=8)
def _list_permutations(n: int) -> NDArray[np.intp]:
    """Return PERMUTATIONS random permutations of n elements, (PERMUTATIONS, n), which are the same in every call."""
    rng = np.random.default_rng(0)
    return np.stack([rng.permutation(n) for _ in range(PERMUTATIONS)])


def _compute_correlation_ratios(choices: NDArray[Any], ranks: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the share of the variance of each row of the ranks, (m, n), that lies between groups of equal choices."""
    mean = ranks.mean(axis=1)
    between = sum(
        (choices == choice).sum() * (ranks[:, choices == choice].mean(axis=1) - mean) ** 2
        for choice in dict.fromkeys(choices.tolist())
    )
    return np.asarray(between / (ranks.shape[1] * ranks.var(axis=1)))


def _compute_correlations(x: NDArray[Any], ranks: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the correlation of x, (n,), with each row of the ranks, (m, n): (m,)."""
    x = x - x.mean()
    centred = ranks - ranks.mean(axis=1, keepdims=True)
    return np.asarray(centred @ x / np.sqrt((centred**2).sum(axis=1) * (x**2).sum()))
