"""Tables on the costs of cases and of their parts: energy (total and per result), GPU-hours, counted operations.

A part is an epoch, a trial, a stage or a precision of a case. The energy of a case is the energy of all its nodes, as
far as their sensors measure it (`energy_scope`). If telemetry does not support an energy, it is missing, and the column
`unavailable_reason` says why.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from harness.experiments.cost.speed import build_speed_table
from harness.experiments.experiment import CostJoin, WorkCount
from harness.experiments.registry import find_experiment
from harness.protocol.types import Scope
from harness.results.runs import RunRecord
from harness.results.tables import Columns
from harness.telemetry.collect import Telemetry, collect_usage
from harness.telemetry.usage import Usage
from harness.telemetry.windows import Window

ENERGY = (
    "energy_j energy_scope energy_method power_w node_energy_j accelerator_energy_j cpu_energy_j memory_energy_j"
    " work_units"
    " work_unit energy_per_result_j unavailable_reason"
)
SENSOR_COLUMNS = (
    "accelerator_utilization_percent accelerator_memory_percent accelerator_memory_max_percent"
    " accelerator_clock_mhz accelerator_temperature_c accelerator_temperature_max_c busy_cores"
    " host_memory_used_max_bytes received_bytes sent_bytes read_bytes written_bytes local_read_bytes"
    " local_written_bytes memory_traffic_bytes counter_gflop_per_s counter_gb_per_s"
)
COVERAGE = "source interval_s samples nodes nodes_sampled"
CASES = Columns(
    "cost_cases",
    case="campaign suite system case id program precision state",
    time="seconds gpu_hours node_hours",
    energy=ENERGY,
    figures=SENSOR_COLUMNS,
    sampler="sampler_core_fraction",
    coverage=COVERAGE,
    run="folder",
)
PARTS = Columns(
    "cost_parts",
    part="campaign case program scope name",
    time="seconds gpu_hours",
    energy=ENERGY,
    figures=SENSOR_COLUMNS,
    coverage=COVERAGE,
    run="folder",
)
SOURCES = Columns("cost_sources", source="campaign path kind version faults")
# The columns of costs that `join_costs` adds to tables of other experiments.
JOINED_COLUMNS = (
    "energy_j", "energy_scope", "energy_per_result_j", "work_unit", "gpu_hours", "counter_gflop_per_s",
    "counter_gb_per_s",
)  # fmt: skip
# The devices that are accelerators; each rank uses one accelerator.
ACCELERATORS = ("cuda", "xpu")
# If a concurrent trial on the same nodes covers more than this share of a trial, the cost of the trial is withheld.
MAX_OVERLAP = 0.02


def build_tables(records: Sequence[RunRecord]) -> dict[str, pd.DataFrame]:
    """Return the tables of costs from the telemetry in the run folders, and the table of the speed tests of jobs."""
    return build_cost_tables(records, collect_usage(records)) | {"cost_speed": build_speed_table(records)}


def build_cost_tables(records: Sequence[RunRecord], telemetry: Telemetry) -> dict[str, pd.DataFrame]:
    """Return the tables of costs; missing values are NaN or None.

    `cost_cases` has a row per case with a duration, `cost_parts` a row per part of a case with telemetry, and
    `cost_sources` a row per telemetry source, with its faults.
    """
    by_case: dict[str, list[Usage]] = {}
    for usage in telemetry.usages:
        by_case.setdefault(usage.window.folder, []).append(usage)
    cases, parts = [], []
    for record in records:
        if record.duration_s is None:
            continue
        usages = by_case.get(record.location, [])
        whole = next((u for u in usages if u.window.scope == "case"), None)
        cases.append(_describe_case(record, record.duration_s, whole))
        overlapping = _find_overlapping_trials([u for u in usages if u.window.scope == "trial"])
        parts += [_describe_part(record, u, u.window.name in overlapping) for u in usages if u.window.scope != "case"]
    sources = [
        {"campaign": s.campaign, "path": str(s.path), "kind": s.kind, "version": s.version, "faults": s.faults}
        for s in telemetry.sources
    ]
    return {
        "cost_cases": CASES.build(cases),
        "cost_parts": PARTS.build(parts),
        "cost_sources": SOURCES.build(sources),
    }


def join_costs(table: pd.DataFrame, cases: pd.DataFrame, parts_table: pd.DataFrame, join: CostJoin) -> pd.DataFrame:
    """Return an experiment's table with JOINED_COLUMNS added; NaN if the cost of a row is unknown.

    Args:
        table: The experiment's table, with the columns that `join` names.
        cases: The table `cost_cases`.
        parts_table: The table `cost_parts`.
        join: The rule that joins the rows.
    """
    costs = cases if join.scope == "case" else parts_table[parts_table["scope"] == join.scope]
    names = list(JOINED_COLUMNS)
    if table.empty or costs.empty:
        return table.reindex(columns=[*table.columns, *names])
    left = pd.DataFrame({key: table[key].astype(str) for key in join.keys}, index=table.index)
    right = costs[[*join.keys, *names]].astype(dict.fromkeys(join.keys, str))
    keys = list(join.keys)
    if join.name_columns:
        left["_name"] = [
            " ".join(map(str, values)) for values in table[list(join.name_columns)].itertuples(index=False)
        ]
        right["_name"] = costs["name"].astype(str)
        keys.append("_name")
    joined = pd.DataFrame(left).merge(pd.DataFrame(right).drop_duplicates(keys), how="left", on=keys)
    return table.assign(**{name: joined[name].to_numpy() for name in names})


def get_work_count(record: RunRecord, scope: Scope, name: str) -> WorkCount:
    """Return the number of useful results of a case or of a part of it, and their unit; NaN if unknown."""
    if scope == "trial":
        return 1.0, "trial"
    experiment = find_experiment(record.program)
    function = experiment.find_function("count_work") if experiment else None
    return (math.nan, "") if function is None else function(record, scope, name)


def sum_energy(usage: Usage) -> tuple[float, str, str]:
    """Return the energy of a window in joules, its components and the method; (NaN, "", "") if it is unknown.

    A sensor of the whole node covers all components; otherwise, the energies of the components with sensors are added.
    Nodes without samples are assumed to have used as much energy as the others.
    """
    parts = (
        ["node"] if "node" in usage.energy_j else [p for p in ("accelerator", "cpu", "memory") if p in usage.energy_j]
    )
    if not parts:
        return math.nan, "", ""
    scale = usage.nodes / usage.nodes_sampled if usage.nodes_sampled else math.nan
    scope = {"node": "whole nodes", "accelerator": "accelerators", "cpu": "CPUs", "memory": "memory"}
    method = " and ".join(sorted({usage.methods[p] for p in parts}))
    if usage.omitted_component:
        method += f"; without {usage.omitted_component}"
    if scale != 1.0:
        method += f", scaled up from {usage.nodes_sampled} of {usage.nodes} nodes"
    return scale * sum(usage.energy_j[p] for p in parts), " and ".join(scope[p] for p in parts), method


def _describe_energy(usage: Usage, results: float, unit: str, *, overlaps: bool = False) -> dict[str, Any]:
    joules, scope, method = sum_energy(usage)
    row: dict[str, Any] = {"work_units": results, "work_unit": unit, "unavailable_reason": usage.unavailable_reason}
    if overlaps:
        return row | {"unavailable_reason": "other trials ran on its nodes at the same time"}
    per_node = {f"{part}_energy_j": value for part, value in usage.energy_j.items()}
    return row | per_node | {
        "energy_j": joules, "energy_scope": scope, "energy_method": method, "power_w": joules / usage.window.seconds,
        "energy_per_result_j": joules / results if results > 0 else math.nan,
    }  # fmt: skip


def _describe_case(record: RunRecord, seconds: float, usage: Usage | None) -> dict[str, Any]:
    case = record.case
    results, unit = get_work_count(record, "case", "")
    row: dict[str, Any] = {
        "campaign": record.campaign, **{k: case.get(k) for k in ("suite", "system", "id", "program")},
        "case": case.get("name"), "precision": case.get("parameters", {}).get("precision"), "state": record.state,
        "seconds": seconds, "gpu_hours": _count_gpus(record) * seconds / 3600, "work_units": results, "work_unit": unit,
        "node_hours": case.get("nodes", math.nan) * seconds / 3600, "unavailable_reason": "no telemetry",
        "folder": record.location,
    }  # fmt: skip
    if usage is None:
        return row
    sampler = usage.quantities.get("sampler_cpu_s")
    share = sampler / usage.window.seconds / max(usage.nodes_sampled, 1) if sampler is not None else math.nan
    energy = _describe_energy(usage, results, unit)
    return row | _select_coverage(usage) | energy | _select_figures(usage) | {"sampler_core_fraction": share}


def _describe_part(record: RunRecord, usage: Usage, overlaps: bool) -> dict[str, Any]:
    window = usage.window
    results, unit = get_work_count(record, window.scope, window.name)
    return {
        "campaign": record.campaign, "case": record.case.get("name"), "program": record.case.get("program"),
        "scope": window.scope, "name": window.name, "seconds": window.seconds, "folder": window.folder,
        "gpu_hours": _count_gpus(record, window) * window.seconds / 3600, **_select_coverage(usage),
        **_describe_energy(usage, results, unit, overlaps=overlaps), **_select_figures(usage),
    }  # fmt: skip


def _select_figures(usage: Usage) -> dict[str, Any]:
    return CASES.select(usage.quantities, "figures")


def _select_coverage(usage: Usage) -> dict[str, Any]:
    return {name: getattr(usage, name) for name in CASES["coverage"]}


def _count_gpus(record: RunRecord, window: Window | None = None) -> float:
    """Return the number of accelerators, one per rank, of the case or of the nodes of a trial; NaN on CPUs."""
    case = record.case
    parameters = case.get("parameters", {})
    parameters = parameters.get("trial") or parameters  # the device of a search is a parameter of its trials
    device = parameters.get("device") or ("cuda" if parameters.get("backend") == "nccl" else "cpu")
    if device not in ACCELERATORS:
        return math.nan
    if window is not None and window.scope == "trial":
        return len(window.nodes) * case.get("ranks_per_node", math.nan) if window.nodes else math.nan
    return float(case.get("ranks", math.nan))


def _find_overlapping_trials(trials: Sequence[Usage]) -> set[str]:
    """Return the names of the trials during which another trial ran on the same nodes."""
    names = set()
    for usage in trials:
        (start, end), nodes = usage.window.intervals[0], usage.window.nodes
        for other in trials:
            (other_start, other_end), other_nodes = other.window.intervals[0], other.window.nodes
            shares_nodes = nodes is None or other_nodes is None or any(a & b for a in nodes for b in other_nodes)
            overlap_s = min(end, other_end) - max(start, other_start)
            if other is not usage and shares_nodes and overlap_s > MAX_OVERLAP * (end - start):
                names.add(usage.window.name)
    return names
