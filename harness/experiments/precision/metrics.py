"""Three precisions side by side: records of the program `precision` -> rates, memory, errors, and their origin."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from harness.results.runs import Record
from harness.stats.intervals import median_interval

REFERENCE = "fp64"
COSTS = (
    "campaign", "case", "backbone", "task", "precision", "structures_per_s", "low", "high", "speedup", "speedup_low",
    "speedup_high", "samples", "peak_bytes", "finite", "device", "threads", "folder",
)  # fmt: skip
INFERENCE = (
    "campaign", "case", "backbone", "precision", "head", "structures", "energy_off_mean_ev_per_atom",
    "energy_off_max_ev_per_atom", "force_off_mean_ev_per_a", "force_off_max_ev_per_a", "force_scale_ev_per_a",
    "energy_mae_ev_per_atom", "force_mae_ev_per_a", "energy_share", "force_share", "verdict", "weights",
)  # fmt: skip
TRAINING = (
    "campaign", "case", "backbone", "precision", "head", "set", "role", "structures", "energy_mae_ev_per_atom",
    "force_mae_ev_per_a", "energy_ratio", "force_ratio",
)  # fmt: skip
LOSSES = ("campaign", "case", "backbone", "precision", "step", "loss", "off")
MODULES = ("campaign", "case", "backbone", "precision", "order", "module", "kind", "input", "output", "growth")
TYPES = ("campaign", "case", "backbone", "precision", "parameters", "matrix_layers", "pooled", "energies", "forces")
# What low precision may add to the error that the model has anyway, before it counts.
HARMLESS = 0.1


@dataclass(frozen=True)
class PrecisionTables:
    """costs: a row a backbone, task and precision; speedup over FP64 from pairs of one round. inference: a row a
    backbone, precision and head; off: distance from FP64, share: of the error against labels. training: errors of
    models trained in each precision, ratio: over those of FP64. losses: a row a step; off: relative distance from the
    FP64 run. modules: see reference/precision_study/module_errors.py; growth: output over input. types: as observed."""

    costs: pd.DataFrame
    inference: pd.DataFrame
    training: pd.DataFrame
    losses: pd.DataFrame
    modules: pd.DataFrame
    types: pd.DataFrame


def precision_tables(records: Sequence[Record]) -> PrecisionTables:
    """All tables of finished studies; missing values are NaN."""
    own = [r for r in records if r.case.get("program") == "precision" and r.state == "done"]
    return PrecisionTables(
        pd.DataFrame([row for r in own for row in _costs(r)], columns=COSTS),
        pd.DataFrame([row for r in own for row in _inference(r)], columns=INFERENCE),
        pd.DataFrame([row for r in own for row in _training(r)], columns=TRAINING),
        pd.DataFrame([row for r in own for row in _losses(r)], columns=LOSSES),
        pd.DataFrame([row for r in own for row in _modules(r)], columns=MODULES),
        pd.DataFrame([row for r in own for row in _types(r)], columns=TYPES),
    )


def _names(record: Record) -> dict[str, Any]:
    backbone = record.facts["model"]["config"]["backbone"]
    return {"campaign": record.folder.parent.name, "case": record.case.get("name"), "backbone": backbone}


def _precisions(record: Record) -> list[str]:
    return list(record.facts["observed"]["precisions"])


def _costs(record: Record) -> list[dict[str, Any]]:
    memory = {(m["task"], m["precision"]): m["peak_bytes"] for m in record.facts["memory"]}
    rows = []
    for task in ("training", "inference"):
        timed = [s for s in record.samples if s["task"] == task and not s["discarded"]]
        by_round = {(s["precision"], s["round"]): s["structures"] / s["seconds"] for s in timed}
        for name in _precisions(record):
            rates = {n: rate for (p, n), rate in by_round.items() if p == name}
            pairs = [rate / by_round[REFERENCE, n] for n, rate in rates.items() if (REFERENCE, n) in by_round]
            rate, ratio = median_interval(list(rates.values())), median_interval(pairs)
            rows.append(
                {
                    **_names(record), "task": task, "precision": name, "structures_per_s": rate.median,
                    "low": rate.low, "high": rate.high, "speedup": ratio.median, "speedup_low": ratio.low,
                    "speedup_high": ratio.high, "samples": rate.n, "peak_bytes": memory.get((task, name)),
                    "finite": all(s["loss"] is not None for s in record.samples
                                  if s["task"] == task == "training" and s["precision"] == name),
                    **{k: record.facts["observed"][k] for k in ("device", "threads")}, "folder": str(record.folder),
                }
            )  # fmt: skip
    return rows


def _inference(record: Record) -> list[dict[str, Any]]:
    """Every head and precision; batches of one head are averaged by their structures, maxima are of all."""
    predicting = record.facts["predicting"]
    weights = predicting["checkpoint"] or f"trained {predicting['steps']} steps in FP64"
    events = record.others.get("prediction", [])
    rows = []
    for name, head in dict.fromkeys((e["precision"], e["head"]) for e in events):
        own = [e for e in events if (e["precision"], e["head"]) == (name, head)]
        counts = [e["structures"] for e in own]
        row: dict[str, Any] = {**_names(record), "precision": name, "head": head, "structures": sum(counts)}
        for key in INFERENCE[6:13]:
            values = [math.nan if e[key] is None else e[key] for e in own]
            largest = key.endswith(("max_ev_per_atom", "max_ev_per_a")) or "scale" in key
            row[key] = max(values) if largest else statistics.fmean(values, counts)
        row["energy_share"] = row["energy_off_mean_ev_per_atom"] / row["energy_mae_ev_per_atom"]
        row["force_share"] = row["force_off_mean_ev_per_a"] / row["force_mae_ev_per_a"]
        rows.append(row | {"weights": weights, "verdict": verdict(row)})
    return rows


def verdict(row: dict[str, Any]) -> str:
    """Whether the precision adds to the error that the model has against labels anyway."""
    if row["precision"] == REFERENCE:
        return "reference"
    shares = [s for s in (row["energy_share"], row["force_share"]) if not math.isnan(s)]
    if math.isnan(row["energy_off_mean_ev_per_atom"]) or math.isnan(row["force_off_mean_ev_per_a"]):
        return "not finite"
    return "harmless" if all(s <= HARMLESS for s in shares) else "adds to the error"


def _training(record: Record) -> list[dict[str, Any]]:
    events = record.others.get("trained", [])
    exact = {r["head"]: r for e in events if e["precision"] == REFERENCE for r in e["rows"]}
    rows = []
    for e in events:
        for r in e["rows"]:
            row = {**_names(record), "precision": e["precision"], **{k: r.get(k) for k in TRAINING[4:10]}}
            for what, key in (("energy", TRAINING[8]), ("force", TRAINING[9])):
                mine, its = r.get(key), exact.get(r["head"], {}).get(key)
                row[f"{what}_ratio"] = mine / its if mine is not None and its else math.nan
            rows.append(row)
    return rows


def _losses(record: Record) -> list[dict[str, Any]]:
    steps = [s for s in record.samples if s["task"] == "training" and s["loss"] is not None]
    exact = {s["round"]: s["loss"] for s in steps if s["precision"] == REFERENCE}
    return [
        {
            **_names(record), "precision": s["precision"], "step": s["round"], "loss": s["loss"],
            "off": abs(s["loss"] / exact[s["round"]] - 1) if exact.get(s["round"]) else math.nan,
        }
        for s in steps
    ]  # fmt: skip


def _modules(record: Record) -> list[dict[str, Any]]:
    """In the order in which they ran; growth is left out where the input is exact to rounding."""
    order: dict[str, int] = {}
    rows = []
    for e in record.others.get("module", []):
        order[e["precision"]] = order.get(e["precision"], -1) + 1
        given, got = e["input"], e["output"]
        growth = got / given if given and got is not None else math.nan
        named = {k: e[k] for k in ("precision", "module", "kind", "input", "output")}
        rows.append({**_names(record), **named, "order": order[e["precision"]], "growth": growth})
    return rows


def _types(record: Record) -> list[dict[str, Any]]:
    found = []
    for name, seen in record.facts["observed"]["precisions"].items():
        plain = {k: ", ".join(seen[k]) if isinstance(seen[k], list) else seen[k] for k in TYPES[4:]}
        found.append({**_names(record), "precision": name, **{k: v.replace("torch.", "") for k, v in plain.items()}})
    return found
