"""Fine-tuning on downstream tasks: records of the program `transfer` -> errors over labels, gains of pretraining."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from harness.results.runs import Record
from harness.stats.means import geometric_interval, mean_interval

TASKS = (
    "campaign", "task", "title", "target", "unit", "available", "role", "level", "structures", "left_out",
    "unseen_elements", "folds", "splits", "needs", "state", "folder",
)  # fmt: skip
ERRORS = ("campaign", "task", "subset", "mode", "labels", "mae", "low", "high", "force_mae", "seeds", "test", "unit")
GAINS = ("campaign", "task", "title", "subset", "mode", "labels", "ratio", "low", "high", "seeds", "force_ratio",
         "composition_ratio")  # fmt: skip
PUBLISHED = ("task", "model", "value", "spread", "unit", "train", "quantity", "subset", "source")
BASELINES = {"composition": "composition_mae", "mean": "mean_mae"}
SCRATCH = "scratch"


@dataclass(frozen=True)
class TransferTables:
    """tasks: a row a case. errors: a row a mode, subset and number of labels: mean over seeds with the geometric
    one's interval; baselines are modes too. gains: error over that of training from scratch, geometric mean over seeds
    with interval; below 1 is better; composition_ratio: of the mode's error to composition's. published:
    results of others."""

    tasks: pd.DataFrame
    errors: pd.DataFrame
    gains: pd.DataFrame
    published: pd.DataFrame


def transfer_tables(records: Sequence[Record]) -> TransferTables:
    """All tables; a case that has not ended is a row of tasks alone."""
    own = [r for r in records if r.case.get("program") == "transfer"]
    return TransferTables(
        pd.DataFrame([_task(r) for r in own], columns=TASKS),
        pd.DataFrame([row for r in own for row in _errors(r)], columns=ERRORS),
        pd.DataFrame([row for r in own for row in _gains(r)], columns=GAINS),
        pd.DataFrame([row for r in own for row in _published(r)], columns=PUBLISHED).drop_duplicates(),
    )


def _told(record: Record) -> dict[str, Any]:
    """The event that describes the task, or what the case asked for."""
    events = record.others.get("task", [])
    return events[-1] if events else {"task": record.case["parameters"].get("task")}


def _task(record: Record) -> dict[str, Any]:
    told = _told(record)
    left_out = told.get("left_out") or {}
    return {name: told.get(name) for name in TASKS} | {
        "campaign": record.folder.parent.name,
        "left_out": ", ".join(f"{n} {why}" for why, n in left_out.items()),
        "state": record.state,
        "folder": str(record.folder),
    }


def _rows(record: Record) -> pd.DataFrame:
    """A row a fit or baseline, by mode."""
    rows = [dict(e) for e in record.others.get("fit", [])]
    for event in record.others.get("baseline", []):
        for mode, column in BASELINES.items():
            if column in event:
                force = event.get("zero_force_mae") if mode == "mean" else None
                rows.append({**event, "mode": mode, "mae": event[column], "force_mae": force})
    return pd.DataFrame(rows)


def _errors(record: Record) -> list[dict[str, Any]]:
    rows = _rows(record)
    if rows.empty:
        return []
    told, found = _told(record), []
    for (subset, mode, labels), own in rows.groupby(["subset", "mode", "labels"], sort=False):
        mean, spread = mean_interval(own["mae"]), geometric_interval(own["mae"])
        forces = own["force_mae"].dropna()
        found.append(
            {
                "campaign": record.folder.parent.name, "task": told["task"], "subset": subset, "mode": mode,
                "labels": labels, "mae": mean.value, "low": spread.low, "high": spread.high,
                "force_mae": forces.mean() if len(forces) else math.nan, "seeds": mean.n,
                "test": int(own["test"].median()), "unit": told.get("unit"),
            }
        )  # fmt: skip
    return found


def _gains(record: Record) -> list[dict[str, Any]]:
    rows = _rows(record)
    if rows.empty or SCRATCH not in set(rows["mode"]):
        return []
    told, found = _told(record), []
    for (subset, labels), own in rows.groupby(["subset", "labels"], sort=False):
        by_mode = {str(m): o.set_index("seed") for m, o in own.groupby("mode", sort=False)}
        base = by_mode.get(SCRATCH)
        if base is None:
            continue
        composition = by_mode.get("composition")
        for mode, of in by_mode.items():
            if mode in (SCRATCH, *BASELINES):
                continue
            ratio = geometric_interval((of["mae"] / base["mae"]).dropna())
            force = geometric_interval((of["force_mae"] / base["force_mae"]).dropna().astype(float))
            beside = math.nan
            if composition is not None:
                beside = geometric_interval((of["mae"] / composition["mae"]).dropna()).value
            found.append(
                {
                    "campaign": record.folder.parent.name, "task": told["task"], "title": told.get("title"),
                    "subset": subset, "mode": mode, "labels": labels, "ratio": ratio.value, "low": ratio.low,
                    "high": ratio.high, "seeds": ratio.n, "force_ratio": force.value, "composition_ratio": beside,
                }
            )  # fmt: skip
    return found


def _published(record: Record) -> list[dict[str, Any]]:
    told = _told(record)
    return [{"task": told["task"], **row} for row in told.get("published") or ()]
