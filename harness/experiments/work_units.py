"""How many useful results a case, or a piece of one, came to: what its cost is divided by."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from harness.results.runs import Record

Counted = tuple[float, str]
NONE: Counted = (math.nan, "")


def results_of(record: Record, what: str, name: str) -> Counted:
    """Number and unit of the results of a window (harness.telemetry.windows); NaN where there is no telling."""
    if what == "trial":
        return 1.0, "trial"
    counted = COUNTED.get(record.case.get("program", ""))
    return counted(record, what, name) if counted is not None else NONE


def _ladder(record: Record, what: str, name: str) -> Counted:
    own = [s for s in record.samples if what == "case" or s.get("stage") == name]
    return float(sum(s["structures"] for s in own)), "structure"


def _precision(record: Record, what: str, name: str) -> Counted:
    own = [s for s in record.samples if not s.get("discarded")]
    if what == "precision":
        own = [s for s in own if f"{s.get('task', 'all')} {s['precision']}" == name]
    return float(sum(s["structures"] for s in own)), "structure"


def _training(record: Record, what: str, name: str) -> Counted:
    """Structures drawn: steps times graphs of all ranks."""
    workload = record.facts.get("workload", {})
    steps, before = {}, 0
    for event in record.others.get("epoch", []):
        steps[str(event["epoch"])] = event["step"] - before
        before = event["step"]
    taken = sum(steps.values()) if what == "case" else steps.get(name, 0)
    return float(taken * workload.get("global_batch_size", math.nan)), "structure"


def _data_parallel(record: Record, what: str, name: str) -> Counted:
    epochs = record.others.get("epoch", [])
    own = [e for e in epochs if what == "case" or str(e["epoch"]) == name]
    return float(sum(e["graphs"] for e in own)), "structure"


def _screening(record: Record, what: str, name: str) -> Counted:
    del what, name
    return float(sum(e.get("evaluated", 0) for e in record.others.get("rank", []))), "candidate"


def _events(kind: str, unit: str) -> Callable[[Record, str, str], Counted]:
    def count(record: Record, what: str, name: str) -> Counted:
        del what, name
        return float(len(record.others.get(kind, []))), unit

    return count


COUNTED: dict[str, Callable[[Record, str, str], Any]] = {
    "ladder": _ladder,
    "training_steps": _ladder,
    "precision": _precision,
    "train": _training,
    "data_parallel": _data_parallel,
    "screening": _screening,
    "hpo": _events("trial", "trial"),
    "transfer": _events("fit", "fit"),
}
