"""Functions that the inference ladder and the training steps share: samples by stage, and ratios between stages."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from typing import Any

from harness.protocol.events import Event
from harness.results.runs import RunRecord
from harness.stats.intervals import Interval, compute_median_interval

# The report mentions a load average that exceeds the number of threads by more than this.
LOAD_MARGIN = 0.7


def group_by_stage(samples: Sequence[Event]) -> dict[str, list[Event]]:
    """Return the samples of each stage."""
    stages: dict[str, list[Event]] = {}
    for sample in samples:
        stages.setdefault(sample["stage"], []).append(sample)
    return stages


def sum_by_round(samples: Sequence[Event], *columns: str) -> dict[int, float]:
    """Return the sum of the columns over all samples of a round, by number of the round."""
    rounds: dict[int, list[float]] = {}
    for sample in samples:
        rounds.setdefault(sample["round"], []).append(sum(sample[column] for column in columns))
    return {number: math.fsum(values) for number, values in rounds.items()}


def compute_paired_ratio(slow: Sequence[Event], fast: Sequence[Event]) -> Interval:
    """Return the median over rounds of the time of one stage over that of another, for the batches that both have."""
    by_batch = [{(s["round"], s["batch"]): s for s in samples} for samples in (slow, fast)]
    if any(len(unique) < len(samples) for unique, samples in zip(by_batch, (slow, fast), strict=True)):
        raise ValueError("a stage has two samples of one round and batch")
    common = by_batch[0].keys() & by_batch[1].keys()
    slow_s, fast_s = (sum_by_round([samples[key] for key in common], "device_s") for samples in by_batch)
    return compute_median_interval([slow_s[number] / fast_s[number] for number in slow_s])


def hash_setup(record: RunRecord) -> str:
    """Return a hash of ten hexadecimal digits that is equal for cases which only differ in precision."""
    case, machine = record.case, [record.provenance.get(k) for k in ("host", "cpu")]
    parameters = {k: v for k, v in case["parameters"].items() if k != "precision"}
    content = [case["suite"], record.campaign, parameters, case.get("settings"), machine]
    if case.get("repeat"):
        content.append(case["repeat"])
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:10]


def describe_model(model: dict[str, Any], implementation: str = "") -> str:
    """Return a model as text, `width 64, trained`, after the name of its implementation if it is not the reference."""
    if not model:
        return "unknown"
    code = f"{implementation}, " if implementation else ""
    return f"{code}width {model['config']['hidden_dim']}, {'trained' if model['trained'] else 'untrained'}"
