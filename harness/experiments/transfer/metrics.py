"""Tables on downstream tasks: errors for each number of labels, gains from pretraining, and published results.

A fit is one training on a draw of labels; a baseline is a prediction without a network.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from harness.experiments.experiment import Metric, MetricSamples, WorkCount
from harness.protocol.types import Scope
from harness.results.runs import RunRecord
from harness.results.tables import Columns, interval_columns
from harness.stats.intervals import compute_geometric_mean_interval, compute_mean_interval

TASKS = Columns(
    "transfer_tasks",
    run="campaign case",
    task="task title target unit available data_origin level_of_theory structures",
    excluded="excluded",
    data="structures_with_unseen_elements folds splits needs",
    state="state folder",
)
ERRORS = Columns(
    "transfer_errors",
    columns="campaign case task subset mode labels mae mae_low mae_high force_mae seeds test unit diverged",
)
GAINS = Columns(
    "transfer_gains",
    columns="campaign case task title subset mode labels ratio ratio_low ratio_high seeds force_ratio"
    " composition_ratio diverged",
)
PUBLISHED = Columns("transfer_published", columns="task model value spread unit train quantity subset source")
# The columns with the errors of the baselines.
BASELINES = {"composition": "composition_mae", "mean": "mean_mae"}
SCRATCH = "scratch"
ERROR = Metric("error", "task's unit", "lower")


def build_tables(records: Sequence[RunRecord]) -> dict[str, pd.DataFrame]:
    """Return the tables on transfer; a case that has not ended may only have a row in transfer_tasks.

    `transfer_tasks` has a row per case. `transfer_errors` has a row per mode, subset and number of labels, with the
    mean error over seeds and Student's 95% interval; baselines are modes too. `transfer_gains` has the geometric mean
    over seeds of the error divided by the error of training from scratch, with its interval (below 1 is better), and of
    the error divided by that of the composition model. Both leave out the seeds of fits that have diverged, and count
    them in `diverged`. `transfer_published` has published results.
    """
    runs = [r for r in records if r.program == "transfer"]
    return {
        "transfer_tasks": TASKS.build(_describe_task(r) for r in runs),
        "transfer_errors": ERRORS.build(row for r in runs for row in _list_errors(r)),
        "transfer_gains": GAINS.build(row for r in runs for row in _list_gains(r)),
        "transfer_published": PUBLISHED.build(row for r in runs for row in _list_published(r)).drop_duplicates(),
    }


def list_metric_samples(record: RunRecord) -> Iterator[MetricSamples]:
    """Yield the errors of all fits, for each subset, mode and number of labels; a round is a seed."""
    fits = _list_fits(record)
    if fits.empty:
        return
    fits = fits[~fits["mode"].isin(BASELINES)].dropna(subset="mae")
    for (subset, mode, labels), group in fits.groupby(["subset", "mode", "labels"], sort=False):
        part = {"subset": str(subset)} if subset else {}
        seeds = tuple(map(int, group["seed"]))
        yield MetricSamples(ERROR, tuple(group["mae"]), {**part, "mode": str(mode), "labels": str(labels)}, seeds)


def count_work(record: RunRecord, scope: Scope, name: str) -> WorkCount:
    """Return the number of fits."""
    del scope, name
    return float(len(record.events("fit"))), "fit"


def _get_case(record: RunRecord) -> dict[str, Any]:
    return {"campaign": record.campaign, "case": record.case.get("name")}


def _find_task(record: RunRecord) -> dict[str, Any]:
    """Return the event that describes the task or, without one, the task in the case's parameters."""
    events = record.events("task")
    return events[-1] if events else {"task": record.case["parameters"].get("task")}


def _describe_task(record: RunRecord) -> dict[str, Any]:
    task = _find_task(record)
    excluded = task.get("excluded") or {}
    return TASKS.select(task, "task", "data") | {
        **_get_case(record),
        "excluded": ", ".join(f"{n} {reason}" for reason, n in excluded.items()),
        "state": record.state,
        "folder": record.location,
    }


def _list_fits(record: RunRecord) -> pd.DataFrame:
    """Return a row per fit and per baseline; the mode of a baseline is its name."""
    rows = [dict(e) for e in record.events("fit")]
    for event in record.events("baseline"):
        for mode, column in BASELINES.items():
            if column in event:
                force = event.get("zero_force_mae") if mode == "mean" else None
                rows.append({**event, "mode": mode, "mae": event[column], "force_mae": force})
    if not rows:
        return pd.DataFrame()
    # a fit that a log has twice, as if two logs were joined, counts once
    fits = pd.DataFrame(rows).drop_duplicates(["subset", "mode", "labels", "seed"], keep="last")
    return fits.astype({"mae": float, "force_mae": float})


def _list_errors(record: RunRecord) -> list[dict[str, Any]]:
    fits = _list_fits(record)
    if fits.empty:
        return []
    task, rows = _find_task(record), []
    for (subset, mode, labels), group in fits.groupby(["subset", "mode", "labels"], sort=False):
        mean = compute_mean_interval(group["mae"].dropna())
        rows.append(
            {
                **_get_case(record),
                "task": task["task"],
                "subset": subset,
                "mode": mode,
                "labels": labels,
                **interval_columns("mae", mean),
                "force_mae": group["force_mae"].mean(),
                "seeds": mean.n,
                "test": int(group["test"].median()),
                "unit": task.get("unit"),
                "diverged": len(group) - mean.n,
            }
        )
    return rows


def _list_gains(record: RunRecord) -> list[dict[str, Any]]:
    fits = _list_fits(record)
    if fits.empty or SCRATCH not in set(fits["mode"]):
        return []
    task, rows = _find_task(record), []
    for (subset, labels), group in fits.groupby(["subset", "labels"], sort=False):
        by_mode = {str(mode): mode_fits.set_index("seed") for mode, mode_fits in group.groupby("mode", sort=False)}
        scratch, composition = by_mode.get(SCRATCH), by_mode.get("composition")
        if scratch is None:
            continue
        for mode, errors in by_mode.items():
            if mode in (SCRATCH, *BASELINES):
                continue
            seeds = errors.index.intersection(scratch.index)
            ratio = compute_geometric_mean_interval((errors["mae"] / scratch["mae"]).dropna())
            force = compute_geometric_mean_interval((errors["force_mae"] / scratch["force_mae"]).dropna())
            over_composition = math.nan
            if composition is not None:
                over_composition = compute_geometric_mean_interval((errors["mae"] / composition["mae"]).dropna()).value
            rows.append(
                {
                    **_get_case(record),
                    "task": task["task"],
                    "title": task.get("title"),
                    "subset": subset,
                    "mode": mode,
                    "labels": labels,
                    **interval_columns("ratio", ratio),
                    "seeds": ratio.n,
                    "force_ratio": force.value,
                    "composition_ratio": over_composition,
                    "diverged": len(seeds) - ratio.n,
                }
            )
    return rows


def _list_published(record: RunRecord) -> list[dict[str, Any]]:
    task = _find_task(record)
    return [PUBLISHED.select({"task": task["task"], **row}) for row in task.get("published") or ()]
