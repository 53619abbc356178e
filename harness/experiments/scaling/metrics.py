"""Weak and strong scaling: records of data-parallel training -> one row per run."""

from __future__ import annotations

import statistics
from typing import Any

import pandas as pd

from harness.results.runs import Record

# The kinds of work that steps are cut into, harness.reference.programs.scaling.phases.
REGIONS = ("data", "neighbour_lists", "collation", "forward", "gradient", "backward", "optimizer")
COLUMNS = (
    "campaign", "suite", "system", "case", "id", "mode", "nodes", "hosts", "cores", "ranks", "batch_size",
    "global_batch", "graphs_per_s", "lowest", "highest", "epochs", "efficiency", "efficiency_low", "efficiency_high",
    "communication", "waiting",
    "atoms_imbalance", "edges_imbalance", *(f"{name}_s" for name in REGIONS),
    "gradient_error", "divergence", "precision", "device", "data", "folder",
)  # fmt: skip


def scaling_table(records: list[Record]) -> pd.DataFrame:
    """One row per finished run, smallest first within each mode.

    graphs_per_s: ranks x batch x steps over the time of the train region, median of the kept epochs. efficiency:
    throughput per rank over that of the smallest run of the same mode and campaign; low and high: of the slowest and
    fastest epochs of both. imbalance: atoms and edges of the rank that has most, over the mean rank, mean over steps.
    <region>_s: median over cut-up steps of the slowest rank. communication: the part of the
    step that goes away when the ranks do not exchange gradients. waiting: for data, of the time of the kept epochs.
    """
    rows = [_row(r) for r in records if r.case.get("program") == "data_parallel" and r.state == "done"]
    table = pd.DataFrame(rows, columns=COLUMNS)
    table = table.sort_values(["campaign", "mode", "ranks"], kind="stable").reset_index(drop=True)
    per_rank = table["graphs_per_s"] / table["ranks"]
    keys = [table["campaign"], table["mode"]]
    table["efficiency"] = per_rank / per_rank.groupby(keys).transform("first")
    low, high = table["lowest"] / table["ranks"], table["highest"] / table["ranks"]
    table["efficiency_low"] = low / high.groupby(keys).transform("first")
    table["efficiency_high"] = high / low.groupby(keys).transform("first")
    return table


def _row(record: Record) -> dict[str, Any]:
    case, facts = record.case, record.facts
    ranks, workload, seen = facts["ranks"], facts["workload"], facts["observed"]
    throughput = facts["throughput_graphs_per_s"]
    return {
        "campaign": record.folder.parent.name,
        **{name: case.get(name) for name in ("suite", "system", "id")},
        "case": case.get("name"),
        "mode": str(case.get("point", {}).get("mode", "runs")),
        "nodes": len({rank["node"] or rank["host"] for rank in ranks}),
        "hosts": len({rank["host"] for rank in ranks}),
        "cores": min(rank["cores"] for rank in ranks),
        "ranks": len(ranks),
        "batch_size": workload["batch_size"],
        "global_batch": workload["global_batch_size"],
        "graphs_per_s": statistics.median(throughput),
        "lowest": min(throughput),
        "highest": max(throughput),
        "epochs": len(throughput),
        "communication": _communication(record),
        "waiting": _waiting(record),
        **_imbalance(record),
        **_regions(record),
        "gradient_error": facts.get("gradient_error"),
        "divergence": facts.get("parameter_divergence"),
        "precision": seen["requested"],
        "device": seen["device_name"] or seen["device"],
        "data": ", ".join(f"{s['set']} ({s['role']})" for s in workload["sets"]),
        "folder": str(record.folder),
    }


def _communication(record: Record) -> float | None:
    """From the last epoch's steps and the same steps done once more without an exchange."""
    alone = record.others.get("compute_only", [])
    last = max((s["epoch"] for s in record.samples), default=None)
    together = [s["busy" if "busy" in s else "seconds"] for s in record.samples if s["epoch"] == last]
    if not alone or len(alone) != len(together):
        return None
    return max(0.0, 1.0 - sum(s["seconds"] for s in alone) / sum(together))


def _imbalance(record: Record) -> dict[str, float]:
    ranks = len(record.facts["ranks"])
    kept = [s for s in record.samples if not s["discarded"] and s.get("edges_most")]
    return {
        f"{what}_imbalance": statistics.fmean(ranks * s[f"{what}_most"] / s[what] for s in kept)
        for what in ("atoms", "edges")
        if kept
    }


def _regions(record: Record) -> dict[str, float]:
    cut = record.others.get("region", [])
    each = {name: [e["seconds"] for e in cut if e["name"] == name] for name in REGIONS}
    return {f"{name}_s": statistics.median(seconds) for name, seconds in each.items() if seconds}


def _waiting(record: Record) -> float | None:
    """Of the mean rank."""
    kept = [e for e in record.others.get("epoch", []) if not e["discarded"] and "wait_s_mean" in e]
    return sum(e["wait_s_mean"] for e in kept) / sum(e["train_s_mean"] for e in kept) if kept else None
