"""Ladder samples -> the ladder table: rate, speed-up and error of each stage of each case."""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any

import pandas as pd

from harness.results.runs import Record
from harness.stats.intervals import Interval, median_interval

# Largest error of an exact stage, relative to the largest force (or energy per atom) of the baseline.
TOLERANCE = {"fp64": 1e-9, "fp32": 1e-4, "bf16": 0.1}
# Below these (eV/angstrom, eV/atom) a scale says nothing: forces vanish in an ideal crystal.
FORCE_FLOOR, ENERGY_FLOOR = 1e-3, 1e-3
APPROXIMATE = ("branch_skip", "mixed_precision")
# Stages that run the same compiled code as another, and so are not compiled again.
COMPILED_ALIKE = {"tuned_allocator": "torch_compile"}
DTYPES = {"fp64": "torch.float64", "fp32": "torch.float32", "bf16": "torch.float32"}
COLUMNS = (
    "case", "suite", "experiment", "model", "workload", "precision", "stage", "verdict", "structures_per_s",
    "ci_low", "ci_high", "coverage", "speedup", "speedup_low", "speedup_high", "end_to_end_structures_per_s",
    "end_to_end_low", "end_to_end_high", "max_energy_error_ev_per_atom", "max_force_error_ev_per_a", "counts",
    "force_error_relative", "energy_error_relative", "peak_bytes", "largest_batch", "matrix_gflop",
    "matrix_gflop_per_s", "share_of_matrix_peak", "gflop", "gflop_per_s", "gb", "attainable_gflop_per_s",
    "share_of_attainable", "empty_atoms", "empty_edges", "shapes", "first_call_s", "samples", "structures_timed",
    "structures", "atoms", "edges", "threads", "device", "on_cpu",
    "case_state", "folder",
)  # fmt: skip


def ladder_table(records: list[Record]) -> pd.DataFrame:
    """One row per case and stage, in the order of the ladder, columns as in COLUMNS; missing values are NaN.

    counts: whether the speed-up does. verdict: "ok" (agrees with the baseline to rounding), "approximate" (not meant
    to agree), "WRONG" (meant to and does not, not finite, or not in the precision asked for: its
    speed-up is withheld), "unchecked" (no baseline in the run),
    "not available: why", "not run".
    """
    rows = [row for r in records if r.case.get("program") == "ladder" for row in _rows(r)]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _rows(record: Record) -> list[dict[str, Any]]:
    parameters = record.case["parameters"]
    samples = pd.DataFrame(record.samples)
    known = list(dict.fromkeys([*record.stages, *(samples["stage"] if len(samples) else [])]))
    wanted = parameters.get("stages") or known
    return [_row(record, stage, samples) for stage in wanted]


def _row(record: Record, stage: str, samples: pd.DataFrame) -> dict[str, Any]:
    parameters, facts = record.case["parameters"], record.facts
    workload, observed = facts.get("workload", {}), facts.get("observed", {})
    own = samples[samples["stage"] == stage] if len(samples) else samples
    row: dict[str, Any] = dict.fromkeys(COLUMNS, math.nan)
    row |= {
        "case": record.case["name"],
        "suite": record.case["suite"],
        "experiment": experiment(record),
        "model": model_label(facts.get("model", {})),
        "workload": parameters["workload"],
        "precision": parameters["precision"],
        "stage": stage,
        "samples": int(own["round"].nunique()) if len(own) else 0,
        "structures": workload.get("structures", math.nan),
        "atoms": workload.get("atoms", math.nan),
        "edges": workload.get("edges", math.nan),
        "threads": observed.get("threads", math.nan),
        "on_cpu": not observed.get("device_name"),
        "device": observed.get("device_name") or record.provenance.get("cpu"),
        "case_state": record.state,
        "counts": False,
        "folder": str(record.folder),
    }
    event = record.stages.get(stage, {})
    if event.get("event") == "unavailable":
        return row | {"verdict": f"not available: {event['reason']}"}
    if own.empty:
        return row | {"verdict": "not run"}
    return (
        row | _rates(own) | _speedup(own, samples) | _errors(own, stage, parameters["precision"]) | _work(record, own)
    )


def _rates(own: pd.DataFrame) -> dict[str, Any]:
    host_s = own["neighbours_s"] + own["collate_s"] + own["transfer_s"]
    rounds = own.assign(whole_s=own["device_s"] + host_s).groupby("round")[["structures", "device_s", "whole_s"]].sum()
    device = median_interval((rounds["structures"] / rounds["device_s"]).tolist())
    end_to_end = median_interval((rounds["structures"] / rounds["whole_s"]).tolist())
    return {
        "structures_per_s": device.median,
        "ci_low": device.low,
        "ci_high": device.high,
        "coverage": device.coverage,
        "end_to_end_structures_per_s": end_to_end.median,
        "end_to_end_low": end_to_end.low,
        "end_to_end_high": end_to_end.high,
        "structures_timed": int(own["structures"].sum()),
    }


def _speedup(own: pd.DataFrame, samples: pd.DataFrame) -> dict[str, Any]:
    """Ratios to the baseline of the same round, hence of the same batches at the same time."""
    ratio = paired_ratio(samples[samples["stage"] == "baseline"], own)
    return {"speedup": ratio.median, "speedup_low": ratio.low, "speedup_high": ratio.high}


