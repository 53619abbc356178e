"""A session of rounds over a range of commits, which is appended to the history and resumes after interruptions."""

from __future__ import annotations

import itertools
import math
import re
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.host.files import create_folder_below
from harness.host.locks import hold_folder_lock
from harness.protocol.errors import UsageError
from harness.protocol.text import pluralize
from harness.tracking.asv_runner import AsvSession, read_json, run_round
from harness.tracking.history import HISTORY_FILE, Measurement, append_measurements, read_history
from harness.tracking.verdicts import BenchmarkVerdict, build_series, judge_all

FOLDER = "regression"


@dataclass(frozen=True)
class SessionOptions:
    """The user's options of a session.

    Attributes:
        rounds: Number of rounds.
        bench: Regular expressions of the benchmarks to run; all benchmarks if it is empty.
        quiet: Whether to suppress progress messages.
    """

    rounds: int
    bench: Sequence[str] = ()
    quiet: bool = False

    def includes(self, name: str) -> bool:
        """Return whether the benchmark of this name is selected."""
        return not self.bench or any(re.search(regex, name) for regex in self.bench)


def run_session(session: AsvSession, options: SessionOptions, out: Path) -> bool:
    """Run all rounds that are not complete and append them to the history; return whether a benchmark failed.

    A benchmark that seems to have become worse is measured for as many rounds again; it counts as a regression only if
    all rounds together show a significant change.

    Raises:
        UsageError: There is only one commit.
    """
    had_failures = run_rounds(session, options, out)
    worse = [
        v.series.name
        for v in judge_session(session, out)
        if v.state == "regression" and options.includes(v.series.name)
    ]
    if worse:
        if not options.quiet:
            message = f"{pluralize(len(worse), 'benchmark')} may have become worse; measuring again"
            print(message, file=sys.stderr)
        # names without the parameters and the environment, which asv does not match
        patterns = sorted({f"^{re.escape(name.split('(')[0].split(' ')[0])}(\\W|$)" for name in worse})
        had_failures |= run_rounds(session, SessionOptions(2 * options.rounds, patterns, options.quiet), out)
    return had_failures


def judge_session(session: AsvSession, out: Path) -> list[BenchmarkVerdict]:
    """Return the verdicts on the existing measurements of this session."""
    measurements = read_history(out / HISTORY_FILE).measurements
    return judge_all([s for s in build_series(measurements) if s.session == session.id])


def run_rounds(session: AsvSession, options: SessionOptions, out: Path) -> bool:
    """Run the rounds that are not complete and append their measurements to the history.

    Returns:
        Whether a benchmark failed in one of them.

    Raises:
        UsageError: There is only one commit.
    """
    if len(session.commits) < 2:
        raise UsageError(f"one commit alone ({session.commits[0].short}): nothing to compare it with")
    create_folder_below(out, FOLDER)
    session.folder.mkdir(parents=True, exist_ok=True)
    had_failures = False
    started = time.monotonic()
    with hold_folder_lock(session.root):
        for number in range(1, options.rounds + 1):
            if not options.quiet:
                minutes = (time.monotonic() - started) / 60
                print(f"round {number} of {options.rounds}, {minutes:.1f} minutes so far", file=sys.stderr)
            try:
                had_failures |= run_round(session, number, options.bench)
            finally:
                append_measurements(out / HISTORY_FILE, read_round_measurements(session, number))
    return had_failures


def read_round_measurements(session: AsvSession, number: int) -> Iterator[Measurement]:
    """Yield the measurements of a round that asv has written so far; a failed benchmark has no values."""
    results = session.get_round_folder(number) / "results"
    benchmarks = read_json(results / "benchmarks.json")
    commits = {commit.hash: (k, commit) for k, commit in enumerate(session.commits)}
    files = sorted((results / session.machine["machine"]).glob("*-*.json"))
    loaded = [content for content in map(read_json, files) if content.get("commit_hash") in commits]
    has_several_environments = len({content["env_name"] for content in loaded}) > 1
    for content in loaded:
        index, commit = commits[content["commit_hash"]]
        for name, values in _iter_values(content, benchmarks):
            yield Measurement(
                source="asv",
                session=session.id,
                commit=commit.hash,
                committed_s=commit.committed_s,
                subject=commit.subject,
                commit_index=index,
                machine=session.machine_name,
                name=f"{name} [{content['env_name']}]" if has_several_environments else name,
                unit=benchmarks[name.split("(")[0]].get("unit") or "",
                better="lower",
                threshold=session.project.get_threshold(name),
                round=number,
                values=tuple(values),
            )


def _iter_values(content: dict[str, Any], benchmarks: dict[str, Any]) -> Iterator[tuple[str, list[float]]]:
    """Yield the name (with parameters) and the samples of every benchmark that ran in its current version."""
    for name, row in content["results"].items():
        columns = dict(zip(content["result_columns"], row, strict=False))
        if columns.get("version") != benchmarks.get(name, {}).get("version"):
            continue
        combinations = itertools.product(*(columns.get("params") or []))
        names = [name + (f"({', '.join(values)})" if values else "") for values in combinations]
        values = columns.get("result") or [None] * len(names)
        samples = columns.get("samples") or [None] * len(names)
        for full_name, value, raw in zip(names, values, samples, strict=False):
            finite = [] if value is None else [float(v) for v in raw or [value] if math.isfinite(v)]
            if value is None or finite:
                yield full_name, finite
