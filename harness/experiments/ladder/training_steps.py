"""The table on training steps: time, speed-up and error of each stage of each case."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from harness.experiments.ladder.stages import (
    compute_paired_ratio,
    describe_model,
    group_by_stage,
    hash_setup,
    sum_by_round,
)
from harness.protocol.backbones import describe_architecture
from harness.protocol.events import Event
from harness.protocol.parameters import RESULT_DTYPES
from harness.protocol.programs.training_steps import StepStageName
from harness.results.runs import RunRecord
from harness.results.tables import Columns, Table, interval_columns
from harness.stats.intervals import compute_median_interval

# Largest relative difference of the loss and of the whole gradient from those of the baseline. In FP64 the difference
# is only rounding. In FP32 it can be larger, since absolute values in the loss have a kink where a force equals its
# label.
TOLERANCE = {"fp64": 1e-9, "fp32": 1e-3, "bf16": 1e-1}
BASELINE, COMPILED = "baseline", "torch_compile"
STEPS = Columns(
    "training_steps",
    case="case suite setup architecture model precision stage verdict",
    times="step_s step_s_low step_s_high coverage structures_per_s",
    ratios="speedup speedup_low speedup_high over_compiled over_compiled_low over_compiled_high",
    errors="loss_error gradient_error",
    work="gflop attainable_fraction",
    stage="peak_bytes first_call_s samples load_1min",
    workload="structures batch_size atoms edges max_neighbours",
    machine="parameters threads device",
    run="state folder",
)


def build_training_steps_table(records: Sequence[RunRecord]) -> Table:
    """Return one row per case and stage; missing values are NaN.

    `step_s` is the time of one batch, median over rounds. `speedup` and `over_compiled` are the times of the stages
    baseline and torch_compile divided by the time of the stage, within a round. `load_1min` is the highest load of the
    machine. `gflop` is the arithmetic of a step on the first batch, and `attainable_fraction` the time that it takes at
    the rates of the fastest products of the same shapes, divided by the time of the step. `verdict` is "ok" (loss and
    gradient equal those of the baseline to rounding), "incorrect" (they do not, or are not finite or not in the
    requested precision; the ratios are withheld), "not checked" (the run has no baseline), "unavailable: reason", or
    "not run". Cases with equal `setup` only differ in precision.
    """
    return STEPS.build(row for r in records if r.program == "training_steps" for row in _list_rows(r))


def _list_rows(record: RunRecord) -> list[dict[str, Any]]:
    stages = group_by_stage(record.samples)
    names = record.case["parameters"].get("stages") or get_args(StepStageName)
    common = _describe_case(record)
    return [common | _describe_stage(record, name, stages) for name in names]


def _describe_case(record: RunRecord) -> dict[str, Any]:
    """Return the columns that the rows of all stages of a case share."""
    facts = record.facts
    workload, observed = facts.get("workload", {}), facts.get("runtime", {})
    return dict.fromkeys(STEPS, math.nan) | {
        "case": record.case["name"],
        "suite": record.case["suite"],
        "setup": hash_setup(record),
        "architecture": describe_architecture(facts.get("model", {}).get("config") or {}),
        "model": describe_model(facts.get("model", {})),
        "precision": record.case["parameters"]["precision"],
        **{k: workload.get(k, math.nan) for k in STEPS["workload"]},
        "parameters": facts.get("model", {}).get("parameters", math.nan),
        "threads": observed.get("threads", math.nan),
        "device": observed.get("device_name") or record.provenance.get("cpu"),
        "state": record.state,
        "folder": record.location,
    }


def _describe_stage(record: RunRecord, stage: str, stages: Mapping[str, Sequence[Event]]) -> dict[str, Any]:
    event, samples = record.stages.get(stage, {}), stages.get(stage, ())
    row = {"stage": stage, "samples": 0}
    if event.get("event") == "unavailable":
        return row | {"verdict": f"unavailable: {event['reason']}"}
    if not samples:
        return row | {"verdict": "not run"}
    row |= {"peak_bytes": event.get("peak_bytes"), "first_call_s": event.get("first_call_s")}
    row |= _describe_work(event, record.facts.get("ceilings") or {}, samples)
    row |= interval_columns("speedup", compute_paired_ratio(stages.get(BASELINE, ()), samples))
    row |= interval_columns("over_compiled", compute_paired_ratio(stages.get(COMPILED, ()), samples))
    return row | _compute_times(samples) | _check_errors(samples, record.case["parameters"]["precision"])


def _describe_work(event: Event, ceilings: Mapping[str, Any], samples: Sequence[Event]) -> dict[str, float]:
    """Return the columns of the arithmetic; empty for logs without it."""
    flops = event.get("flops")
    rates = {(p["operation"], p["dtype"]): p["gflop_per_s"] for p in ceilings.get("products") or []}
    if not flops or not rates:
        return {}
    seconds = statistics.median(s["device_s"] for s in samples if s["batch"] == 0)
    least_s = sum(f["flops"] / 1e9 / rates.get((f["operation"], f["dtype"]), math.inf) for f in flops)
    return {"gflop": sum(f["flops"] for f in flops) / 1e9, "attainable_fraction": least_s / seconds}


def _compute_times(samples: Sequence[Event]) -> dict[str, Any]:
    structures, seconds = sum_by_round(samples, "structures"), sum_by_round(samples, "device_s")
    batches = len({s["batch"] for s in samples})
    step = compute_median_interval([s / batches for s in seconds.values()])
    return {
        "step_s": step.value,
        "step_s_low": step.low,
        "step_s_high": step.high,
        "coverage": step.coverage,
        "structures_per_s": statistics.median(structures[number] / seconds[number] for number in seconds),
        "samples": len(seconds),
        "load_1min": max(float(s["load_1min"]) for s in samples),
    }


def _check_errors(samples: Sequence[Event], precision: str) -> dict[str, Any]:
    withheld = dict.fromkeys(STEPS["ratios"], math.nan)
    if any(s.get("finite") is None for s in samples):
        return {"verdict": "not checked"} | withheld
    if not all(s["finite"] for s in samples):
        return {"verdict": "incorrect"} | withheld
    errors: dict[str, Any] = {name: max(s[name] for s in samples) for name in STEPS["errors"]}
    has_right_type = all(s["dtype"] == RESULT_DTYPES.get(precision, RESULT_DTYPES["fp32"]) for s in samples)
    if has_right_type and all(error <= TOLERANCE[precision] for error in errors.values()):
        return errors | {"verdict": "ok"}
    return errors | {"verdict": "incorrect"} | withheld
