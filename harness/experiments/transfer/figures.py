"""Figures of transfer: error over labels for each task, and the gain from pretraining over all of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from harness.document.figures import STYLE, Figure, save_figure, set_plain_ticks
from harness.protocol.text import pluralize

# Errors this many times the median are not drawn: the error of the mean of total energies would flatten all others.
MAX_OVER_MEDIAN = 30.0


@dataclass(frozen=True)
class ModeStyle:
    """The title, colour, mark and line style of a mode."""

    title: str
    colour: str
    mark: str
    line: str = "-"


MODES = {
    "full": ModeStyle("everything", "#0072b2", "o"),
    "frozen_encoder": ModeStyle("frozen encoder", "#56b4e9", "s"),
    "head_only": ModeStyle("head only", "#009e73", "^"),
    "as_pretrained": ModeStyle("as pretrained", "#cc79a7", "v"),
    "scratch": ModeStyle("from scratch", "#d55e00", "D"),
    "composition": ModeStyle("composition", "#59636e", "", "--"),
    "mean": ModeStyle("mean", "#9aa2ab", "", ":"),
}


def draw_errors(errors: pd.DataFrame, published: pd.DataFrame, task: pd.Series, folder: Path, name: str) -> Figure:
    """Draw the error over the number of labels, with a panel per subset, a line per mode, and published results."""
    subsets, has_stars = list(errors["subset"].unique()), False
    with mpl.rc_context(STYLE):
        width = min(8.6, 1.6 + 3.4 * len(subsets))
        figure, panels = plt.subplots(1, len(subsets), figsize=(width, 3.2), squeeze=False, layout="constrained")
        for axes, subset in zip(panels[0], subsets, strict=True):
            group = errors[errors["subset"] == subset]
            for mode, look in MODES.items():
                curve = group[group["mode"] == mode].sort_values("labels")
                if curve.empty or (mode == "mean" and curve["mae"].min() > MAX_OVER_MEDIAN * group["mae"].median()):
                    continue
                style: Any = {"color": look.colour, "marker": look.mark, "ls": look.line, "ms": 4.5, "lw": 1.3}
                span = np.abs(np.array([curve["mae"] - curve["low"], curve["high"] - curve["mae"]]))
                span = np.nan_to_num(span, posinf=0.0) if look.mark else None
                axes.errorbar(curve["labels"], curve["mae"], yerr=span, capsize=2, label=look.title, **style)
            others = published[(published["subset"] == subset) & (published["unit"] == task["unit"])]
            has_stars |= bool(len(others))
            if len(others):
                axes.plot(others["train"], others["value"], "*", color="#000000", ms=6, label="published")
            axes.set_xscale("log")
            axes.set_yscale("log")
            # wide intervals of few seeds may leave the panel, so that the curves remain distinguishable
            values = [v for v in (*group["mae"], *others["value"]) if v > 0 and np.isfinite(v)]
            if values:
                axes.set_ylim(0.5 * min(values), 2.0 * min(max(values), MAX_OVER_MEDIAN * float(group["mae"].median())))
            for axis, ends in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
                set_plain_ticks(axis, *ends)
            axes.set_xlabel("labels seen")
            axes.set_title(subset, fontsize=9)
        panels[0][0].set_ylabel(f"MAE, {task['unit']}")
        panels[0][-1].legend(frameon=False, fontsize=7.5)
        seeds, n_test = int(errors["seeds"].max()), int(errors["test"].median())
        caption = (
            f"{task['title']}, {task['target']} ({task['role']}): error on {n_test} held-out structures, mean of"
            f" {seeds} seeds with the 95% interval of their geometric mean."
            + (" Stars: published results on the official data." if has_stars else "")
        )
        return save_figure(figure, folder, name, caption)


def draw_gains(gains: pd.DataFrame, folder: Path, name: str) -> Figure:
    """Draw the error of each mode over that of training from scratch, for the most labels of every task."""
    largest = gains.loc[gains.groupby(["task", "subset", "mode"], sort=False)["labels"].idxmax()]
    rows = list(dict.fromkeys(zip(largest["title"], largest["subset"], largest["labels"], strict=True)))
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(7.0, 1.2 + 0.42 * len(rows)), layout="constrained")
        for j, mode in enumerate(m for m in MODES if m in set(largest["mode"])):
            look, group = MODES[mode], largest[largest["mode"] == mode]
            positions = [
                rows.index(key) + 0.16 * (j - 1.5)
                for key in zip(group["title"], group["subset"], group["labels"], strict=True)
            ]
            span = np.nan_to_num(np.array([group["ratio"] - group["low"], group["high"] - group["ratio"]]))
            style: Any = {"color": look.colour, "marker": look.mark, "ls": "", "ms": 5, "capsize": 2}
            axes.errorbar(group["ratio"], positions, xerr=np.abs(span), label=look.title, **style)
        axes.axvline(1.0, color="#59636e", lw=0.9, zorder=0)
        axes.set_xscale("log")
        low, high = largest["ratio"].min(), largest["ratio"].max()
        axes.set_xlim(0.7 * low, 1.5 * high)
        set_plain_ticks(axes.xaxis, *axes.get_xlim())
        axes.set_yticks(range(len(rows)), [f"{t}{f' {s}' if s else ''}, {n} labels" for t, s, n in rows])
        axes.invert_yaxis()
        axes.set_xlabel("error / error from scratch (less is better)")
        axes.legend(frameon=False, fontsize=7.5)
        seeds = int(largest["seeds"].max())
        caption = (
            f"Gain from pretraining, {pluralize(len(rows), 'task')} or subsets with the most labels of each:"
            f" geometric mean of {pluralize(seeds, 'seed')} with Student's 95% interval, clipped at the axis."
        )
        return save_figure(figure, folder, name, caption)
