"""The numbers of a run that can be compared with those of another: a table, by program.

Each is a set of raw samples, of one stage or precision where the run has several; those of one run that took turns
carry the rounds that they are from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from harness.results.runs import Record

Better = Literal["higher", "lower"]


@dataclass(frozen=True)
class Metric:
    """What a number is called, its unit, and which way is better."""

    name: str
    unit: str
    better: Better


@dataclass(frozen=True)
class Measured:
    """Raw samples of a metric. part: what of the run they are from, such as stage or precision. rounds: of each
    sample, where parts took turns; empty where they did not."""

    metric: Metric
    values: tuple[float, ...]
    part: Mapping[str, str] = field(default_factory=dict)
    rounds: tuple[int, ...] = ()


def measured(record: Record) -> Iterator[Measured]:
    """Every comparable number of a finished run."""
    of = PROGRAMS.get(record.case.get("program", ""))
    if of is not None:
        yield from (found for found in of(record) if found.values)
    if record.began_s is not None and record.ended_s is not None and record.ended_s > record.began_s:
        yield Measured(WALL, (record.ended_s - record.began_s,))


def metrics_of(record: Record) -> dict[Metric, list[float]]:
    """The same by metric alone, the part being in its name."""
    found = {}
    for one in measured(record):
        name = " ".join([one.metric.name, *one.part.values()])
        found[Metric(name, one.metric.unit, one.metric.better)] = list(one.values)
    return found


RATE = Metric("throughput", "structures/s", "higher")
WALL = Metric("wall time", "s", "lower")
MEMORY = Metric("peak memory", "bytes", "lower")
LOSS = Metric("validation loss", "", "lower")
BEST = Metric("best trial's error", "", "lower")
ERROR = Metric("error", "task's unit", "lower")
DEVICE = Metric("device throughput", "candidates/s", "higher")
END_TO_END = Metric("end-to-end throughput", "candidates/s", "higher")


def _ladder(record: Record) -> Iterator[Measured]:
    """A rate a round: all batches of the round together."""
    rounds: dict[str, dict[int, list[float]]] = {}
    for s in record.samples:
        sums = rounds.setdefault(s["stage"], {}).setdefault(s["round"], [0.0, 0.0])
        sums[0] += s["structures"]
        sums[1] += s["device_s"]
    for stage, own in rounds.items():
        values = tuple(count / seconds for count, seconds in own.values())
        yield Measured(RATE, values, {"stage": stage}, tuple(own))
    for stage, event in record.stages.items():
        if event.get("peak_bytes"):
            yield Measured(MEMORY, (float(event["peak_bytes"]),), {"stage": stage})


def _data_parallel(record: Record) -> Iterator[Measured]:
    yield Measured(RATE, _numbers(record.facts.get("throughput_graphs_per_s", ())))


def _training(record: Record) -> Iterator[Measured]:
    """A rate an epoch; the lowest validation loss."""
    epochs = record.others.get("epoch", [])
    yield Measured(RATE, _numbers(e.get("graphs_per_s") for e in epochs))
    losses = _numbers(e.get("validation_loss") for e in epochs)
    yield Measured(LOSS, (min(losses),) if losses else ())


def _precision(record: Record) -> Iterator[Measured]:
    found: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for s in record.samples:
        if not s.get("discarded"):
            own = found.setdefault((s["task"], s["precision"]), [])
            own.append((s["round"], s["structures"] / s["seconds"]))
    for (task, precision), own in found.items():
        rounds, values = zip(*own, strict=True)
        yield Measured(RATE, values, {"task": task, "precision": precision}, rounds)


def _search(record: Record) -> Iterator[Measured]:
    trials = record.others.get("trial", [])
    objectives = _numbers(t.get("objective") for t in trials)
    yield Measured(BEST, (-max(objectives),) if objectives else ())
    yield Measured(RATE, _numbers(t.get("graphs_per_s") for t in trials))


def _transfer(record: Record) -> Iterator[Measured]:
    found: dict[tuple[str, str], list[float]] = {}
    for fit in record.others.get("fit", []):
        if fit.get("mae") is not None:
            found.setdefault((str(fit.get("mode")), str(fit.get("labels"))), []).append(float(fit["mae"]))
    for (mode, labels), errors in found.items():
        yield Measured(ERROR, tuple(errors), {"mode": mode, "labels": labels})


def _screening(record: Record) -> Iterator[Measured]:
    """A rate a rank."""
    ranks = record.others.get("rank", [])
    yield Measured(DEVICE, _numbers(_over(r, "evaluated", "device_s") for r in ranks))
    yield Measured(END_TO_END, _numbers(_over(r, "evaluated", "wall_s") for r in ranks))


def _over(row: Mapping[str, Any], count: str, seconds: str) -> float | None:
    return row[count] / row[seconds] if row.get(count) and row.get(seconds) else None


def _numbers(values: Iterable[Any]) -> tuple[float, ...]:
    return tuple([float(v) for v in values if type(v) in (float, int)])


PROGRAMS: dict[str, Callable[[Record], Iterator[Measured]]] = {
    "ladder": _ladder,
    "training_steps": _ladder,
    "data_parallel": _data_parallel,
    "train": _training,
    "precision": _precision,
    "hpo": _search,
    "transfer": _transfer,
    "screening": _screening,
}
