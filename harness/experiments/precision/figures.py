"""Figures of the comparison of precisions: deviations against speed-ups, and the drift of the training loss."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import pandas as pd

from harness.document.figures import STYLE, Figure, save_figure, set_plain_ticks
from harness.experiments.precision.metrics import REFERENCE
from harness.protocol.backbones import BACKBONES, GREY, find_backbone
from harness.protocol.text import pluralize

MARKERS = {"fp64": "o", "fp32": "s", "bf16": "^"}


def draw_deviation_against_speedup(costs: pd.DataFrame, inference: pd.DataFrame, folder: Path, name: str) -> Figure:
    """Draw the difference from FP64 against the speed-up, with a colour per backbone and a marker per precision."""
    groups = inference[inference["precision"] != REFERENCE].groupby(["case", "backbone", "precision"], sort=False)
    with mpl.rc_context(STYLE):
        figure, panels = plt.subplots(1, 2, figsize=(8.6, 3.6), layout="constrained")
        columns = ("energy_deviation_mean_ev_per_atom", "force_deviation_mean_ev_per_angstrom")
        labels = ("energy, meV/atom from FP64", "forces, meV/\N{ANGSTROM SIGN} from FP64")
        rates = costs[costs["phase"] == "inference"].set_index(["case", "precision"])
        for axes, column, label in zip(panels, columns, labels, strict=True):
            for (case, backbone, precision), rows in groups:
                style: Any = {
                    "color": find_backbone(backbone).colour,
                    "marker": MARKERS.get(str(precision), "o"),
                }
                speedup = rates["speedup"].get((str(case), str(precision)), math.nan)
                axes.plot(speedup, 1e3 * rows[column].mean(skipna=False), ls="", ms=5, **style)
            axes.axvline(1.0, color=GREY, lw=0.8, zorder=0)
            axes.set_yscale("log")
            axes.set_xscale("log")
            set_plain_ticks(axes.xaxis, *axes.get_xlim())
            axes.set_xlabel("throughput of inference / FP64")
            axes.set_ylabel(label)
        backbones = [b for name, b in BACKBONES.items() if name in set(inference["backbone"])]
        handles = [mpl.lines.Line2D([], [], color=b.colour, marker=".", ls="", label=b.title) for b in backbones]
        handles += [
            mpl.lines.Line2D([], [], color=GREY, marker=m, ls="", label=p.upper())
            for p, m in MARKERS.items() if p in set(inference["precision"]) - {REFERENCE}
        ]  # fmt: skip
        figure.legend(handles=handles, loc="outside lower center", ncols=8, frameon=False, fontsize=8)
        caption = (
            "Differences from FP64 and speed-ups of lower precisions in inference, with a point for each case and"
            f" precision whose predictions are finite: the mean over {pluralize(inference['head'].nunique(), 'head')}"
            " of the mean difference for held-out structures, and the median of ratios of throughput within a round."
            " Points to the right of the line are faster than FP64. Differences of 0 are not drawn."
        )
        return save_figure(figure, folder, name, caption, card=0)


def draw_drift(losses: pd.DataFrame, folder: Path, name: str) -> Figure:
    """Draw the relative difference of the training loss from that of FP64 at each step, in a panel per case."""
    titles = list(losses["title"].unique())
    columns = min(3, len(titles))
    rows = -(-len(titles) // columns)
    precisions = [p for p in losses["precision"].unique() if p != REFERENCE]
    with mpl.rc_context(STYLE):
        size = (2.7 * columns + 0.6, 1.9 * rows + 0.7)
        figure, grid = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False, sharey=True)
        for axes in grid.flat[len(titles) :]:
            axes.set_axis_off()
        for axes, title in zip(grid.flat, titles, strict=False):
            for precision in precisions:  # also one without steps in this panel, for the legend
                steps = losses[(losses["title"] == title) & (losses["precision"] == precision)]
                colour = {"fp32": "#0072b2", "bf16": "#d55e00"}.get(precision, GREY)
                style: Any = {"lw": 1.0, "marker": ".", "ms": 2.0, "color": colour}
                deviation = steps["relative_deviation"].where(steps["relative_deviation"] > 0)
                axes.plot(steps["step"], deviation, label=precision.upper(), **style)
            axes.set_yscale("log")
            axes.set_title(title, fontsize=9)
        grid.flat[0].legend(frameon=False, fontsize=8)
        figure.supxlabel("step", fontsize=9)
        figure.supylabel("|loss / loss in FP64 - 1|", fontsize=9)
        caption = (
            "Relative difference of the training loss from that of FP64, from the same initial weights on the same"
            " batches; differences of 0 are gaps. Small differences grow with the steps in any precision; the"
            " differences in the first steps are rounding errors."
        )
        return save_figure(figure, folder, name, caption)
