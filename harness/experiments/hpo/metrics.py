"""Hyperparameter search: records of the program `hpo` -> trials, best points, and what the hyperparameters explain.

A search leaves the facts search, warm_start and overhead, and an event `trial` for each that has ended, however it did.
Half a search is read like a whole one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from harness.results.runs import Record

STATES = ("done", "stopped", "failed", "not finite", "timeout", "lost")
SEARCHES = (
    "campaign", "suite", "system", "case", "id", "search", "state", "evaluations", "trials", *STATES, "told_before",
    "left_out_before", "best_objective", "hours", "node_hours", "trial_s", "optimizer_s", "overhead", "stand_ins",
    "folder",
)  # fmt: skip
TRIALS = (
    "campaign", "case", "search", "trial", "backbone", "state", "reason", "objective", "energy_mae_ev_per_atom",
    "force_mae_ev_per_a", "graphs_per_s", "epochs", "began_h", "ended_h", "node_hours", "spent_node_hours",
    "best_so_far", "on_front", "nodes", "configuration", "folder",
)  # fmt: skip
POINTS = ("campaign", "case", "search", "trial", "objective", "hyperparameter", "value", "place")
IMPORTANCE = ("campaign", "case", "search", "hyperparameter", "kind", "trials", "explained", "direction", "p_value")
LEAST_TRIALS = 5
PERMUTATIONS = 2000


@dataclass(frozen=True)
class SearchTables:
    """searches: a row a search. trials: a row a trial, in the order in which they ended. best: those of each search and
    backbone with the highest objective. points: a row a trial and hyperparameter. importance: see `importance`."""

    searches: pd.DataFrame
    trials: pd.DataFrame
    best: pd.DataFrame
    points: pd.DataFrame
    importance: pd.DataFrame


def search_tables(records: Sequence[Record]) -> SearchTables:
    """All tables on searches; missing values are NaN or None."""
    own = [r for r in records if r.case.get("program") == "hpo" and r.others.get("trial")]
    trials = pd.DataFrame([row for r in own for row in _trials(r)], columns=TRIALS)
    trials["on_front"] = False
    for _, rows in trials.groupby("campaign"):
        found = (rows[k].to_numpy(dtype=float) for k in ("objective", "graphs_per_s"))
        trials.loc[rows.index, "on_front"] = pareto(*found)
    points = pd.DataFrame([row for r in own for row in _points(r)], columns=POINTS)
    searches = pd.DataFrame([_search(r, trials) for r in own], columns=SEARCHES)
    best = trials[trials["objective"].notna()].sort_values("objective", ascending=False, kind="stable")
    best = best.drop_duplicates(["campaign", "case", "backbone"]).sort_values(["campaign", "case"], kind="stable")
    return SearchTables(searches, trials, best, points, importance(points))


def _names(record: Record) -> dict[str, Any]:
    case = record.case
    search = case.get("point", {}).get("search") or record.facts.get("search", {}).get("backbone")
    return {"campaign": record.folder.parent.name, "case": case.get("name"), "search": search}


def _trials(record: Record) -> list[dict[str, Any]]:
    """The trials with times since the first began, what had been spent, and the best until then."""
    events = record.others["trial"]
    first = min(e["began_s"] for e in events)
    rows, spent, best = [], 0.0, math.nan
    for e in sorted(events, key=lambda e: (e["ended_s"], e["trial"])):
        spent += e["node_hours"]
        objective = math.nan if e["objective"] is None else e["objective"]
        best = np.fmax(best, objective)
        rows.append(
            {
                **_names(record),
                **{k: e.get(k) for k in TRIALS[3:12]},
                "objective": objective,
                "began_h": (e["began_s"] - first) / 3600,
                "ended_h": (e["ended_s"] - first) / 3600,
                "node_hours": e["node_hours"],
                "spent_node_hours": spent,
                "best_so_far": best,
                "nodes": " ".join(e["nodes"]),
                "configuration": json.dumps(e["configuration"], sort_keys=True),
                "folder": str(record.folder / e["folder"]),
            }
        )
    return rows


def pareto(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which points no other one beats in one of two quantities and equals in the other; NaN is beaten by all."""
    there = np.isfinite(first) & np.isfinite(second)
    a, b = (np.where(there, x, -np.inf) for x in (first, second))
    as_good = (a[None, :] >= a[:, None]) & (b[None, :] >= b[:, None])
    better = (a[None, :] > a[:, None]) | (b[None, :] > b[:, None])
    return there & ~(as_good & better).any(axis=1)


