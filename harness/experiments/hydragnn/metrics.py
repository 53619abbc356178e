"""Tables on runs of HydraGNN, the code of the paper, which harness.importers.hydragnn has imported."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import pandas as pd

from harness.protocol.events import Event
from harness.results.runs import RunRecord
from harness.results.tables import Columns

PROGRAM = "hydragnn"
EPOCHS = Columns(
    "hydragnn_epochs",
    case="case",
    losses="epoch loss validation_loss test_loss",
    # the errors of HydraGNN's training tasks on the validation set, in the order of its logs
    task_losses="validation_energy validation_energy_per_atom validation_force",
    line="source line",
)
REGIONS = Columns(
    "hydragnn_regions", columns="case region ranks calls duration_mean_s duration_max_s imbalance energy_j energy_ranks"
)
RUNS = Columns(
    "hydragnn_runs",
    case="case",
    rates="inference_structures_per_s inference_samples train_validate_test_s train_structures_per_s steps"
    " unavailable_reason notes",
    parameters="mpnn_type hidden_dim num_conv_layers batch_size precision num_epoch datasets ranks nodes",
    folder="folder",
)
TRAIN = "train"
# Regions that every training step enters once, in order of preference.
STEP_REGIONS = ("opt_step", "backward", "forward")


def build_tables(records: Sequence[RunRecord]) -> dict[str, pd.DataFrame]:
    """Return the tables on runs of HydraGNN; missing values are NaN.

    `hydragnn_epochs` has a row per epoch, with the losses, the validation errors of energy, energy per atom and forces
    in HydraGNN's units, and the number of the line in the log `source`. `hydragnn_regions` has a row per region of the
    tracer, aggregated over ranks. `hydragnn_runs` has a row per run, with its parameters. The median of the rates that
    HydraGNN logs in inference is `inference_structures_per_s`; `train_validate_test_s` is the time of its timer of that
    name; `train_structures_per_s` is derived as ranks x batch size x mean steps of a rank / seconds of the slowest rank
    in the region `train`.
    """
    runs = [r for r in records if r.program == PROGRAM]
    return {
        "hydragnn_epochs": EPOCHS.build(row for r in runs for row in _list_epochs(r)),
        "hydragnn_regions": REGIONS.build(row for r in runs for row in _list_regions(r)),
        "hydragnn_runs": RUNS.build(_describe_run(r) for r in runs),
    }


def _list_epochs(record: RunRecord) -> list[dict[str, Any]]:
    names = EPOCHS["task_losses"]
    tasks = {e["epoch"]: e["errors"] for e in record.events("task_errors") if e["split"] == "validation"}
    rows = []
    for e in record.events("epoch"):
        errors = tasks.get(e["epoch"], [])
        by_task = dict(zip(names, errors, strict=True)) if len(errors) == len(names) else {}
        event = {k: e[k] for k in (*EPOCHS["losses"], *EPOCHS["line"])}
        rows.append({"case": record.case["name"], **event, **by_task})
    return rows


def _list_regions(record: RunRecord) -> list[dict[str, Any]]:
    joules: dict[str, list[float]] = defaultdict(list)
    for e in record.events("energy"):
        joules[e["name"]].append(e["energy_j"])
    by_name = _group_regions(record)
    rows: list[dict[str, Any]] = []
    for name in dict.fromkeys([*by_name, *joules]):
        seconds = [e["duration_s"] for e in by_name.get(name, [])]
        mean = statistics.fmean(seconds) if seconds else None
        rows.append(
            {
                "case": record.case["name"], "region": name, "ranks": len(seconds),
                "calls": sum(e["calls"] for e in by_name.get(name, [])), "duration_mean_s": mean,
                "duration_max_s": max(seconds, default=None), "imbalance": max(seconds) / mean if mean else None,
                "energy_j": sum(joules[name]) if joules[name] else None, "energy_ranks": len(joules[name]),
            }
        )  # fmt: skip
    return rows


def _group_regions(record: RunRecord) -> dict[str, list[Event]]:
    by_name: dict[str, list[Event]] = defaultdict(list)
    for event in record.events("region"):
        by_name[event["name"]].append(event)
    return by_name


def _describe_run(record: RunRecord) -> dict[str, Any]:
    rates = [s["structures_per_s"] for s in record.samples if s.get("structures_per_s")]
    timers = [e["duration_s"] for e in record.events("timer") if e["name"] == "train_validate_test" and e["duration_s"]]
    parameters = {name: record.case["parameters"].get(name) for name in RUNS["parameters"]}
    if isinstance(parameters["datasets"], list):
        parameters["datasets"] = " ".join(map(str, parameters["datasets"]))
    return {
        "case": record.case["name"], "inference_structures_per_s": statistics.median(rates) if rates else None,
        "inference_samples": len(rates), "train_validate_test_s": max(timers) if timers else None,
        **_derive_training_rate(record), **parameters,
        "notes": "; ".join(record.facts.get("notes", [])), "folder": record.location,
    }  # fmt: skip


def _derive_training_rate(record: RunRecord) -> dict[str, Any]:
    """Return the columns on the rate of training: structures per second, or the reason why it cannot be derived."""
    by_name, parameters = _group_regions(record), record.case["parameters"]
    batch, ranks = parameters.get("batch_size"), parameters.get("ranks")
    train = {e["rank"]: e["duration_s"] for e in by_name.get(TRAIN, [])}
    counted = next((by_name[name] for name in STEP_REGIONS if name in by_name), [])
    steps = {e["rank"]: e["calls"] for e in counted if e["rank"] in train}
    unavailable_reason = _explain_missing_rate(train, steps, batch, ranks)
    if unavailable_reason:
        return {"unavailable_reason": unavailable_reason}
    seconds, mean = max(train.values()), statistics.fmean(steps.values())
    rate: dict[str, Any] = {"steps": mean, "train_structures_per_s": ranks * batch * mean / seconds}
    if len(steps) < ranks:
        rate["unavailable_reason"] = f"from the tracer files of {len(steps)} of {ranks} ranks"
    return rate


def _explain_missing_rate(train: dict[int, float], steps: dict[int, int], batch: Any, ranks: Any) -> str:
    if not train or not steps or not max(train.values()) > 0:
        return f"no tracer files with the regions {TRAIN} and {STEP_REGIONS[0]}"
    if not isinstance(batch, int) or isinstance(batch, bool) or batch < 1:
        return "no batch size in config.json or a command line"
    if not isinstance(ranks, int):
        absent = sorted(set(range(max(train))) - set(train))
        ranks_text = ", ".join(map(str, absent[:5]))
        return f"no tracer files of ranks {ranks_text}" if absent else "number of ranks unknown: no launcher's line"
    if len(train) > ranks:
        return f"{len(train)} tracer files, but {ranks} ranks"
    return ""
