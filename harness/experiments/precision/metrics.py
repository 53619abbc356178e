"""Tables on precisions: throughput, memory, errors, and the modules in which errors arise.

A phase is training or inference.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from harness.experiments.experiment import THROUGHPUT, MetricSamples, WorkCount
from harness.experiments.physics import CHECK_COLUMNS, list_checks
from harness.protocol.types import Scope
from harness.results.runs import RunRecord
from harness.results.tables import Columns, interval_columns
from harness.stats.intervals import compute_median_interval

REFERENCE = "fp64"
COSTS = Columns(
    "precision_costs",
    run="campaign case backbone phase precision",
    rates="structures_per_s structures_per_s_low structures_per_s_high speedup speedup_low speedup_high samples",
    memory="peak_bytes finite",
    machine="device threads",
    folder="folder",
)
INFERENCE = Columns(
    "precision_inference",
    run="campaign case backbone precision head structures",
    errors="energy_deviation_mean_ev_per_atom energy_deviation_max_ev_per_atom force_deviation_mean_ev_per_angstrom"
    " force_deviation_max_ev_per_angstrom"
    " force_scale_ev_per_angstrom energy_mae_ev_per_atom force_mae_ev_per_angstrom",
    verdict="energy_fraction force_fraction verdict weights",
)
# Errors that are combined by their maximum over all batches; all other errors are averaged over structures.
MAXIMA = {"energy_deviation_max_ev_per_atom", "force_deviation_max_ev_per_angstrom", "force_scale_ev_per_angstrom"}
TRAINING = Columns(
    "precision_training",
    run="campaign case backbone precision",
    event="head dataset data_origin structures energy_mae_ev_per_atom force_mae_ev_per_angstrom",
    ratios="energy_ratio force_ratio",
)
LOSSES = Columns("precision_losses", run="campaign case backbone precision", step="step loss relative_deviation")
MODULES = Columns(
    "precision_modules",
    run="campaign case backbone precision",
    order="order",
    event="module kind input output",
    growth="growth",
)
TYPES = Columns(
    "precision_types",
    run="campaign case backbone precision",
    types="parameters matrix_layers pooled energies forces",
)
PHYSICS = Columns("precision_physics", run="campaign case backbone precision", check=CHECK_COLUMNS, folder="folder")
# The largest share of the model's error against labels in FP64 that a harmless precision may add.
MAX_HARMLESS_FRACTION = 0.1


def build_tables(records: Sequence[RunRecord]) -> dict[str, pd.DataFrame]:
    """Return the tables on finished comparisons of precisions; missing values are NaN.

    `precision_costs` has a row per backbone, phase and precision, with the speed-up over FP64 from ratios within a
    round; `finite` says whether all training losses or predictions are finite. `precision_inference` has a row per
    backbone, precision and head: `*_deviation_*` are differences from FP64, and `*_fraction` are these differences
    divided by FP64's errors against labels, NaN if these are 0. `precision_training` has the errors of the models
    trained in each precision, and the ratios of these errors to those of the model trained in FP64. `precision_losses`
    has a row per step, with the relative deviation of the loss from training in FP64. `precision_modules` has the error
    of every module's output; `growth` is its ratio to the error of the input. `precision_types` has the observed types.
    `precision_physics` has a row per backbone, precision and check of physics.
    """
    runs = [r for r in records if r.program == "precision" and r.state == "done"]
    return {
        "precision_costs": COSTS.build(row for r in runs for row in _list_costs(r)),
        "precision_inference": INFERENCE.build(row for r in runs for row in _list_inference(r)),
        "precision_training": TRAINING.build(row for r in runs for row in _list_training(r)),
        "precision_losses": LOSSES.build(row for r in runs for row in _list_losses(r)),
        "precision_modules": MODULES.build(row for r in runs for row in _list_modules(r)),
        "precision_types": TYPES.build(row for r in runs for row in _list_types(r)),
        "precision_physics": PHYSICS.build(row for r in runs for row in _list_physics(r)),
    }


def list_metric_samples(record: RunRecord) -> Iterator[MetricSamples]:
    """Yield the throughput of each phase and precision, with a sample per round."""
    rates: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for s in record.samples:
        if not s.get("is_warmup"):
            rates.setdefault((s["phase"], s["precision"]), []).append((s["round"], s["structures"] / s["duration_s"]))
    for (phase, precision), pairs in rates.items():
        rounds, values = zip(*pairs, strict=True)
        yield MetricSamples(THROUGHPUT, values, {"phase": phase, "precision": precision}, rounds)


def count_work(record: RunRecord, scope: Scope, name: str) -> WorkCount:
    """Return the number of structures of all phases and precisions, or of the phase and precision in `name`."""
    samples = [s for s in record.samples if not s.get("is_warmup")]
    if scope == "precision":
        samples = [s for s in samples if f"{s.get('phase', 'all')} {s['precision']}" == name]
    return float(sum(s["structures"] for s in samples)), "structure"


def _get_run_columns(record: RunRecord) -> dict[str, Any]:
    backbone = record.facts["model"]["config"]["backbone"]
    return {"campaign": record.campaign, "case": record.case.get("name"), "backbone": backbone}


def _list_precisions(record: RunRecord) -> list[str]:
    return list(record.facts["runtime"]["precisions"])


def _list_costs(record: RunRecord) -> list[dict[str, Any]]:
    memory = {(m["phase"], m["precision"]): m["peak_bytes"] for m in record.facts["memory"]}
    rows = []
    for phase in ("training", "inference"):
        samples = [s for s in record.samples if s["phase"] == phase and not s["is_warmup"]]
        by_round = {(s["precision"], s["round"]): s["structures"] / s["duration_s"] for s in samples}
        for name in _list_precisions(record):
            rates = {n: rate for (p, n), rate in by_round.items() if p == name}
            pairs = [rate / by_round[REFERENCE, n] for n, rate in rates.items() if (REFERENCE, n) in by_round]
            rate, ratio = compute_median_interval(list(rates.values())), compute_median_interval(pairs)
            rows.append(
                {
                    **_get_run_columns(record),
                    "phase": phase,
                    "precision": name,
                    **interval_columns("structures_per_s", rate),
                    **interval_columns("speedup", ratio),
                    "samples": rate.n,
                    "peak_bytes": memory.get((phase, name)),
                    "finite": _is_finite(record, phase, name),
                    **{k: record.facts["runtime"][k] for k in COSTS["machine"]},
                    "folder": record.location,
                }
            )
    return rows


def _is_finite(record: RunRecord, phase: str, precision: str) -> bool:
    """Return whether all training losses with their gradients, or all predictions, of a precision are finite."""
    if phase == "training":
        values = [s["loss"] for s in record.samples if s["phase"] == phase and s["precision"] == precision]
    else:
        values = [e[key] for e in record.events("prediction") if e["precision"] == precision for key in MAXIMA]
    return None not in values


def _list_inference(record: RunRecord) -> list[dict[str, Any]]:
    """Return a row per head and precision, with means over the structures and maxima over all batches."""
    source = record.facts["weights"]
    weights = source["checkpoint"] or f"trained {source['steps']} steps in FP64"
    events = record.events("prediction")
    rows = []
    for name, head in dict.fromkeys((e["precision"], e["head"]) for e in events):
        batches = [e for e in events if (e["precision"], e["head"]) == (name, head)]
        counts = [e["structures"] for e in batches]
        row: dict[str, Any] = {**_get_run_columns(record), "precision": name, "head": head, "structures": sum(counts)}
        for key in INFERENCE["errors"]:
            values = [math.nan if e[key] is None else e[key] for e in batches]
            row[key] = float(np.max(values)) if key in MAXIMA else statistics.fmean(values, counts)  # both keep NaN
        rows.append(row | {"weights": weights})
    references = {row["head"]: row for row in rows if row["precision"] == REFERENCE}
    for row in rows:
        for quantity, unit in (("energy", "ev_per_atom"), ("force", "ev_per_angstrom")):
            error = references.get(row["head"], {}).get(f"{quantity}_mae_{unit}", math.nan)
            row[f"{quantity}_fraction"] = row[f"{quantity}_deviation_mean_{unit}"] / error if error else math.nan
        row["verdict"] = judge_inference(row)
    return rows


def judge_inference(row: dict[str, Any]) -> str:
    """Return the verdict on a row: "reference" for FP64, "harmless", "harmful", "not finite" or "not judged".

    A precision is harmless if it adds at most MAX_HARMLESS_FRACTION of FP64's errors against labels, of energies alone
    if the head has no force labels; it is not judged if neither error is known.
    """
    if row["precision"] == REFERENCE:
        return "reference"
    shares = [s for s in (row["energy_fraction"], row["force_fraction"]) if not math.isnan(s)]
    if math.isnan(row["energy_deviation_mean_ev_per_atom"]) or math.isnan(row["force_deviation_mean_ev_per_angstrom"]):
        return "not finite"
    if not shares:
        return "not judged"
    return "harmless" if all(s <= MAX_HARMLESS_FRACTION for s in shares) else "harmful"


def _list_training(record: RunRecord) -> list[dict[str, Any]]:
    events = record.events("trained_errors")
    references = {r["head"]: r for e in events if e["precision"] == REFERENCE for r in e["rows"]}
    rows = []
    for e in events:
        for r in e["rows"]:
            row = {**_get_run_columns(record), "precision": e["precision"], **{k: r.get(k) for k in TRAINING["event"]}}
            keys = {"energy_ratio": "energy_mae_ev_per_atom", "force_ratio": "force_mae_ev_per_angstrom"}
            for ratio, key in keys.items():
                error, reference = r.get(key), references.get(r["head"], {}).get(key)
                row[ratio] = error / reference if error is not None and reference else math.nan
            rows.append(row)
    return rows


def _list_losses(record: RunRecord) -> list[dict[str, Any]]:
    steps = [s for s in record.samples if s["phase"] == "training" and s["loss"] is not None]
    reference = {s["round"]: s["loss"] for s in steps if s["precision"] == REFERENCE}
    return [
        {
            **_get_run_columns(record), "precision": s["precision"], "step": s["round"], "loss": s["loss"],
            "relative_deviation": abs(s["loss"] / reference[s["round"]] - 1) if reference.get(s["round"]) else math.nan,
        }
        for s in steps
    ]  # fmt: skip


def _list_modules(record: RunRecord) -> list[dict[str, Any]]:
    """Return a row per module in the order of execution; `growth` is NaN if the error of the input is 0 or unknown."""
    order: dict[str, int] = {}
    rows = []
    for e in record.events("module"):
        order[e["precision"]] = order.get(e["precision"], -1) + 1
        growth = e["output"] / e["input"] if e["input"] and e["output"] is not None else math.nan
        event = {k: e[k] for k in ("precision", *MODULES["event"])}
        rows.append({**_get_run_columns(record), **event, "order": order[e["precision"]], "growth": growth})
    return rows


def _list_physics(record: RunRecord) -> list[dict[str, Any]]:
    names = [event["precision"] for event in record.events("physics_check")]
    checks = zip(names, list_checks(record), strict=True)
    return [{**_get_run_columns(record), "precision": name, **check} for name, check in checks]


def _list_types(record: RunRecord) -> list[dict[str, Any]]:
    rows = []
    for name, observed in record.facts["runtime"]["precisions"].items():
        types = {k: ", ".join(observed[k]) if isinstance(observed[k], list) else observed[k] for k in TYPES["types"]}
        types = {k: v.replace("torch.", "") for k, v in types.items()}
        rows.append({**_get_run_columns(record), "precision": name, **types})
    return rows
