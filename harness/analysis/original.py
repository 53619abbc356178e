"""Runs of the original code, as harness.collect.hydragnn has taken them in -> epochs, regions, energy, rates."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from harness.collect.runs import Record

PROGRAM = "hydragnn"
EPOCHS = (
    "case", "epoch", "loss", "validation_loss", "test_loss", "validation_energy", "validation_energy_per_atom",
    "validation_force", "source", "line",
)  # fmt: skip
REGIONS = ("case", "region", "ranks", "calls", "seconds_mean", "seconds_most", "imbalance", "joule")
RATES = ("case", "structures_per_s", "samples", "train_s", "folder")


@dataclass(frozen=True)
class OriginalTables:
    """epochs: a row an epoch, losses and errors of the tasks [E, E/atom, F] in the original's units, with the line that
    says so. regions: of its tracer, over ranks. rates: a row a run."""

    epochs: pd.DataFrame
    regions: pd.DataFrame
    rates: pd.DataFrame


def original_tables(records: Sequence[Record]) -> OriginalTables:
    """All tables; missing values are NaN."""
    own = [r for r in records if r.case.get("program") == PROGRAM]
    return OriginalTables(
        pd.DataFrame([row for r in own for row in _epochs(r)], columns=EPOCHS),
        pd.DataFrame([row for r in own for row in _regions(r)], columns=REGIONS),
        pd.DataFrame([_rate(r) for r in own], columns=RATES),
    )


def _epochs(record: Record) -> list[dict[str, Any]]:
    tasks = {e["epoch"]: e["errors"] for e in record.others.get("tasks", []) if e["split"] == "validation"}
    rows = []
    for e in record.others.get("epoch", []):
        errors = tasks.get(e["epoch"], [])
        named = dict(zip(EPOCHS[5:8], errors, strict=True)) if len(errors) == 3 else {}
        rows.append({"case": record.case["name"], **{k: e[k] for k in ("epoch", *EPOCHS[2:5], *EPOCHS[8:])}, **named})
    return rows


def _regions(record: Record) -> list[dict[str, Any]]:
    rows = []
    events, energy = record.others.get("region", []), record.others.get("energy", [])
    for name in dict.fromkeys(e["name"] for e in events):
        seconds = [e["seconds"] for e in events if e["name"] == name]
        joule = [e["joule"] for e in energy if e["name"] == name]
        mean = statistics.fmean(seconds)
        rows.append(
            {
                "case": record.case["name"], "region": name, "ranks": len(seconds),
                "calls": sum(e["calls"] for e in events if e["name"] == name), "seconds_mean": mean,
                "seconds_most": max(seconds), "imbalance": max(seconds) / mean if mean else None,
                "joule": sum(joule) if joule else None,
            }
        )  # fmt: skip
    return rows


def _rate(record: Record) -> dict[str, Any]:
    rates = [s["structures_per_s"] for s in record.samples if s.get("structures_per_s")]
    timers = [
        e["seconds"] for e in record.others.get("timer", []) if e["name"] == "train_validate_test" and e["seconds"]
    ]
    return {
        "case": record.case["name"], "structures_per_s": statistics.median(rates) if rates else None,
        "samples": len(rates), "train_s": max(timers) if timers else None, "folder": str(record.folder),
    }  # fmt: skip
