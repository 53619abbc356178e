"""The tables of the ladder: rate, speed-up and error of each stage of each case."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from harness.experiments.experiment import THROUGHPUT, Metric, MetricSamples, WorkCount
from harness.experiments.implementations import get_implementation_name
from harness.experiments.ladder.stages import (
    compute_paired_ratio,
    describe_model,
    group_by_stage,
    hash_setup,
    sum_by_round,
)
from harness.experiments.ladder.training_steps import build_training_steps_table
from harness.protocol.backbones import describe_architecture
from harness.protocol.events import Event
from harness.protocol.parameters import RESULT_DTYPES
from harness.protocol.programs.ladder import APPROXIMATE
from harness.protocol.types import Scope
from harness.results.runs import RunRecord
from harness.results.tables import Columns, Table, interval_columns
from harness.stats.intervals import compute_median_interval

# Physics checks that make a stage incorrect even if the baseline fails them too.
FORCE_CHECKS = ("forces from energies", "conservative forces")
# Largest error of a stage that is not APPROXIMATE, relative to the largest force (or energy per atom) of the baseline.
TOLERANCE = {"fp64": 1e-9, "fp32": 1e-4, "bf16": 0.1}
# Errors are divided by these scales (eV/angstrom, eV/atom) at least, since forces vanish in an ideal crystal.
MIN_FORCE_SCALE, MIN_ENERGY_SCALE = 1e-3, 1e-3
# Stages that run the compiled code of another stage.
SAME_COMPILED_GRAPH = {"tuned_allocator": "torch_compile"}
LADDER = Columns(
    "ladder",
    case="case suite setup architecture model workload precision stage verdict physics",
    rates="structures_per_s structures_per_s_low structures_per_s_high coverage",
    speedup="speedup speedup_low speedup_high",
    end_to_end="end_to_end_structures_per_s end_to_end_structures_per_s_low end_to_end_structures_per_s_high",
    errors="max_energy_error_ev_per_atom max_force_error_ev_per_angstrom is_valid force_error_relative"
    " energy_error_relative",
    memory="peak_bytes max_batch_size",
    work="matrix_gflop matrix_gflop_per_s matrix_peak_fraction gflop gflop_per_s memory_traffic_gb"
    " attainable_gflop_per_s"
    " attainable_fraction padding_atom_fraction padding_edge_fraction shapes first_call_s",
    size="samples structures_timed structures atoms edges",
    machine="threads device on_cpu",
    run="state folder",
)
PEAK_MEMORY = Metric("peak memory", "bytes", "lower")


def build_tables(records: Sequence[RunRecord]) -> dict[str, pd.DataFrame]:
    """Return the tables `ladder` and `training_steps`."""
    return {"ladder": build_ladder_table(records), "training_steps": build_training_steps_table(records)}


def list_metric_samples(record: RunRecord) -> Iterator[MetricSamples]:
    """Yield the throughput of each stage, with a sample per round over all batches, and its peak memory."""
    stages: dict[str, dict[int, list[float]]] = {}
    for sample in record.samples:
        sums = stages.setdefault(sample["stage"], {}).setdefault(sample["round"], [0.0, 0.0])
        sums[0] += sample["structures"]
        sums[1] += sample["device_s"]
    for stage, rounds in stages.items():
        values = tuple(structures / seconds for structures, seconds in rounds.values())
        yield MetricSamples(THROUGHPUT, values, {"stage": stage}, tuple(rounds))
    for stage, event in record.stages.items():
        if event.get("peak_bytes"):
            yield MetricSamples(PEAK_MEMORY, (float(event["peak_bytes"]),), {"stage": stage})


def count_work(record: RunRecord, scope: Scope, name: str) -> WorkCount:
    """Return the number of evaluated structures, of all stages or of one."""
    samples = [s for s in record.samples if scope == "case" or s.get("stage") == name]
    return float(sum(s["structures"] for s in samples)), "structure"


def build_ladder_table(records: Sequence[RunRecord]) -> Table:
    """Return one row per case and stage, in the order of the ladder; missing values are NaN.

    The column `verdict` contains "ok" (the stage agrees with the baseline to rounding), "approximate" (the stage is not
    meant to agree), "incorrect" (the stage is meant to agree and does not, or its results are not finite or not in the
    requested precision; the speed-up is withheld), "not checked" (the run has no baseline), "unavailable:
    reason", or "not run". The column `is_valid` says whether the speed-up is valid. Cases with equal `setup` only
    differ in precision.
    """
    return LADDER.build(row for r in records if r.program == "ladder" for row in _list_rows(r))


def _list_rows(record: RunRecord) -> list[dict[str, Any]]:
    stages = group_by_stage(record.samples)
    names = record.case["parameters"].get("stages") or dict.fromkeys([*record.stages, *stages])
    common = _describe_case(record)
    return [common | _describe_stage(record, name, stages) for name in names]


def _describe_case(record: RunRecord) -> dict[str, Any]:
    """Return the columns that the rows of all stages of a case share."""
    parameters, facts = record.case["parameters"], record.facts
    workload, observed = facts.get("workload", {}), facts.get("runtime", {})
    return dict.fromkeys(LADDER, math.nan) | {
        "case": record.case["name"],
        "suite": record.case["suite"],
        "setup": hash_setup(record),
        "architecture": describe_architecture(facts.get("model", {}).get("config", {})),
        "model": describe_model(facts.get("model", {}), get_implementation_name(record)),
        "workload": parameters["workload"],
        "precision": parameters["precision"],
        "structures": workload.get("structures", math.nan),
        "atoms": workload.get("atoms", math.nan),
        "edges": workload.get("edges", math.nan),
        "threads": observed.get("threads", math.nan),
        "on_cpu": not observed.get("device_name"),
        "device": observed.get("device_name") or record.provenance.get("cpu"),
        "state": record.state,
        "is_valid": False,
        "folder": record.location,
    }


def _describe_stage(record: RunRecord, stage: str, stages: Mapping[str, Sequence[Event]]) -> dict[str, Any]:
    samples = stages.get(stage, ())
    row = {"stage": stage, "samples": len({s["round"] for s in samples})}
    event = record.stages.get(stage, {})
    if event.get("event") == "unavailable":
        return row | {"verdict": f"unavailable: {event['reason']}"}
    if not samples:
        return row | {"verdict": "not run"}
    # Ratios to the baseline within each round compare the same batches at about the same time.
    speedup = interval_columns("speedup", compute_paired_ratio(stages.get("baseline", ()), samples))
    errors = _check_errors(samples, stage, record.case["parameters"]["precision"])
    violations = list_stage_violations(record, stage)
    if violations and stage not in APPROXIMATE:
        errors |= {"verdict": "incorrect", "is_valid": False} | dict.fromkeys(LADDER["speedup"], math.nan)
        speedup = {}
    row |= {"physics": describe_physics(record, stage, violations)}
    return row | _compute_rates(samples) | speedup | errors | _describe_work(record, stage, samples)


def list_stage_violations(record: RunRecord, stage: str) -> list[Event]:
    """Return the checks of physics that make a stage incorrect.

    A property that the baseline violates too is a property of the model, except for FORCE_CHECKS: forces must always be
    the gradient of the energy.
    """
    failed = [e for e in record.events("physics_check") if e["passed"] is False]
    baseline_failures = {(e["check"], e["structure"]) for e in failed if e["stage"] == "baseline"}
    by_stage = [e for e in failed if e["stage"] == stage]
    return [e for e in by_stage if e["check"] in FORCE_CHECKS or (e["check"], e["structure"]) not in baseline_failures]


def describe_physics(record: RunRecord, stage: str, violations: Sequence[Event]) -> str:
    """Return the result of the physics checks of a stage as text; empty if there are no checks."""
    events = [e for e in record.events("physics_check") if e["stage"] == stage]
    checks = [e for e in events if e["passed"] is not None]
    if len(checks) < len(events) and not violations:
        reason = next(e.get("reason") for e in events if e["passed"] is None)
        return f"{len(events) - len(checks)} of {len(events)} checks could not be measured: {reason}"
    if not checks:
        return ""
    if violations:
        worst = max(violations, key=lambda e: e["value"] / e["tolerance"])
        return f"{worst['check']} of {worst['structure']}: {worst['value']:.1g} {worst['unit']}"
    model_violations = sorted({e["check"] for e in checks if not e["passed"]})
    return (
        f"{len(checks)} checks passed"
        if not model_violations
        else f"violated by the model: {', '.join(model_violations)}"
    )


def _compute_rates(samples: Sequence[Event]) -> dict[str, Any]:
    structures = sum_by_round(samples, "structures")
    device_s = sum_by_round(samples, "device_s")
    total_s = sum_by_round(samples, "neighbour_lists_s", "collation_s", "transfer_s", "device_s")
    device = compute_median_interval([structures[number] / device_s[number] for number in structures])
    end_to_end = compute_median_interval([structures[number] / total_s[number] for number in structures])
    return {
        "structures_per_s": device.value,
        "structures_per_s_low": device.low,
        "structures_per_s_high": device.high,
        "coverage": device.coverage,
        "end_to_end_structures_per_s": end_to_end.value,
        "end_to_end_structures_per_s_low": end_to_end.low,
        "end_to_end_structures_per_s_high": end_to_end.high,
        "structures_timed": int(sum(s["structures"] for s in samples)),
    }


def _check_errors(samples: Sequence[Event], stage: str, precision: str) -> dict[str, Any]:
    withheld = dict.fromkeys(LADDER["speedup"], math.nan)
    if any(s.get("finite") is None for s in samples):
        return {"verdict": "not checked"} | withheld
    dtypes = {s[name] for s in samples for name in ("energy_dtype", "force_dtype")}
    if not all(s["finite"] for s in samples) or dtypes != {RESULT_DTYPES[precision]}:
        return {"verdict": "incorrect"} | withheld
    force = max(
        s["force_error_ev_per_angstrom"] / max(s["force_scale_ev_per_angstrom"], MIN_FORCE_SCALE) for s in samples
    )
    energy = max(s["energy_error_ev_per_atom"] / max(s["energy_scale_ev_per_atom"], MIN_ENERGY_SCALE) for s in samples)
    errors: dict[str, Any] = {
        "max_energy_error_ev_per_atom": max(s["energy_error_ev_per_atom"] for s in samples),
        "max_force_error_ev_per_angstrom": max(s["force_error_ev_per_angstrom"] for s in samples),
        "force_error_relative": force,
        "energy_error_relative": energy,
    }
    if stage in APPROXIMATE:
        return errors | {"verdict": "approximate", "is_valid": True}
    if max(force, energy) <= TOLERANCE[precision]:
        return errors | {"verdict": "ok", "is_valid": True}
    return errors | {"verdict": "incorrect"} | withheld


def _describe_work(record: RunRecord, stage: str, samples: Sequence[Event]) -> dict[str, Any]:
    """Return arithmetic, traffic and memory of one call on the case's first batch."""
    event = record.stages.get(stage, {})
    work: dict[str, Any] = {"peak_bytes": event.get("peak_bytes"), "first_call_s": event.get("first_call_s")}
    first = [s for s in samples if s["batch"] == 0]
    if not first:
        return work
    seconds = compute_median_interval([s["device_s"] for s in first]).value
    ceilings = record.facts.get("ceilings", {})
    if free := record.facts.get("free_bytes"):
        work["max_batch_size"] = int(free * first[0]["structures"] / max(1, event.get("peak_bytes", 1)))
    if event.get("flops"):
        work |= compute_matmul_rates(event["flops"], ceilings, seconds)
    traffic_bytes = event.get("memory_traffic_bytes") or record.stages.get(SAME_COMPILED_GRAPH.get(stage, ""), {}).get(
        "memory_traffic_bytes"
    )
    padding = next((e for e in record.events("padding") if e["stage"] == stage), None)
    if padding is not None:
        work |= {k: padding[k] for k in ("padding_atom_fraction", "padding_edge_fraction")} | {
            "shapes": len(padding["shapes"])
        }
    return work | compute_roofline(event.get("flops"), traffic_bytes, ceilings, seconds)


