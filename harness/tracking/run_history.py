"""Runs of suites as history: each under the commit of the code that ran it and the machine that it ran on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from harness.experiments.metrics import Metric
from harness.results.runs import Record
from harness.tracking import git_commits
from harness.tracking.history import Entry

# Of runs on days apart; the noise that there really is decides as well.
THRESHOLD = 0.05


MetricsOf = Callable[[Record], Mapping[Metric, Sequence[float]]]


def entries(records: Iterable[Record], metrics_of: MetricsOf, repo: Path) -> Iterator[Entry]:
    """Every number of every finished run of a known commit; runs of changed code belong to none, and are left out."""
    for record in records:
        p, case = record.provenance, record.case
        commit = p.get("commit")
        if record.state != "done" or not isinstance(commit, str) or p.get("changed_since_commit") is not False:
            continue
        place = git_commits.place(repo, commit)
        told = None if place is None else git_commits.told(repo, commit)
        when = int(p.get("time_s", 0))
        for metric, values in metrics_of(record).items():
            yield Entry(
                "campaign", f"{case.get('id', '')[:10]}@{when}", commit, told.committed_s if told else when,
                told.subject if told else "", place or 0, f"{p.get('host', '?')} ({p.get('cpu', '?')})",
                f"{case.get('suite')}/{case.get('name')}-{case.get('id', '')[:10]} {metric.name}", metric.unit,
                metric.better, THRESHOLD, None, tuple(values),
            )  # fmt: skip
