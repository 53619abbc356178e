"""Records of the program `training_steps` -> its table: time, speed-up and error of each stage of each case."""

from __future__ import annotations

import math
from typing import Any, get_args

import pandas as pd

from harness.experiments.ladder.metrics import DTYPES, experiment, model_label, paired_ratio
from harness.protocol.parameters import StepStageName
from harness.results.runs import Record
from harness.stats.intervals import median_interval

# Largest relative difference, of the loss and of the whole gradient, from the baseline's: rounding in FP64; in FP32 the
# loss's absolute values add whole kinks where a force all but meets its label.
TOLERANCE = {"fp64": 1e-9, "fp32": 1e-3, "bf16": 1e-1}
BASELINE, COMPILED = "baseline", "torch_compile"
COLUMNS = (
    "case", "suite", "experiment", "model", "precision", "stage", "verdict", "step_s", "step_low", "step_high",
    "coverage", "structures_per_s", "speedup", "speedup_low", "speedup_high", "over_compiled", "over_compiled_low",
    "over_compiled_high", "loss_error", "gradient_error", "peak_bytes", "first_call_s", "samples", "load", "structures",
    "batch_size", "atoms", "edges", "max_neighbours", "parameters", "threads", "device", "case_state", "folder",
)  # fmt: skip
RATIOS = tuple(f"{of}{end}" for of in ("speedup", "over_compiled") for end in ("", "_low", "_high"))


def training_steps_table(records: list[Record]) -> pd.DataFrame:
    """One row per case and stage, columns as in COLUMNS; missing values are NaN.

    step_s: of one batch, median over rounds. speedup: over the baseline, over_compiled: over torch_compile, both of the
    same round. load: the most of the machine. verdict: "ok" (loss and gradient are the baseline's to rounding), "WRONG"
    (they are not, or not finite, or not in the precision asked for: ratios are withheld), "unchecked" (no baseline in
    the run), "not available: why", "not run".
    """
    rows = [row for r in records if r.case.get("program") == "training_steps" for row in _rows(r)]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _rows(record: Record) -> list[dict[str, Any]]:
    samples = pd.DataFrame(record.samples)
    wanted = record.case["parameters"].get("stages") or get_args(StepStageName)
    return [_row(record, stage, samples) for stage in wanted]


def _row(record: Record, stage: str, samples: pd.DataFrame) -> dict[str, Any]:
    facts, parameters = record.facts, record.case["parameters"]
    workload, observed = facts.get("workload", {}), facts.get("observed", {})
    event = record.stages.get(stage, {})
    row: dict[str, Any] = dict.fromkeys(COLUMNS, math.nan)
    row |= {
        "case": record.case["name"],
        "suite": record.case["suite"],
        "experiment": experiment(record),
        "model": model_label(facts.get("model", {})),
        "precision": parameters["precision"],
        "stage": stage,
        "samples": 0,
        **{k: workload.get(k, math.nan) for k in ("structures", "batch_size", "atoms", "edges", "max_neighbours")},
        "parameters": facts.get("model", {}).get("parameters", math.nan),
        "threads": observed.get("threads", math.nan),
        "device": observed.get("device_name") or record.provenance.get("cpu"),
        "case_state": record.state,
        "folder": str(record.folder),
    }
    if event.get("event") == "unavailable":
        return row | {"verdict": f"not available: {event['reason']}"}
    own = samples[samples["stage"] == stage] if len(samples) else samples
    if own.empty:
        return row | {"verdict": "not run"}
    row |= _times(own) | _ratios(own, samples)
    row |= {"peak_bytes": event.get("peak_bytes"), "first_call_s": event.get("first_s")}
    return row | _errors(own, parameters["precision"])


def _times(own: pd.DataFrame) -> dict[str, Any]:
    rounds = own.groupby("round")[["structures", "device_s"]].sum()
    step = median_interval((rounds["device_s"] / own["batch"].nunique()).tolist())
    return {
        "step_s": step.median,
        "step_low": step.low,
        "step_high": step.high,
        "coverage": step.coverage,
        "structures_per_s": float((rounds["structures"] / rounds["device_s"]).median()),
        "samples": len(rounds),
        "load": float(own["load_1min"].max()),
    }


def _ratios(own: pd.DataFrame, samples: pd.DataFrame) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, other in (("speedup", BASELINE), ("over_compiled", COMPILED)):
        ratio = paired_ratio(samples[samples["stage"] == other], own)
        found |= {name: ratio.median, f"{name}_low": ratio.low, f"{name}_high": ratio.high}
    return found


def _errors(own: pd.DataFrame, precision: str) -> dict[str, Any]:
    withheld = dict.fromkeys(RATIOS, math.nan)
    if "finite" not in own or own["finite"].isna().any():
        return {"verdict": "unchecked"} | withheld
    if not own["finite"].all():
        return {"verdict": "WRONG"} | withheld
    errors: dict[str, Any] = {k: float(own[k].max()) for k in ("loss_error", "gradient_error")}
    typed = bool((own["dtype"] == DTYPES.get(precision, DTYPES["fp32"])).all())
    if typed and all(error <= TOLERANCE[precision] for error in errors.values()):
        return errors | {"verdict": "ok"}
    return errors | {"verdict": "WRONG"} | withheld