def compute_matmul_rates(flops: list[dict[str, Any]], ceilings: dict[str, Any], seconds: float) -> dict[str, float]:
    """Return the arithmetic of the matrix products of a call, its rate, and its share of the matrix peak.

    The matrix peak is the rate of large square products of the same types.

    Args:
        flops: The operations of one call, each with the fields of `Flops`.
        ceilings: The fields of `Ceilings`.
        seconds: The duration of the call.

    Returns:
        matrix_gflop, matrix_gflop_per_s and matrix_peak_fraction, which is NaN if no ceiling was measured.
    """
    squares = {s["dtype"]: s["gflop_per_s"] for s in ceilings.get("squares", [])}
    products = [f for f in flops if f["operation"] != "messages"]
    gflop = sum(f["flops"] for f in products) / 1e9
    min_s = sum(f["flops"] / 1e9 / squares.get(f["dtype"], math.inf) for f in products)
    share = min_s / seconds if squares else math.nan
    return {"matrix_gflop": gflop, "matrix_gflop_per_s": gflop / seconds, "matrix_peak_fraction": share}


def compute_roofline(
    flops: list[dict[str, Any]] | None, traffic_bytes: int | None, ceilings: dict[str, Any], seconds: float
) -> dict[str, Any]:
    """Return the arithmetic and the traffic of a call, the attainable rate, and the attained share of this rate.

    A call takes at least the time of its arithmetic, if each kind of operation has the rate of a matrix product of the
    same shape and type, and at least the time of its traffic at the rate of a copy (Williams, Waterman, Patterson, CACM
    52(4), 65 (2009)).
    """
    rates = {(p["operation"], p["dtype"]): p["gflop_per_s"] for p in ceilings.get("products", [])}
    if not flops or not rates:
        return {}
    gflop = sum(f["flops"] for f in flops) / 1e9
    work = {"gflop": gflop, "gflop_per_s": gflop / seconds}
    if not traffic_bytes:
        return work
    arithmetic_s = sum(
        f["flops"] / 1e9 / rates[f["operation"], f["dtype"]] for f in flops if (f["operation"], f["dtype"]) in rates
    )
    min_s = max(arithmetic_s, traffic_bytes / 1e9 / ceilings["copy_gb_per_s"])
    return work | {
        "memory_traffic_gb": traffic_bytes / 1e9,
        "attainable_gflop_per_s": gflop / min_s,
        "attainable_fraction": min_s / seconds,
    }