def _points(record: Record) -> list[dict[str, Any]]:
    """Every hyperparameter of every trial; place: from 0 to 1 between the ends of its range, or among the choices."""
    space = record.facts.get("search", {}).get("space", {})
    return [
        {
            **_names(record),
            "trial": e["trial"],
            "objective": math.nan if e["objective"] is None else e["objective"],
            "hyperparameter": name,
            "value": value,
            "place": place(value, space[name]),
        }
        for e in record.others["trial"]
        for name, value in e["configuration"].items()
        if name in space
    ]


def place(value: Any, of: dict[str, Any]) -> float:
    """Where a value stands in its range or among its choices, 0 to 1."""
    if "values" in of:
        return of["values"].index(value) / max(1, len(of["values"]) - 1)
    low, high, here = of["low"], of["high"], value
    if of["log"]:
        low, high, here = math.log(low), math.log(high), math.log(value)
    return float((here - low) / (high - low))


def _search(record: Record, trials: pd.DataFrame) -> dict[str, Any]:
    names = _names(record)
    own = trials[(trials["campaign"] == names["campaign"]) & (trials["case"] == names["case"])]
    facts, warmth = record.facts, record.facts.get("warm_start", {})
    spent = facts.get("overhead", {})
    busy = 3600 * (own["ended_h"] - own["began_h"]).sum()
    fixed = facts.get("search", {}).get("trial", {})
    return {
        **names,
        **{k: record.case.get(k) for k in ("suite", "system", "id")},
        "state": record.state,
        "evaluations": facts.get("search", {}).get("evaluations"),
        "trials": len(own),
        **{state: int((own["state"] == state).sum()) for state in STATES},
        "told_before": warmth.get("told", 0),
        "left_out_before": warmth.get("outside", 0) + warmth.get("failed", 0),
        "best_objective": own["objective"].max(),
        "hours": own["ended_h"].max(),
        "node_hours": own["node_hours"].sum(),
        "trial_s": busy,
        "optimizer_s": spent.get("optimizer_s"),
        "overhead": spent["optimizer_s"] / busy if spent and busy else None,
        "stand_ins": not fixed.get("stores"),
        "folder": str(record.folder),
    }


def importance(points: pd.DataFrame) -> pd.DataFrame:
    """The share of the variance of the objective's ranks that one hyperparameter alone explains, and its chance.

    Numbers: the square of Spearman's correlation, whose sign is the direction. Choices: the correlation ratio. p_value:
    how often a permutation of the objectives explains as much. Trials without an objective are left out; so are
    hyperparameters that took one value, and all of a search with fewer than LEAST_TRIALS trials.
    """
    rows = []
    for names, own in points[points["objective"].notna()].groupby(
        ["campaign", "case", "search", "hyperparameter"], sort=False
    ):
        if len(own) < LEAST_TRIALS or own["value"].nunique() < 2:
            continue
        words = own["value"].map(lambda v: isinstance(v, str)).any()
        ranks = np.asarray(own["objective"].rank(), dtype=np.float64)
        groups = own["value"].astype(str).to_numpy() if words else own["value"].astype(float).rank().to_numpy()
        found, direction = _explained(groups, ranks, bool(words))
        draw = np.random.default_rng(0)
        others = [_explained(groups, draw.permutation(ranks), bool(words))[0] for _ in range(PERMUTATIONS)]
        p = (1 + sum(o >= found - 1e-12 for o in others)) / (1 + PERMUTATIONS)
        kind = "choice" if words else "number"
        rows.append((*names, kind, len(own), found, math.nan if words else direction, p))
    table = pd.DataFrame(rows, columns=IMPORTANCE)
    return table.sort_values(["campaign", "case", "explained"], ascending=[True, True, False], kind="stable")


def _explained(x: NDArray[Any], ranks: NDArray[np.float64], words: bool) -> tuple[float, float]:
    """Share of the variance of ranks that x explains, and the sign of its slope."""
    if words:
        between = sum(
            (x == word).sum() * (ranks[x == word].mean() - ranks.mean()) ** 2 for word in dict.fromkeys(x.tolist())
        )
        return float(between / (len(ranks) * ranks.var())), math.nan
    rho = float(np.corrcoef(x.astype(float), ranks)[0, 1])
    return rho**2, math.copysign(1.0, rho)
