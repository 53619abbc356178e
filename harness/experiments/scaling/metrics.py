"""Tables on weak and strong scaling of data-parallel training."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from harness.experiments.experiment import THROUGHPUT, MetricSamples, WorkCount, select_numbers
from harness.experiments.scaling.projection import (
    build_projection_table,
    describe_variant,
    get_mode,
    join_label,
    shares_cores,
)
from harness.protocol.programs.data_parallel import REGIONS
from harness.protocol.types import Scope
from harness.results.runs import RunRecord
from harness.results.tables import Columns
from harness.stats.slow_ranks import score_ranks

SCALING = Columns(
    "scaling",
    run="campaign suite system case id mode nodes hosts cores shares_cores ranks batch_size global_batch_size",
    rates="structures_per_s structures_per_s_min structures_per_s_max epochs",
    efficiency="efficiency efficiency_low efficiency_high",
    overheads="communication_fraction data_wait_fraction atoms_imbalance edges_imbalance",
    regions=tuple(f"{name}_s" for name in REGIONS),
    agreement="gradient_error parameter_divergence",
    speed="slow_ranks",
    machine="precision device message_backend data",
    folder="folder",
)


def build_tables(records: Sequence[RunRecord]) -> dict[str, pd.DataFrame]:
    """Return the tables `scaling` and `projection`."""
    return {"scaling": build_scaling_table(records), "projection": build_projection_table(records)}


def list_metric_samples(record: RunRecord) -> Iterator[MetricSamples]:
    """Yield the throughput, with a sample per epoch."""
    yield MetricSamples(THROUGHPUT, select_numbers(record.facts.get("throughput_structures_per_s", ())))


def count_work(record: RunRecord, scope: Scope, name: str) -> WorkCount:
    """Return the number of training structures of the case, or of the epoch whose number is the scope's name."""
    epochs = [e for e in record.events("epoch") if scope == "case" or str(e["epoch"]) == name]
    return float(sum(e["structures"] for e in epochs)), "structure"


def build_scaling_table(records: Sequence[RunRecord]) -> pd.DataFrame:
    """Return one row per finished run, sorted by number of ranks within each campaign and mode.

    `mode` is the value of the suite's axis `mode`, with the values of axes that do not set the size of runs, and the
    name of the implementation unless it is the reference. `structures_per_s` is ranks x batch x steps / time of the
    train region, median over the timed epochs. `efficiency` is the throughput per rank divided by that of the smallest
    run of the same mode and campaign, with ends from the slowest and the fastest epoch of both runs. `atoms_imbalance`
    and `edges_imbalance` are the largest number on a rank divided by the mean over ranks, averaged over steps.
    `<region>_s` is the time of a region on the slowest rank, median over the steps whose regions were timed.
    `communication_fraction` is the fraction of the step time that is saved if gradients are not exchanged.
    `data_wait_fraction` is the fraction of the time of the timed epochs in which ranks wait for data. `nodes` counts
    the nodes of the job, of which an emulated cluster has several on one of the `hosts`. `gradient_error` is the
    largest difference of the ranks' mean gradient from the gradient of one process, relative to the largest gradient.
    `parameter_divergence` is the largest difference of a rank's parameters from those of rank 0 after training,
    relative to the largest parameter. `slow_ranks` names the ranks that compute steps without exchange of gradients,
    per edge, slower than the others (see harness.stats.slow_ranks); empty: none. `shares_cores` is true if a host has
    more ranks than CPUs for them, or emulates several nodes.
    """
    table = SCALING.build(_describe_run(r) for r in records if r.program == "data_parallel" and r.state == "done")
    table = table.sort_values(["campaign", "mode", "ranks"], kind="stable").reset_index(drop=True)
    per_rank = table["structures_per_s"] / table["ranks"]
    keys = [table["campaign"], table["mode"]]
    table["efficiency"] = per_rank / per_rank.groupby(keys).transform("first")
    low, high = table["structures_per_s_min"] / table["ranks"], table["structures_per_s_max"] / table["ranks"]
    table["efficiency_low"] = low / high.groupby(keys).transform("first")
    table["efficiency_high"] = high / low.groupby(keys).transform("first")
    return table


