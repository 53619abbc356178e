"""All result tables of a folder of runs, and the samples by which two runs can be compared."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from harness.experiments.experiment import CostJoin, Metric, MetricSamples
from harness.experiments.registry import find_experiment, load_experiments
from harness.protocol.errors import UsageError, did_you_mean
from harness.results.misfits import MISFIT_ERRORS, isolate_misfits
from harness.results.runs import RunRecord, select_readable

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["WALL_TIME", "Metric", "MetricSamples", "collect_metrics", "list_metric_samples"]

WALL_TIME = Metric("wall time", "s", "lower")


def list_metric_samples(record: RunRecord) -> Iterator[MetricSamples]:
    """Yield the samples of every comparable metric of a finished run."""
    experiment = find_experiment(record.case.get("program", ""))
    function = experiment.find_function("list_metric_samples") if experiment else None
    if function is not None:
        yield from (samples for samples in function(record) if samples.values)
    if record.duration_s is not None:
        yield MetricSamples(WALL_TIME, (record.duration_s,))


def collect_metrics(record: RunRecord) -> dict[Metric, list[float]]:
    """Return the samples of each comparable metric of a run; the part of the run is a suffix of the metric's name."""
    metrics = {}
    for samples in list_metric_samples(record):
        name = " ".join([samples.metric.name, *samples.part.values()])
        metrics[Metric(name, samples.metric.unit, samples.metric.better)] = list(samples.values)
    return metrics


@dataclass(frozen=True)
class Results:
    """The runs and the tables built from them.

    Attributes:
        records: all runs, including unreadable ones.
        named_tables: every table by the name of its file, without suffix.
        names_by_page: the names of the tables of each page.
    """

    records: list[RunRecord]
    named_tables: dict[str, pd.DataFrame]
    names_by_page: dict[str, list[str]]

    def tables(self) -> dict[str, pd.DataFrame]:
        """Return every table by the name of its file."""
        return dict(self.named_tables)

    def __getitem__(self, name: str) -> pd.DataFrame:
        """Return a table by name."""
        if name not in self.named_tables:
            raise UsageError(f"no table {name!r}{did_you_mean(name, self.named_tables)}")
        return self.named_tables[name]

    @property
    def merits(self) -> pd.DataFrame:
        """The figures of merit of all runs."""
        return self["figures_of_merit"]


def build_results(records: list[RunRecord]) -> Results:
    """Build every table from the readable runs with consistent events; mark the other runs as unreadable."""
    records = name_cases_uniquely(records)
    try:
        return replace(_analyse(select_readable(records)), records=records)
    except MISFIT_ERRORS:
        checked_records = isolate_misfits(records, _analyse)
        return replace(_analyse(select_readable(checked_records)), records=checked_records)


def name_cases_uniquely(records: Sequence[RunRecord]) -> list[RunRecord]:
    """Return the records, in which a case is named like its folder if its name is missing or not unique.

    The tables identify cases by campaign and name. Cases of a campaign share a name if the suite was changed between
    runs, since only their folders contain the id, or if long names are cut.
    """
    counts = Counter((record.campaign, record.case.get("name")) for record in records)
    return [
        record
        if record.case.get("name") and counts[record.campaign, record.case["name"]] == 1
        else replace(record, case=record.case | {"name": record.folder.name})
        for record in records
    ]


def _analyse(records: list[RunRecord]) -> Results:
    """Build every table; also collect the metrics of finished runs, so that inconsistent events raise an error here."""
    from harness.experiments.cost.metrics import join_costs
    from harness.results.tables import build_merits_table, build_samples_table

    for record in records:
        if record.state == "done":
            collect_metrics(record)
    tables = {"samples": build_samples_table(records), "figures_of_merit": build_merits_table(records)}
    names_by_page: dict[str, list[str]] = {}
    joins: dict[str, CostJoin] = {}
    for experiment in load_experiments():
        new_tables = experiment.metrics.build_tables(records)
        duplicate = next((name for name in new_tables if name in tables), None)
        if duplicate is not None:
            raise UsageError(f"{experiment.package}: another experiment has a table {duplicate!r}; rename it")
        tables |= new_tables
        names_by_page[experiment.page] = [*new_tables, *(["samples"] if experiment.has_samples else [])]
        joins |= experiment.costs
    for name, join in joins.items():
        tables[name] = join_costs(tables[name], tables["cost_cases"], tables["cost_parts"], join)
    return Results(records, tables, names_by_page)
