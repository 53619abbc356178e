"""What runs cost: telemetry joined to what it was spent on. Energy, GPU-hours, counted operations, per useful result.

Energy is of all nodes that a case ran on, by whatever sensors they have (`scope`), and is withheld, with the reason,
where telemetry does not carry it: no number is better than a wrong one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from harness.experiments.work_units import results_of
from harness.results.runs import Record
from harness.telemetry.collect import Telemetry
from harness.telemetry.usage import Usage
from harness.telemetry.windows import Window

# What stands beside throughput in the tables of every experiment.
BESIDE = ("energy_j", "energy_scope", "energy_per_result_j", "result", "gpu_hours", "counted_gflop_per_s",
          "counted_gb_per_s")  # fmt: skip
FIGURES = (
    "accelerator_utilization_percent", "accelerator_memory_percent", "accelerator_memory_highest_percent",
    "accelerator_clock_mhz", "accelerator_temperature_c", "accelerator_temperature_highest_c", "busy_cores",
    "host_memory_used_highest_bytes", "received_bytes", "sent_bytes", "read_bytes", "written_bytes",
    "local_read_bytes", "local_written_bytes", "memory_traffic_bytes", "counted_gflop_per_s", "counted_gb_per_s",
)  # fmt: skip
ENERGY = (
    "energy_j", "energy_scope", "energy_by", "power_w", "node_energy_j", "accelerator_energy_j", "cpu_energy_j",
    "memory_energy_j", "results", "result", "energy_per_result_j", "why_not",
)  # fmt: skip
SEEN = ("source", "interval_s", "samples", "nodes", "nodes_seen")
CASES = (
    "campaign", "suite", "system", "case", "id", "program", "precision", "state", "seconds", "gpu_hours", "node_hours",
    *ENERGY, *FIGURES, "sampler_share", *SEEN, "folder",
)  # fmt: skip
PIECES = (
    "campaign", "case", "program", "what", "name", "seconds", "gpu_hours", *ENERGY, *FIGURES, *SEEN, "folder",
)  # fmt: skip
SOURCES = ("campaign", "path", "kind", "version", "faults")
# Kinds of devices of which a rank takes one.
ACCELERATORS = ("cuda", "xpu")


@dataclass(frozen=True)
class CostTables:
    """cases: a row a case that has begun. pieces: a row an epoch, trial, stage or precision within one, of those cases
    that have telemetry. sources: files of telemetry, and what was wrong with them."""

    cases: pd.DataFrame
    pieces: pd.DataFrame
    sources: pd.DataFrame


def cost_tables(records: Sequence[Record], telemetry: Telemetry) -> CostTables:
    """All tables; missing values are NaN or None."""
    by_case: dict[str, list[Usage]] = {}
    for usage in telemetry.usages:
        by_case.setdefault(usage.window.folder, []).append(usage)
    begun = [r for r in records if r.began_s is not None and r.ended_s is not None and r.ended_s > r.began_s]
    cases, pieces = [], []
    for record in begun:
        own = by_case.get(str(record.folder), [])
        whole = next((u for u in own if u.window.what == "case"), None)
        cases.append(_case(record, whole))
        shared = _shared([u for u in own if u.window.what == "trial"])
        pieces += [_piece(record, u, u.window.name in shared) for u in own if u.window.what != "case"]
    sources = [
        {"campaign": told.campaign, "path": str(told.path), "kind": told.kind, "version": told.version,
         "faults": told.faults}
        for told in telemetry.sources
    ]  # fmt: skip
    return CostTables(
        pd.DataFrame(cases, columns=CASES),
        pd.DataFrame(pieces, columns=PIECES),
        pd.DataFrame(sources, columns=SOURCES),
    )


def beside(table: pd.DataFrame, costs: pd.DataFrame, keys: Mapping[str, str]) -> pd.DataFrame:
    """An experiment's table with what its rows cost; keys: its column -> the column of `costs` that it must equal."""
    names = list(BESIDE)
    if table.empty or costs.empty:
        return table.reindex(columns=[*table.columns, *names])
    right = costs[[*keys.values(), *names]].drop_duplicates(list(keys.values())).copy()
    left = pd.DataFrame({f"_{column}": table[column].astype(str) for column in keys}, index=table.index)
    right = right.assign(**{f"_{column}": right[other].astype(str) for column, other in keys.items()})
    found = left.merge(right[[*left.columns, *names]], how="left", on=list(left.columns))
    return table.assign(**{name: found[name].to_numpy() for name in names})


