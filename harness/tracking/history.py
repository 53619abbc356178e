"""The history of measurements of a project's commits: <out>/history.jsonl, with one line appended per measurement.

A line is a Measurement as JSON. Truncated lines and lines of another version are counted and skipped, so that files of
several machines can be concatenated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import AliasChoices, BaseModel, Field, FiniteFloat, ValidationError

from harness.experiments.experiment import Direction, Metric
from harness.host.files import append_below
from harness.results.runs import RunRecord
from harness.tracking.git_commits import count_first_parents, describe_commit

HISTORY_FILE = "history.jsonl"
RUN_THRESHOLD = 0.05  # smallest relative change that counts between runs on different days
Source = Literal["asv", "campaign"]
Key = tuple[str, str, str, str, str, int | None]
MetricsFunction = Callable[[RunRecord], Mapping[Metric, Sequence[float]]]


class Measurement(BaseModel, frozen=True, strict=True, extra="forbid", populate_by_name=True):
    """Samples of one benchmark on one commit, from one machine at one time.

    Attributes:
        source: Benchmarks over commits (asv), or runs of suites (campaign).
        session: Identifier of a session of asv, whose rounds may be compared one by one, or of a run of a suite.
        commit: Full hash of the commit.
        committed_s: Unix time of the commit in seconds.
        subject: First line of the message of the commit.
        commit_index: Index of the commit in its session, or in the history of the clone; older files call it `place`.
        machine: Host and processor.
        better: Whether lower or higher values are better.
        threshold: Smallest relative change that counts.
        round: Number of the round; None for a run that is not part of interleaved rounds.
        values: Raw samples in `unit`; empty if the benchmark failed.
    """

    version: Literal[1] = 1
    source: Source
    session: str
    commit: str
    committed_s: int
    subject: str
    commit_index: int = Field(validation_alias=AliasChoices("commit_index", "place"))
    machine: str
    name: str
    unit: str
    better: Direction
    threshold: FiniteFloat
    round: int | None
    values: tuple[FiniteFloat, ...]

    @property
    def key(self) -> Key:
        """The values that identify a measurement."""
        return self.source, self.session, self.machine, self.commit, self.name, self.round


@dataclass(frozen=True)
class History:
    """The measurements in the order of their lines, and the number of lines that were skipped."""

    measurements: list[Measurement]
    n_skipped: int


def read_history(path: Path) -> History:
    """Read the history; of several lines with one key the first counts, but a success replaces an earlier failure."""
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return History([], 0)
    by_key: dict[Key, Measurement] = {}
    n_skipped = 0
    for line in lines:
        try:
            new = Measurement.model_validate_json(line)
        except ValidationError:
            n_skipped += bool(line.strip())
            continue
        if new.key not in by_key or not by_key[new.key].values:
            by_key[new.key] = new
    return History(list(by_key.values()), n_skipped)


def append_measurements(path: Path, measurements: Iterable[Measurement]) -> int:
    """Append the measurements that the file does not contain yet in a single write, and return their number."""
    known = {m.key: bool(m.values) for m in read_history(path).measurements}
    new = [m for m in measurements if not known.get(m.key, False) and (m.values or m.key not in known)]
    if not new:
        return 0
    is_truncated = path.exists() and path.read_bytes()[-1:] not in (b"", b"\n")
    lines = "".join(f"{m.model_dump_json(by_alias=True)}\n" for m in new)
    append_below(path.parent, path.name, b"\n" * is_truncated + lines.encode())
    return len(new)


def collect_measurements(
    records: Iterable[RunRecord], list_metrics: MetricsFunction, repo: Path
) -> Iterator[Measurement]:
    """Yield the metrics of every finished run of a suite, with the commit of the code and the machine of the run.

    Runs of uncommitted or unknown code are left out, and so are values that are not finite.

    Args:
        records: The runs.
        list_metrics: A function that returns the samples of a run by metric.
        repo: The clone that contains the commits.
    """
    for record in records:
        provenance, case = record.provenance, record.case
        commit = provenance.get("commit")
        if record.state != "done" or not isinstance(commit, str) or provenance.get("changed_since_commit") is not False:
            continue
        index = count_first_parents(repo, commit)
        description = None if index is None else describe_commit(repo, commit)
        time_s = int(provenance.get("time_s", 0))
        short_id = case.get("id", "")[:10]
        for metric, values in list_metrics(record).items():
            finite = tuple(float(v) for v in values if math.isfinite(v))
            if values and not finite:
                continue
            yield Measurement(
                source="campaign",
                session=f"{short_id}@{time_s}",
                commit=commit,
                committed_s=description.committed_s if description else time_s,
                subject=description.subject if description else "",
                commit_index=index or 0,
                machine=f"{provenance.get('host', '?')} ({provenance.get('cpu', '?')})",
                name=f"{case.get('suite')}/{case.get('name')}-{short_id} {metric.name}",
                unit=metric.unit,
                better=metric.better,
                threshold=RUN_THRESHOLD,
                round=None,
                values=finite,
            )
