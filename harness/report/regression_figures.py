"""Trends over commits as small multiples."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from harness.document.figures import STYLE, Figure, kept
from harness.tracking.verdicts import Verdict

PANELS, ACROSS = 24, 3
LABELS = 6
LETTERS = 44
COLOURS = {"regression": "#d55e00", "broken": "#d55e00", "improvement": "#009e73"}
OTHER_COLOUR = "#0072b2"


def trends(own: Sequence[Verdict], folder: Path, name: str) -> Figure:
    """A panel a benchmark: its rounds as dots and their median as a line, over the first commit; changes as bars."""
    across = min(ACROSS, len(own))
    down = -(-len(own) // across)
    with mpl.rc_context(STYLE | {"font.size": 7.5}):
        figure, panels = plt.subplots(
            down, across, figsize=(0.2 + 2.8 * across, 0.3 + 1.75 * down), squeeze=False, layout="constrained"
        )
        for axes in panels.flat[len(own) :]:
            axes.set_visible(False)
        for axes, verdict in zip(panels.flat, own, strict=False):
            panel(axes, verdict)
        caption = (
            "Values of every commit over the median of the first, in percent: dots are rounds, the line is their"
            " median; dashed: the first commit after a change."
        )
        return kept(figure, folder, name, caption)


def panel(axes: Axes, verdict: Verdict) -> None:
    """One benchmark."""
    s = verdict.series
    values = np.atleast_2d(s.values)
    there = np.flatnonzero(np.isfinite(values).any(axis=0))
    colour = COLOURS.get(verdict.state, OTHER_COLOUR)
    axes.set_title(f"{_short(s.name)}\n{verdict.state}", fontsize=7, loc="left")
    if len(there):
        relative = 100 * (values / np.nanmedian(values[:, there[0]]) - 1)
        for row in relative:
            axes.plot(row, ".", color=colour, alpha=0.3, ms=3.5, mew=0)
        axes.plot(there, np.nanmedian(relative[:, there], axis=0), "-", color=colour, lw=1.3)
    for change in verdict.changes:
        axes.axvline(change.index - 0.5, color="#59636e", ls="--", lw=0.8)
    ticks = np.unique(np.linspace(0, len(s.commits) - 1, min(LABELS, len(s.commits))).round().astype(int))
    axes.set_xticks(ticks, [s.commits[k].short[:7] for k in ticks], rotation=40, ha="right", fontsize=6)
    axes.set_xlim(-0.5, len(s.commits) - 0.5)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:+.3g}%")


def _short(name: str) -> str:
    return name if len(name) <= LETTERS else "..." + name[3 - LETTERS :]