def _describe_run(record: RunRecord) -> dict[str, Any]:
    case, facts = record.case, record.facts
    ranks, workload, observed = facts["ranks"], facts["workload"], facts["runtime"]
    throughput = facts["throughput_structures_per_s"]
    return {
        "campaign": record.campaign,
        **{name: case.get(name) for name in ("suite", "system", "id")},
        "case": case.get("name"),
        "mode": join_label(get_mode(record), describe_variant(record)),
        "nodes": len({rank["node"] or rank["host"] for rank in ranks}),
        "hosts": len({rank["host"] for rank in ranks}),
        "cores": min(rank["cores"] for rank in ranks),
        "shares_cores": shares_cores(ranks),
        "ranks": len(ranks),
        "batch_size": workload["batch_size"],
        "global_batch_size": workload["global_batch_size"],
        "structures_per_s": statistics.median(throughput),
        "structures_per_s_min": min(throughput),
        "structures_per_s_max": max(throughput),
        "epochs": len(throughput),
        "communication_fraction": _compute_communication_fraction(record),
        "data_wait_fraction": _compute_waiting_fraction(record),
        **_compute_imbalance(record),
        **_compute_region_times(record),
        "slow_ranks": describe_slow_ranks(record),
        "gradient_error": facts.get("gradient_error"),
        "parameter_divergence": facts.get("parameter_divergence"),
        "precision": observed["precision"],
        "device": observed["device_name"] or observed["device"],
        "message_backend": observed.get("message_backend") or "unfused",
        "data": ", ".join(f"{s['dataset']} ({s['data_origin']})" for s in workload["datasets"]),
        "folder": record.location,
    }


def describe_slow_ranks(record: RunRecord) -> str:
    """Return the slow ranks of a run with their nodes, such as `n5, rank 3: 80% of the median`; empty if none is."""
    steps = record.events("rank_steps")
    if not steps:
        return ""
    rates = np.array([[e / s for e, s in zip(step["edges"], step["duration_s"], strict=True)] for step in steps]).T
    scores = score_ranks(rates)
    places = record.facts["ranks"]
    return "; ".join(
        f"{places[k]['node'] or places[k]['host']}, rank {k}: {scores.relative[k]:.0%} of the median"
        for k in np.flatnonzero(scores.is_slow)
    )


def _compute_communication_fraction(record: RunRecord) -> float | None:
    """Return the fraction of communication, from the steps of the last epoch with and without exchange of gradients."""
    compute_only = record.events("compute_only")
    last = max((s["epoch"] for s in record.samples), default=None)
    # busy_s, like the times without exchange, excludes the wait for data (on a CPU); a log may lack it
    seconds = [s["busy_s" if "busy_s" in s else "duration_s"] for s in record.samples if s["epoch"] == last]
    if not compute_only or len(compute_only) != len(seconds):
        return None
    return max(0.0, 1.0 - sum(s["duration_s"] for s in compute_only) / sum(seconds))


def _compute_imbalance(record: RunRecord) -> dict[str, float]:
    ranks = len(record.facts["ranks"])
    samples = [s for s in record.samples if not s["is_warmup"] and s.get("edges_max")]
    return {
        f"{name}_imbalance": statistics.fmean(ranks * s[f"{name}_max"] / s[name] for s in samples)
        for name in ("atoms", "edges")
        if samples
    }


def _compute_region_times(record: RunRecord) -> dict[str, float]:
    events = record.events("region")
    by_region = {name: [e["duration_s"] for e in events if e["name"] == name] for name in REGIONS}
    return {f"{name}_s": statistics.median(seconds) for name, seconds in by_region.items() if seconds}


def _compute_waiting_fraction(record: RunRecord) -> float | None:
    """Return the fraction of the time in which ranks wait for data, on average over ranks."""
    epochs = [e for e in record.events("epoch") if not e["is_warmup"] and "wait_mean_s" in e]
    return sum(e["wait_mean_s"] for e in epochs) / sum(e["train_mean_s"] for e in epochs) if epochs else None
