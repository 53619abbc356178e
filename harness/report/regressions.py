"""The page on regressions: measurements of commits on each machine, and the commits that made them worse."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from harness.document.blocks import EN_DASH, Section, TableBlock, format_number
from harness.document.figures import STYLE, Figure, save_figure
from harness.protocol.text import pluralize
from harness.results.tables import Columns
from harness.tracking.history import HISTORY_FILE, read_history
from harness.tracking.verdicts import BenchmarkVerdict, build_series, format_change, format_sizes, judge_all

SOURCES = {"asv": "Benchmarks over commits", "campaign": "Runs of suites over commits"}
PREFIXES = ((1.0, "s"), (1e-3, "ms"), (1e-6, "\N{MICRO SIGN}s"), (1e-9, "ns"))
REGRESSION = Columns("regression", columns="machine source benchmark unit commit subject values low median high")

MAX_PANELS, PANELS_PER_ROW = 24, 3
MAX_LABELS = 6
MAX_LETTERS = 44
COLOURS = {"regression": "#d55e00", "broken": "#d55e00", "improvement": "#009e73"}
OTHER_COLOUR = "#0072b2"


@dataclass(frozen=True)
class RegressionHistory:
    """The verdict on every benchmark in the history, and the number of lines of the history that were skipped."""

    verdicts: list[BenchmarkVerdict]
    n_skipped: int

    def table(self) -> pd.DataFrame:
        """Return a row per benchmark and commit, with the smallest, the median and the largest value of its rounds."""
        rows = []
        for v in self.verdicts:
            s = v.series
            for k, commit in enumerate(s.commits):
                values = np.atleast_2d(s.values)[:, k]
                values = values[np.isfinite(values)]
                ends = (values.min(), float(np.median(values)), values.max()) if len(values) else (math.nan,) * 3
                row = (s.machine, s.source, s.name, s.unit, commit.hash, commit.subject, len(values), *ends)
                rows.append(dict(zip(REGRESSION, row, strict=True)))
        return REGRESSION.build(rows)


def load_history(out: Path) -> RegressionHistory:
    """Return the verdicts on the history of a results folder, without suites that ran on only one commit."""
    history = read_history(out / HISTORY_FILE)
    series = [s for s in build_series(history.measurements) if s.source == "asv" or len(s.commits) > 1]
    return RegressionHistory(judge_all(series), history.n_skipped)


def build_regression_sections(history: RegressionHistory, figures: Path) -> list[Section]:
    """Return a section for each machine and source."""
    groups: dict[tuple[str, str], list[BenchmarkVerdict]] = {}
    for v in history.verdicts:
        groups.setdefault((v.series.source, v.series.machine), []).append(v)
    return [build_section(k, group, history.n_skipped, figures) for k, group in enumerate(groups.values())]


def build_section(index: int, group: Sequence[BenchmarkVerdict], n_skipped: int, figures: Path) -> Section:
    """Return the section on one machine and source, with the worst verdicts first."""
    first = group[0].series
    ranked = sorted(group, key=lambda v: (not v.is_bad, v.change is None, v.series.name))
    name = f"regression-{index}"
    title = f"{SOURCES[first.source]} on {first.machine}"
    has_values = any(np.isfinite(v.series.values).any() for v in group)
    drawings = [draw_trends(ranked[:MAX_PANELS], figures, name)] if has_values else []
    n_bad = sum(v.is_bad for v in ranked)
    finding = f"{n_bad or 'None'} of {pluralize(len(ranked), 'benchmark')} became worse"
    return Section(title, name, describe_verdicts(ranked, n_skipped), drawings, [build_block(ranked)], finding=finding)


def describe_verdicts(group: Sequence[BenchmarkVerdict], n_skipped: int) -> list[str]:
    """Return paragraphs on the number of benchmarks that became worse, on the measurement, and on skipped lines."""
    n_bad, s = sum(v.is_bad for v in group), group[0].series
    commits = max((v.series.commits for v in group), key=len)
    text = [
        f"{n_bad} of {pluralize(len(group), 'benchmark')} became worse between {commits[0].short} and"
        f" {commits[-1].short} ({pluralize(len(commits), 'commit')})."
    ]
    if s.source == "asv":
        text.append(
            f"There were {pluralize(max(v.series.rounds for v in group), 'round')}, each with all commits in random"
            " order, so that drift of the machine affects all commits alike; the minimum time of a round counts."
            " Each percentage is the median, over all rounds, of the change measured within one round, with its"
            " interval; n is the number of values before and after the change."
        )
    else:
        text.append(
            "The values are medians of runs on different days: only changes beyond the scatter between runs are"
            " reported."
        )
    if n_skipped:
        verb = "is" if n_skipped == 1 else "are"
        text.append(
            f"{pluralize(n_skipped, 'line')} of {HISTORY_FILE} {verb} skipped: truncated or of another version."
        )
    return text


def build_block(group: Sequence[BenchmarkVerdict]) -> TableBlock:
    """Return the table of verdicts, with a row per benchmark."""
    columns = [
        "benchmark", "median of the latest commit", "verdict", "change", "since commit", "latest / first commit",
        "number of values: first, latest", "threshold",
    ]  # fmt: skip
    rows = [
        [
            v.series.name,
            format_latest(v),
            v.state,
            format_change(v.series, v.change.shift) if v.change else EN_DASH,
            f"{v.since.short} {v.since.subject}" if v.since else EN_DASH,
            format_overall(v),
            format_sizes(v.overall),
            f"{100 * v.series.threshold:.2g}%",
        ]
        for v in group
    ]
    note = (
        "Too noisy: the interval of the ratio of the last commit to the first includes changes above the threshold, so"
        " they cannot be excluded. Too few: with so few rounds, no change could be distinguished from chance. The"
        " threshold is the smallest change that counts."
    )
    return TableBlock("Verdicts", columns, rows, note)


def format_overall(v: BenchmarkVerdict) -> str:
    """Return the ratio of the latest commit to the first commit, and its interval."""
    o = v.overall
    return EN_DASH if math.isnan(o.estimate) else f"{o.estimate:.3f} [{o.low:.3f}, {o.high:.3f}]"


def format_latest(v: BenchmarkVerdict) -> str:
    """Return the median of the last commit that has values, with its unit."""
    values = np.atleast_2d(v.series.values)
    medians = [float(np.median(c[np.isfinite(c)])) for c in values.T if np.isfinite(c).any()]
    if not medians:
        return EN_DASH
    if v.series.unit != "seconds":
        return f"{format_number(medians[-1])} {v.series.unit}"
    scale, unit = next(((s, u) for s, u in PREFIXES if medians[-1] >= s), PREFIXES[-1])
    return f"{format_number(medians[-1] / scale)} {unit}"


def draw_trends(verdicts: Sequence[BenchmarkVerdict], folder: Path, name: str) -> Figure:
    """Draw a panel per benchmark: changes since the first commit, with rounds as dots and their median as a line."""
    n_columns = min(PANELS_PER_ROW, len(verdicts))
    n_rows = -(-len(verdicts) // n_columns)
    with mpl.rc_context(STYLE | {"font.size": 7.5}):
        figure, panels = plt.subplots(
            n_rows, n_columns, figsize=(0.2 + 2.8 * n_columns, 0.3 + 1.75 * n_rows), squeeze=False, layout="constrained"
        )
        for axes in panels.flat[len(verdicts) :]:
            axes.set_visible(False)
        for axes, verdict in zip(panels.flat, verdicts, strict=False):
            _draw_panel(axes, verdict)
        caption = (
            "Relative difference of each commit from the median of the first commit. Dots are rounds, and the line is"
            " their median. A dashed line marks a change."
        )
        return save_figure(figure, folder, name, caption)


def _draw_panel(axes: Axes, verdict: BenchmarkVerdict) -> None:
    s = verdict.series
    values = np.atleast_2d(s.values)
    measured = np.flatnonzero(np.isfinite(values).any(axis=0))
    colour = COLOURS.get(verdict.state, OTHER_COLOUR)
    axes.set_title(f"{_shorten(s.name)}\n{verdict.state}", fontsize=7, loc="left")
    if len(measured):
        relative = 100 * (values / np.nanmedian(values[:, measured[0]]) - 1)
        for row in relative:
            axes.plot(row, ".", color=colour, alpha=0.3, ms=3.5, mew=0)
        axes.plot(measured, np.nanmedian(relative[:, measured], axis=0), "-", color=colour, lw=1.3)
    for change in verdict.changes:
        axes.axvline(change.index - 0.5, color="#59636e", ls="--", lw=0.8)
    ticks = np.unique(np.linspace(0, len(s.commits) - 1, min(MAX_LABELS, len(s.commits))).round().astype(int))
    axes.set_xticks(ticks, [s.commits[k].short[:7] for k in ticks], rotation=40, ha="right", fontsize=6)
    axes.set_xlim(-0.5, len(s.commits) - 0.5)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:+.3g}%")


def _shorten(name: str) -> str:
    return name if len(name) <= MAX_LETTERS else "..." + name[3 - MAX_LETTERS :]
