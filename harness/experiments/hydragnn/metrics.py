"""Runs of the original code, as harness.importers.hydragnn has taken them in -> epochs, regions, energy, rates."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from harness.protocol.events import Event
from harness.results.runs import Record

PROGRAM = "hydragnn"
EPOCHS = (
    "case", "epoch", "loss", "validation_loss", "test_loss", "validation_energy", "validation_energy_per_atom",
    "validation_force", "source", "line",
)  # fmt: skip
REGIONS = ("case", "region", "ranks", "calls", "seconds_mean", "seconds_most", "imbalance", "joule", "energy_ranks")
PARAMETERS = ("mpnn_type", "hidden_dim", "num_conv_layers", "batch_size", "precision", "num_epoch", "datasets", "ranks",
              "nodes")  # fmt: skip
RATES = ("case", "structures_per_s", "samples", "train_s", "train_structures_per_s", "steps", "why_not", "notes",
         *PARAMETERS, "folder")  # fmt: skip
TRAIN = "train"
# Regions that every step of training enters once, the best witness first.
STEP = ("opt_step", "backward", "forward")


@dataclass(frozen=True)
class OriginalTables:
    """epochs: a row an epoch, losses and errors of the tasks [E, E/atom, F] in the original's units, with the line that
    says so. regions: of its tracer, over ranks. rates: a row a run, with its parameters; train_structures_per_s is
    derived: batch size x steps of all ranks / seconds of the slowest rank in `train`."""

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
    joules: dict[str, list[float]] = defaultdict(list)
    for e in record.others.get("energy", []):
        joules[e["name"]].append(e["joule"])
    by_name = _by_name(record)
    rows: list[dict[str, Any]] = []
    for name in dict.fromkeys([*by_name, *joules]):
        seconds = [e["seconds"] for e in by_name.get(name, [])]
        mean = statistics.fmean(seconds) if seconds else None
        rows.append(
            {
                "case": record.case["name"], "region": name, "ranks": len(seconds),
                "calls": sum(e["calls"] for e in by_name.get(name, [])), "seconds_mean": mean,
                "seconds_most": max(seconds, default=None), "imbalance": max(seconds) / mean if mean else None,
                "joule": sum(joules[name]) if joules[name] else None, "energy_ranks": len(joules[name]),
            }
        )  # fmt: skip
    return rows


def _by_name(record: Record) -> dict[str, list[Event]]:
    found: dict[str, list[Event]] = defaultdict(list)
    for event in record.others.get("region", []):
        found[event["name"]].append(event)
    return found


def _rate(record: Record) -> dict[str, Any]:
    rates = [s["structures_per_s"] for s in record.samples if s.get("structures_per_s")]
    timers = [
        e["seconds"] for e in record.others.get("timer", []) if e["name"] == "train_validate_test" and e["seconds"]
    ]
    parameters = {name: record.case["parameters"].get(name) for name in PARAMETERS}
    if isinstance(parameters["datasets"], list):
        parameters["datasets"] = " ".join(map(str, parameters["datasets"]))
    return {
        "case": record.case["name"], "structures_per_s": statistics.median(rates) if rates else None,
        "samples": len(rates), "train_s": max(timers) if timers else None, **_training_rate(record), **parameters,
        "notes": "; ".join(record.facts.get("notes", [])), "folder": str(record.folder),
    }  # fmt: skip


def _training_rate(record: Record) -> dict[str, Any]:
    """Structures a second in training, or why there is no telling."""
    by_name, parameters = _by_name(record), record.case["parameters"]
    batch, ranks = parameters.get("batch_size"), parameters.get("ranks")
    train = {e["rank"]: e["seconds"] for e in by_name.get(TRAIN, [])}
    counted = next((by_name[name] for name in STEP if name in by_name), [])
    steps = {e["rank"]: e["calls"] for e in counted if e["rank"] in train}
    why_not = _why_no_rate(train, steps, batch, ranks)
    if why_not:
        return {"why_not": why_not}
    seconds, mean = max(train.values()), statistics.fmean(steps.values())
    found: dict[str, Any] = {"steps": mean, "train_structures_per_s": ranks * batch * mean / seconds}
    if len(steps) < ranks:
        found["why_not"] = f"from the tracer files of {len(steps)} of {ranks} ranks"
    return found


def _why_no_rate(train: dict[int, float], steps: dict[int, int], batch: Any, ranks: Any) -> str:
    if not train or not steps or not max(train.values()) > 0:
        return f"no tracer files with the regions {TRAIN} and {STEP[0]}"
    if not isinstance(batch, int) or isinstance(batch, bool) or batch < 1:
        return "no batch size in config.json or a command line"
    if not isinstance(ranks, int):
        absent = sorted(set(range(max(train))) - set(train))
        shown = ", ".join(map(str, absent[:5]))
        return f"no tracer files of ranks {shown}" if absent else "number of ranks unknown: no launcher's line"
    if len(train) > ranks:
        return f"{len(train)} tracer files, but {ranks} ranks"
    return ""
