"""Figures on errors inside and outside the training sets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from harness.document.figures import STYLE, Figure, save_figure, set_plain_ticks
from harness.experiments.generalisation.metrics import name_outside
from harness.experiments.training.figures import COLOURS, GREY

TRAININGS = {"present": "#0072b2", "absent": "#d55e00", "elsewhere": "#009e73"}


def draw_ratios(errors: pd.DataFrame, folder: Path, name: str) -> Figure:
    """Draw the ratio of outside to inside error of each rule and head, for each kind of joint training."""
    rows = errors[(errors["task"] == "multi-task") & errors["ratio"].notna()]
    keys = ("rule", "file", "head")
    pairs = list(dict.fromkeys(zip(*(rows[key] for key in keys), strict=True)))
    with mpl.rc_context(STYLE):
        options: Any = {"sharey": True, "layout": "constrained", "squeeze": False}
        figure, grid = plt.subplots(1, 2, figsize=(8.6, 1.5 + 0.34 * len(pairs)), **options)
        for axes, quantity in zip(grid[0], ("energy", "forces"), strict=True):
            for offset, (training, colour) in zip((-0.22, 0.0, 0.22), TRAININGS.items(), strict=True):
                group = rows[(rows["quantity"] == quantity) & (rows["training"] == training)]
                rows_of_pairs = [pairs.index(pair) for pair in zip(*(group[key] for key in keys), strict=True)]
                y = np.array(rows_of_pairs) + offset
                axes.hlines(y, group["ratio_low"], group["ratio_high"], color=colour, lw=1.4)
                axes.plot(group["ratio"], y, "o", color=colour, ms=4.5, label=training if len(group) else None)
            axes.axvline(1.0, color=GREY, lw=0.9, zorder=0)
            axes.set_xscale("log")
            set_plain_ticks(axes.xaxis, *axes.get_xlim())
            axes.set_title("energy per atom" if quantity == "energy" else "forces", fontsize=9)
            axes.set_xlabel("MAE outside / MAE inside")
            axes.set_yticks(range(len(pairs)), [f"{name_outside(rule, file)}: {head}" for rule, file, head in pairs])
            axes.set_ylim(len(pairs) - 0.5, -0.5)
        handles = (zip(*axes.get_legend_handles_labels(), strict=True) for axes in grid[0])
        entries = {label: handle for panel in handles for handle, label in panel}
        figure.legend(entries.values(), entries.keys(), loc="outside upper right", ncols=3, frameon=False, fontsize=8)
        caption = (
            "Errors of jointly trained models on structures that satisfy the rule or are from a file, divided by"
            " those on other test structures, with 95% bootstrap intervals. Structures of the rule were in"
            " the training sets (present), in none (absent), or only in those of other heads (elsewhere)."
        )
        return save_figure(figure, folder, name, caption)


def draw_distance(distance: pd.DataFrame, folder: Path, name: str) -> Figure:
    """Draw errors relative to the baseline against the distance from the training sets."""
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(6.2, 3.4), layout="constrained")
        for quantity, rows in distance.groupby("quantity", sort=False):
            centre = np.sqrt(rows["distance_low"] * rows["distance_high"])
            low, high = rows["relative_error_low"].clip(lower=0), rows["relative_error_high"]
            axes.vlines(centre, low, high, color=COLOURS[str(quantity)], lw=1.2)
            axes.plot(centre, rows["relative_error"], "o-", ms=4, color=COLOURS[str(quantity)], label=quantity)
        axes.set_xscale("log")
        set_plain_ticks(axes.xaxis, *axes.get_xlim())
        axes.set_ylim(bottom=0)
        axes.set_xlabel("distance from the training sets")
        axes.set_ylabel("MAE / MAE of the baseline inside")
        axes.legend(frameon=False, fontsize=8)
        caption = (
            "Errors of jointly trained models without the structures of the rule, against the Mahalanobis distance of"
            " their pooled features, in bins of equal counts, with Student's 95% interval over rules and heads."
        )
        return save_figure(figure, folder, name, caption)
