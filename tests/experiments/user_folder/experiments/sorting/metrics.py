"""The table of sorting rates, and the samples of a run that `harness compare` compares."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pandas as pd

from harness.experiments.experiment import Metric, MetricSamples, WorkCount
from harness.protocol.types import Scope
from harness.results.runs import RunRecord
from harness.results.tables import Columns, interval_columns
from harness.stats.intervals import compute_median_interval

SORTING = Columns("sorting", run="case size", rate="per_s per_s_low per_s_high samples", folder="folder")
RATE = Metric("sorting rate", "numbers/s", "higher")


def build_tables(records: Sequence[RunRecord]) -> dict[str, pd.DataFrame]:
    """Return a table with one row per finished run."""
    rows = []
    for record in records:
        if record.program == "sorting" and record.state == "done":
            rate = compute_median_interval(list_rates(record))
            rows.append(
                {
                    "case": record.case["name"],
                    "size": record.case["parameters"]["size"],
                    **interval_columns("per_s", rate),
                    "samples": rate.n,
                    "folder": record.location,
                }
            )
    return {"sorting": SORTING.build(rows)}


def list_metric_samples(record: RunRecord) -> Iterator[MetricSamples]:
    """Yield the sorting rate with one sample per round."""
    yield MetricSamples(RATE, tuple(list_rates(record)))


def count_work(record: RunRecord, scope: Scope, name: str) -> WorkCount:
    """Return how many numbers were sorted, and the name of the unit."""
    del scope, name
    return float(record.case["parameters"]["size"] * len(record.samples)), "number"


def list_rates(record: RunRecord) -> list[float]:
    """Return how many numbers were sorted per second in each round."""
    size = record.case["parameters"]["size"]
    return [size / sample["seconds"] for sample in record.samples]
