"""The tables of the comparison of interatomic potentials."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from harness.experiments.experiment import Metric, MetricSamples, WorkCount
from harness.experiments.models.vector_biases import build_vector_biases_table
from harness.experiments.physics import judge_checks, list_violated, name_violated
from harness.protocol.events import Event
from harness.protocol.types import Scope
from harness.results.runs import RunRecord
from harness.results.tables import Columns, Table, interval_columns
from harness.stats.intervals import compute_median_interval

Verdict = Literal["ok", "incorrect", "not checked", "failed", "unavailable", "not run"]
MODELS = Columns(
    "models",
    case="campaign case model verdict reason",
    model="class_name version python precision compiled dtype parameters properties load_s",
    speed="atoms us_per_atom us_per_atom_low us_per_atom_high structures_per_s exponent",
    memory="peak_bytes device_peak_bytes largest_atoms largest_limit",
    errors="force_mae_ev_per_angstrom energy_mae_ev_per_atom force_deviation_max_ev_per_angstrom",
    physics="checks violations violated",
    run="threads device load case_state folder",
)
MODEL_SPEED = Columns(
    "model_speed",
    columns="campaign case model threads atoms device_s device_s_low device_s_high us_per_atom samples peak_bytes"
    " folder",
)
MODEL_ERRORS = Columns(
    "model_errors",
    columns="campaign case model precision threads reference dataset level_of_theory structures energy_mae_ev_per_atom"
    " force_mae_ev_per_angstrom force_max_ev_per_angstrom stress_mae_ev_per_angstrom3 excluded folder",
)
MODEL_PHYSICS = Columns(
    "model_physics", columns="campaign case model threads check structure value tolerance unit passed reason folder"
)
TIME_PER_ATOM = Metric("time per atom", "us", "lower")


def build_tables(records: Sequence[RunRecord]) -> dict[str, Table]:
    """Return the tables of the comparison of interatomic potentials.

    models: a row per case and model. The verdict is "incorrect" if the model violates a property that every potential
    has, and "not checked" if no check could be measured; `reason` names the violated or the unmeasured check, or the
    failure. us_per_atom is the median over rounds for the largest crystal, with its interval. exponent is the slope of
    log(time) over log(atoms).
    model_speed: a row per model and crystal.
    model_errors: a row per model, dataset and reference (labels, or the model's own FP64 predictions).
    model_physics: a row per model and check.
    vector_biases: see `harness.experiments.models.vector_biases`.
    """
    runs = [r for r in records if r.program == "models"]
    return {
        "models": MODELS.build(row for r in runs for row in _list_models(r)),
        "model_speed": MODEL_SPEED.build(row for r in runs for row in _list_speed(r)),
        "model_errors": MODEL_ERRORS.build(row for r in runs for row in _list_errors(r)),
        "model_physics": MODEL_PHYSICS.build(row for r in runs for row in _list_physics(r)),
        "vector_biases": build_vector_biases_table(records),
    }


def list_metric_samples(record: RunRecord) -> Iterator[MetricSamples]:
    """Yield the time per atom of each model and crystal, with a sample per round."""
    for (model, atoms), samples in _group_samples(record).items():
        values = tuple(1e6 * s["device_s"] / atoms for s in samples)
        rounds = tuple(s["round"] for s in samples)
        yield MetricSamples(TIME_PER_ATOM, values, {"model": model, "atoms": str(atoms)}, rounds)


def count_work(record: RunRecord, scope: Scope, name: str) -> WorkCount:
    """Return the atoms in timed predictions, in millions: of the model `name` if the scope is "stage", else of all."""
    timed = [s["atoms"] for s in record.samples if scope != "stage" or s["model"] == name]
    return sum(timed) / 1e6, "million atoms"


def _group_samples(record: RunRecord) -> dict[tuple[str, int], list[Event]]:
    """Return the samples of a run by model and number of atoms."""
    groups: dict[tuple[str, int], list[Event]] = {}
    for sample in record.samples:
        groups.setdefault((sample["model"], sample["atoms"]), []).append(sample)
    return groups


def _describe_case(record: RunRecord) -> dict[str, Any]:
    """Return the columns about the case, which all tables have."""
    return {
        "campaign": record.campaign,
        "case": record.case.get("name"),
        "threads": record.facts.get("threads"),
        "folder": record.location,
    }


def _find_events(record: RunRecord, tag: str, model: str) -> list[Event]:
    """Return the events with a tag that are about a model."""
    return [event for event in record.events(tag) if event["model"] == model]


def _list_models(record: RunRecord) -> Iterator[dict[str, Any]]:
    """Yield a row of the table `models` for each model that a run was asked to compare."""
    speed = list(_list_speed(record))
    largest = {row["model"]: row for row in speed}  # the rows of a model are in the order of sizes
    for name in record.case["parameters"].get("definitions") or {}:
        loaded = next(iter(_find_events(record, "model_loaded", name)), {})
        row = _describe_case(record) | {
            "model": name,
            "precision": record.case["parameters"].get("precision", "published"),
            "compiled": bool(record.case["parameters"].get("compiled")),
            "device": record.facts.get("device"),
            "case_state": record.state,
            "load": max((s["load_1min"] for s in record.samples), default=math.nan),
            "version": _format_version(loaded.get("packages") or {}),
            "properties": ", ".join(loaded.get("properties") or ()),
            **{key: loaded.get(key) for key in ("class_name", "python", "dtype", "parameters", "load_s")},
        }
        if name in largest:
            timed = largest[name]
            us_per_s_and_atom = 1e6 / timed["atoms"]
            row |= {k: timed[k] for k in ("atoms", "us_per_atom", "peak_bytes")} | {
                "us_per_atom_low": us_per_s_and_atom * timed["device_s_low"],
                "us_per_atom_high": us_per_s_and_atom * timed["device_s_high"],
                "structures_per_s": 1 / timed["device_s"],
                "exponent": _fit_exponent([s for s in speed if s["model"] == name]),
            }
        row |= _summarize_memory(record, name) | _summarize_errors(record, name) | _judge_model(record, name)
        yield row


def _format_version(packages: Mapping[str, str]) -> str:
    """Return the name and the version of the model's package, which is the first; empty without packages."""
    return " ".join(f"{name} {version}" for name, version in list(packages.items())[:1])


def _judge_model(record: RunRecord, name: str) -> dict[str, Any]:
    """Return the columns about the physics of a model: its verdict with the reason, its checks and its violations."""
    checks = _find_events(record, "physics_check", name)
    columns: dict[str, Any] = {
        "checks": sum(c["passed"] is not None for c in checks),
        "violations": len(list_violated(checks)),
        "violated": name_violated(checks),
    }
    verdict: Verdict
    verdict, reason = judge_checks(checks)
    unavailable, failed = _find_events(record, "model_unavailable", name), _find_events(record, "model_failed", name)
    if unavailable:
        verdict, reason = "unavailable", unavailable[0]["reason"]
    elif failed and verdict != "incorrect":
        verdict, reason = "failed", f"{failed[0]['step']}: {failed[0]['reason']}"
    elif not checks and not _find_events(record, "model_loaded", name):
        verdict = "not run"
    return columns | {"verdict": verdict, "reason": reason}


def _summarize_memory(record: RunRecord, name: str) -> dict[str, Any]:
    """Return the columns about the accelerator's memory and the largest crystal that a model could predict."""
    on_device = [e["device_peak_bytes"] for e in _find_events(record, "memory", name) if e.get("device_peak_bytes")]
    largest = next(iter(_find_events(record, "largest_size", name)), {})
    return {
        "device_peak_bytes": max(on_device, default=math.nan),
        "largest_atoms": largest.get("atoms"),
        "largest_limit": largest.get("limit"),
    }


def _summarize_errors(record: RunRecord, name: str) -> dict[str, Any]:
    """Return the columns about errors: means over all structures, and the largest deviation from FP64."""
    events = _find_events(record, "potential_errors", name)
    labels = [e for e in events if e["reference"] == "labels"]
    columns: dict[str, Any] = {}
    for key in ("energy_mae_ev_per_atom", "force_mae_ev_per_angstrom"):
        known = [e for e in labels if e.get(key) is not None]
        weights = [e["structures"] for e in known]
        columns[key] = float(np.average([e[key] for e in known], weights=weights)) if known else math.nan
    deviations = [e["force_max_ev_per_angstrom"] for e in events if e["reference"] == "fp64" and e["structures"]]
    return columns | {"force_deviation_max_ev_per_angstrom": max(deviations, default=math.nan)}


def _fit_exponent(rows: Sequence[Mapping[str, Any]]) -> float:
    """Return the slope of log(time) over log(atoms); NaN with fewer than two crystals."""
    if len(rows) < 2:
        return math.nan
    return float(np.polyfit(np.log([r["atoms"] for r in rows]), np.log([r["device_s"] for r in rows]), 1)[0])


def _list_speed(record: RunRecord) -> Iterator[dict[str, Any]]:
    """Yield a row of the table `model_speed` for each model and crystal, from small to large crystals."""
    memory = {(e["model"], e["atoms"]): e["peak_bytes"] for e in record.events("memory")}
    for (model, atoms), samples in sorted(_group_samples(record).items()):
        interval = compute_median_interval([s["device_s"] for s in samples])
        yield _describe_case(record) | {
            "model": model,
            "atoms": atoms,
            **interval_columns("device_s", interval),
            "us_per_atom": 1e6 * interval.value / atoms,
            "samples": len(samples),
            "peak_bytes": memory.get((model, atoms), math.nan),
        }


def _list_errors(record: RunRecord) -> Iterator[dict[str, Any]]:
    """Yield a row of the table `model_errors` for each event of the program."""
    for event in record.events("potential_errors"):
        excluded = event.get("excluded") or {}
        yield _describe_case(record) | {
            "precision": record.case["parameters"].get("precision", "published"),
            **MODEL_ERRORS.select(event),
            "excluded": "; ".join(f"{n} {reason}" for reason, n in excluded.items()),
        }


def _list_physics(record: RunRecord) -> Iterator[dict[str, Any]]:
    """Yield a row of the table `model_physics` for each check."""
    for event in record.events("physics_check"):
        yield _describe_case(record) | MODEL_PHYSICS.select(event)
