"""The page on regressions: what each machine measured of the commits, and since which of them something is worse."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from harness.document.blocks import DASH, Section, View, number
from harness.protocol.text import count
from harness.report.regression_figures import PANELS, trends
from harness.tracking.history import FILE_NAME, read
from harness.tracking.series import series
from harness.tracking.verdicts import Verdict, change_in_words, sizes, verdicts

SOURCES = {"asv": "Benchmarks over commits", "campaign": "Runs of suites over commits"}
PREFIXES = ((1.0, "s"), (1e-3, "ms"), (1e-6, "\N{MICRO SIGN}s"), (1e-9, "ns"))
COLUMNS = ("machine", "source", "benchmark", "unit", "commit", "subject", "values", "low", "median", "high")


@dataclass(frozen=True)
class Tracked:
    """What became of every benchmark in the history, and the lines of it that are not told of."""

    verdicts: list[Verdict]
    passed_over: int

    def table(self) -> pd.DataFrame:
        """A row a benchmark and commit: the least, middle and greatest of its rounds."""
        rows = []
        for v in self.verdicts:
            s = v.series
            for k, commit in enumerate(s.commits):
                own = np.atleast_2d(s.values)[:, k]
                own = own[np.isfinite(own)]
                ends = (own.min(), float(np.median(own)), own.max()) if len(own) else (math.nan,) * 3
                rows.append([s.machine, s.source, s.name, s.unit, commit.hash, commit.subject, len(own), *ends])
        return pd.DataFrame(rows, columns=list(COLUMNS))


def tracked(out: Path) -> Tracked:
    """What the history of a results folder says; a suite that ran on one commit alone says nothing yet."""
    history = read(out / FILE_NAME)
    known = [s for s in series(history.entries) if s.source == "asv" or len(s.commits) > 1]
    return Tracked(verdicts(known), history.passed_over)


def regression_sections(found: Tracked, figures: Path) -> list[Section]:
    """A section for each machine and source; draws its figures into the folder."""
    groups: dict[tuple[str, str], list[Verdict]] = {}
    for v in found.verdicts:
        groups.setdefault((v.series.source, v.series.machine), []).append(v)
    return [section(k, own, found.passed_over, figures) for k, own in enumerate(groups.values())]


def section(place: int, own: Sequence[Verdict], passed_over: int, figures: Path) -> Section:
    """One machine: the worst first."""
    first = own[0].series
    ranked = sorted(own, key=lambda v: (not v.is_bad, v.change is None, v.series.name))
    name = f"regression-{place}"
    title = f"{SOURCES[first.source]} on {first.machine}"
    drawn = [trends(ranked[:PANELS], figures, name)] if any(np.isfinite(v.series.values).any() for v in own) else []
    return Section(title, name, paragraphs(ranked, passed_over), drawn, [verdicts_view(ranked)])


def paragraphs(own: Sequence[Verdict], passed_over: int) -> list[str]:
    """How many became worse, how it was measured, and what was passed over."""
    bad, s = sum(v.is_bad for v in own), own[0].series
    commits = max((v.series.commits for v in own), key=len)
    said = [
        f"{bad} of {len(own)} became worse between {commits[0].short} and {commits[-1].short}"
        f" ({count(len(commits), 'commit')})."
    ]
    if s.source == "asv":
        said.append(
            f"{count(max(v.series.rounds for v in own), 'round')}, each over all commits in an order by"
            " chance, so that a drift"
            " of the machine is common to them; of each round the least time counts. Percentages: medians over rounds,"
            " each compared within itself, with their interval; n: values before and after."
        )
    else:
        said.append("Medians of runs on different days: only what exceeds the scatter between them is told.")
    if passed_over:
        verb = "is" if passed_over == 1 else "are"
        said.append(
            f"{count(passed_over, 'line')} of {FILE_NAME} {verb} torn, foreign or of another version, and left out."
        )
    return said


def verdicts_view(own: Sequence[Verdict]) -> View:
    """A row a benchmark."""
    columns = ["benchmark", "latest", "verdict", "change", "since", "last over first", "n", "counts from"]
    rows = [
        [
            v.series.name, latest(v), v.state, change_in_words(v.series, v.change.shift) if v.change else DASH,
            f"{v.since.short} {v.since.subject}" if v.since else DASH, over_first(v), sizes(v.overall),
            f"{100 * v.series.threshold:.2g}%",
        ]
        for v in own
    ]  # fmt: skip
    note = (
        "Too noisy: the interval of the last commit over the first holds changes that would count, so that none was"
        " found says nothing about them. Too few: with so few rounds no change at all could be told from chance."
    )
    return View("Verdicts", columns, rows, note)


def over_first(v: Verdict) -> str:
    """The last commit over the first with its interval, three digits after the point."""
    o = v.overall
    return DASH if math.isnan(o.estimate) else f"{o.estimate:.3f} [{o.low:.3f}, {o.high:.3f}]"


def latest(v: Verdict) -> str:
    """The median of the last commit that has one, with its unit."""
    with_values = np.atleast_2d(v.series.values)
    medians = [float(np.median(c[np.isfinite(c)])) for c in with_values.T if np.isfinite(c).any()]
    if not medians:
        return DASH
    if v.series.unit != "seconds":
        return f"{number(medians[-1])} {v.series.unit}"
    scale, unit = next(((s, u) for s, u in PREFIXES if medians[-1] >= s), PREFIXES[-1])
    return f"{number(medians[-1] / scale)} {unit}"