def energy_of(usage: Usage) -> tuple[float, str, str]:
    """Joules of the whole window, what they are of, and where they are from.

    A node's own sensor knows of everything in it; else the parts that have sensors are added up. Where a few nodes sent
    nothing, they are taken to have used what the others did.
    """
    parts = (
        ["node"] if "node" in usage.energy_j else [p for p in ("accelerator", "cpu", "memory") if p in usage.energy_j]
    )
    if not parts:
        return math.nan, "", ""
    scale = usage.nodes / usage.nodes_seen if usage.nodes_seen else math.nan
    scope = {"node": "whole nodes", "accelerator": "accelerators", "cpu": "CPUs", "memory": "memory"}
    how = " and ".join(sorted({usage.how[p] for p in parts}))
    if usage.missing:
        how += f"; without {usage.missing}"
    if scale != 1.0:
        how += f", {usage.nodes_seen} of {usage.nodes} nodes scaled up"
    return scale * sum(usage.energy_j[p] for p in parts), " and ".join(scope[p] for p in parts), how


def _energies(usage: Usage, results: float, unit: str, *, shared: bool = False) -> dict[str, Any]:
    joules, scope, how = energy_of(usage)
    row: dict[str, Any] = {"results": results, "result": unit, "why_not": usage.why_not}
    if shared:
        return row | {"why_not": "other trials ran on its nodes meanwhile"}
    per_node = {f"{part}_energy_j": value for part, value in usage.energy_j.items()}
    return row | per_node | {
        "energy_j": joules, "energy_scope": scope, "energy_by": how, "power_w": joules / usage.window.seconds,
        "energy_per_result_j": joules / results if results > 0 else math.nan,
    }  # fmt: skip


def _case(record: Record, usage: Usage | None) -> dict[str, Any]:
    case = record.case
    assert record.began_s is not None
    assert record.ended_s is not None
    seconds = record.ended_s - record.began_s
    results, unit = results_of(record, "case", "")
    row: dict[str, Any] = {
        "campaign": record.folder.parent.name, **{k: case.get(k) for k in ("suite", "system", "id", "program")},
        "case": case.get("name"), "precision": case.get("parameters", {}).get("precision"), "state": record.state,
        "seconds": seconds, "gpu_hours": _gpus(record) * seconds / 3600, "results": results, "result": unit,
        "node_hours": case.get("nodes", math.nan) * seconds / 3600, "why_not": "no telemetry",
        "folder": str(record.folder),
    }  # fmt: skip
    if usage is None:
        return row
    sampler = usage.figures.get("sampler_cpu_s")
    share = sampler / usage.window.seconds / max(usage.nodes_seen, 1) if sampler is not None else math.nan
    return row | _seen(usage) | _energies(usage, results, unit) | usage.figures | {"sampler_share": share}


def _piece(record: Record, usage: Usage, shared: bool) -> dict[str, Any]:
    window = usage.window
    results, unit = results_of(record, window.what, window.name)
    return {
        "campaign": record.folder.parent.name, "case": record.case.get("name"), "program": record.case.get("program"),
        "what": window.what, "name": window.name, "seconds": window.seconds, "folder": window.folder,
        "gpu_hours": _gpus(record, window) * window.seconds / 3600, **_seen(usage),
        **_energies(usage, results, unit, shared=shared), **usage.figures,
    }  # fmt: skip


def _seen(usage: Usage) -> dict[str, Any]:
    return {name: getattr(usage, name) for name in SEEN}


def _gpus(record: Record, window: Window | None = None) -> float:
    """Accelerators that the case, or a trial on nodes of its own, held: one a rank. NaN on CPUs."""
    case = record.case
    parameters = case.get("parameters", {})
    parameters = parameters.get("trial") or parameters  # a search has those of its trials
    device = parameters.get("device") or ("cuda" if parameters.get("backend") == "nccl" else "cpu")
    if device not in ACCELERATORS:
        return math.nan
    if window is not None and window.what == "trial":
        return len(window.nodes) * case.get("ranks_per_node", math.nan) if window.nodes else math.nan
    return float(case.get("ranks", math.nan))


def _shared(trials: Sequence[Usage]) -> set[str]:
    """Names of the trials that ran while another one did on the same nodes."""
    found = set()
    for usage in trials:
        (start, end), nodes = usage.window.pieces[0], usage.window.nodes
        for other in trials:
            (first, last), theirs = other.window.pieces[0], other.window.nodes
            together = nodes is None or theirs is None or any(a & b for a in nodes for b in theirs)
            if other is not usage and together and min(end, last) - max(start, first) > 0.02 * (end - start):
                found.add(usage.window.name)
    return found