def paired_ratio(slow: pd.DataFrame, fast: pd.DataFrame) -> Interval:
    """How many times faster, round by round, from the batches that both have."""
    both = slow.merge(fast, on=["round", "batch"], suffixes=("_slow", "_fast"), validate="one_to_one")
    rounds = both.groupby("round")[["device_s_slow", "device_s_fast"]].sum()
    return median_interval((rounds["device_s_slow"] / rounds["device_s_fast"]).tolist())


def _errors(own: pd.DataFrame, stage: str, precision: str) -> dict[str, Any]:
    withheld = dict.fromkeys(("speedup", "speedup_low", "speedup_high"), math.nan)
    if "finite" not in own or own["finite"].isna().any():
        return {"verdict": "unchecked"} | withheld
    if not own["finite"].all() or not (own[["energy_dtype", "force_dtype"]] == DTYPES[precision]).all(axis=None):
        return {"verdict": "WRONG"} | withheld
    force = float((own["force_error_ev_per_a"] / own["force_scale_ev_per_a"].clip(lower=FORCE_FLOOR)).max())
    energy = float((own["energy_error_ev_per_atom"] / own["energy_scale_ev_per_atom"].clip(lower=ENERGY_FLOOR)).max())
    errors: dict[str, Any] = {
        "max_energy_error_ev_per_atom": float(own["energy_error_ev_per_atom"].max()),
        "max_force_error_ev_per_a": float(own["force_error_ev_per_a"].max()),
        "force_error_relative": force,
        "energy_error_relative": energy,
    }
    if stage in APPROXIMATE:
        return errors | {"verdict": "approximate", "counts": True}
    if max(force, energy) <= TOLERANCE[precision]:
        return errors | {"verdict": "ok", "counts": True}
    return errors | {"verdict": "WRONG"} | withheld


def _work(record: Record, own: pd.DataFrame) -> dict[str, Any]:
    """Arithmetic and memory of one call on the case's first batch."""
    stage = own["stage"].iloc[0]
    event = record.stages.get(stage, {})
    work: dict[str, Any] = {"peak_bytes": event.get("peak_bytes"), "first_call_s": event.get("first_s")}
    first = own[own["batch"] == 0]
    if not len(first):
        return work
    seconds = median_interval(first["device_s"].tolist()).median
    ceilings = record.facts.get("ceilings", {})
    if free := record.facts.get("free_bytes"):
        work["largest_batch"] = int(free * first["structures"].iloc[0] / max(1, event.get("peak_bytes", 1)))
    if event.get("flops"):
        work |= of_products(event["flops"], ceilings, seconds)
    moved = event.get("bytes") or record.stages.get(COMPILED_ALIKE.get(stage, ""), {}).get("bytes")
    filled = next((e for e in record.others.get("padding", []) if e["stage"] == stage), None)
    if filled is not None:
        work |= {k: filled[k] for k in ("empty_atoms", "empty_edges")} | {"shapes": len(filled["shapes"])}
    return work | attainable(event.get("flops"), moved, ceilings, seconds)


def of_products(flops: list[dict[str, Any]], ceilings: dict[str, Any], seconds: float) -> dict[str, float]:
    """Of matrix products alone: arithmetic, its rate, and its least time by square products of the same types."""
    squares = {s["dtype"]: s["gflop_per_s"] for s in ceilings.get("squares", [])}
    own = [f for f in flops if f["of"] != "messages"]
    gflop = sum(f["flops"] for f in own) / 1e9
    least = sum(f["flops"] / 1e9 / squares.get(f["dtype"], math.inf) for f in own)
    share = least / seconds if squares else math.nan
    return {"matrix_gflop": gflop, "matrix_gflop_per_s": gflop / seconds, "share_of_matrix_peak": share}


def attainable(
    flops: list[dict[str, Any]] | None, moved: int | None, ceilings: dict[str, Any], seconds: float
) -> dict[str, Any]:
    """Arithmetic and traffic of a call, and what share of the attainable rate its seconds are.

    The least time is that of its arithmetic, each kind at the rate of a product of its own shape and type, or that of
    its traffic at the rate of a copy, whichever is longer (Williams, Waterman, Patterson, CACM 52(4), 65 (2009)).
    """
    rates = {(p["of"], p["dtype"]): p["gflop_per_s"] for p in ceilings.get("products", [])}
    if not flops or not rates:
        return {}
    gflop = sum(f["flops"] for f in flops) / 1e9
    found = {"gflop": gflop, "gflop_per_s": gflop / seconds}
    if not moved:
        return found
    computing = sum(f["flops"] / 1e9 / rates[f["of"], f["dtype"]] for f in flops if (f["of"], f["dtype"]) in rates)
    least = max(computing, moved / 1e9 / ceilings["copy_gb_per_s"])
    return found | {
        "gb": moved / 1e9,
        "attainable_gflop_per_s": gflop / least,
        "share_of_attainable": least / seconds,
    }


def experiment(record: Record) -> str:
    """What cases that differ in precision alone have in common, as ten hexadecimal digits."""
    case, machine = record.case, [record.provenance.get(k) for k in ("host", "cpu")]
    parameters = {k: v for k, v in case["parameters"].items() if k != "precision"}
    content = [case["suite"], record.folder.parent.name, parameters, case.get("settings"), machine]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:10]


def model_label(about: dict[str, Any]) -> str:
    """`width 64, trained`, from the model's own facts."""
    if not about:
        return "unknown"
    return f"width {about['config']['hidden_dim']}, {'trained' if about['trained'] else 'untrained'}"
