"""Samples of a run that can be compared with those of another run, for every experiment."""

from __future__ import annotations

from collections.abc import Iterator

from harness.experiments.experiment import Metric, MetricSamples
from harness.experiments.registry import find_experiment
from harness.results.runs import RunRecord

__all__ = ["WALL_TIME", "Metric", "MetricSamples", "collect_metrics", "sample_metrics"]

WALL_TIME = Metric("wall time", "s", "lower")


def sample_metrics(record: RunRecord) -> Iterator[MetricSamples]:
    """Yield the samples of every comparable metric of a finished run."""
    experiment = find_experiment(record.case.get("program", ""))
    function = experiment.find_function("sample_metrics") if experiment else None
    if function is not None:
        yield from (samples for samples in function(record) if samples.values)
    if record.duration_s is not None:
        yield MetricSamples(WALL_TIME, (record.duration_s,))


def collect_metrics(record: RunRecord) -> dict[Metric, list[float]]:
    """Return the same samples by metric, with the part as a suffix of the metric's name."""
    metrics = {}
    for samples in sample_metrics(record):
        name = " ".join([samples.metric.name, *samples.part.values()])
        metrics[Metric(name, samples.metric.unit, samples.metric.better)] = list(samples.values)
    return metrics
