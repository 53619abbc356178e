"""Figures of hyperparameter searches: the best error so far, the Pareto front, and all configurations."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from harness.document.blocks import format_number
from harness.document.figures import STYLE, Figure, save_figure, set_plain_ticks
from harness.protocol.backbones import GREY, find_backbone, get_backbone_title
from harness.protocol.text import pluralize

NO_OBJECTIVE_COLOUR = "#b42318"
# Above this number of hyperparameters, the ends of their ranges are written vertically.
MAX_HORIZONTAL_LABELS = 8
OBJECTIVE_LABEL = "(MAE(E) + MAE(F)) / 2, eV/atom and eV/\N{ANGSTROM SIGN}"


def draw_best_so_far(trials: pd.DataFrame, folder: Path, name: str) -> Figure:
    """Draw the lowest error so far against time and against node-hours, with a line per search."""
    with mpl.rc_context(STYLE):
        figure, panels = plt.subplots(1, 2, figsize=(8.6, 3.5), sharey=True, layout="constrained")
        per_hour, unit = (1.0, "hours") if trials["end_h"].max() > 1.0 else (60.0, "minutes")
        for axes, column, label in zip(
            panels,
            ("end_h", "cumulative_node_hours"),
            (f"{unit} since the first trial", f"node-{unit} used"),
            strict=True,
        ):
            for _, group in trials.groupby("case", sort=False):
                colour, title = find_backbone(group["search"].iloc[0]).colour, group["title"].iloc[0]
                x = per_hour * group[column]
                axes.step(x, -group["best_so_far"], where="post", color=colour, lw=1.4, label=title)
                axes.plot(x, -group["objective"], ".", color=colour, ms=4, alpha=0.6)
                without = x[group["objective"].isna()]
                if len(without):
                    options: Any = {"transform": axes.get_xaxis_transform(), "clip_on": False}
                    axes.plot(without, np.full(len(without), 1.0), "x", color=colour, ms=5, **options)
            axes.set_xlabel(label)
        panels[0].set_yscale("log")
        set_plain_ticks(panels[0].yaxis, *panels[0].get_ylim())
        panels[0].set_ylabel(OBJECTIVE_LABEL, fontsize=8)
        panels[1].legend(frameon=False, fontsize=8)
        caption = (
            f"Mean errors on validation structures of {pluralize(len(trials), 'trial')}, in eV/atom and"
            " eV/\N{ANGSTROM SIGN}. Dots are trials, lines are the lowest errors so far, and crosses at the top are"
            " trials without an objective."
        )
        return save_figure(figure, folder, name, caption, card=0)


def draw_front(trials: pd.DataFrame, folder: Path, name: str) -> Figure:
    """Draw the error of every trial against its training throughput, and the Pareto front."""
    scored = trials[trials["objective"].notna()]
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(6.2, 3.8), layout="constrained")
        for backbone, group in scored.groupby("backbone", sort=False):
            look = find_backbone(backbone)
            style: Any = {"color": look.colour, "marker": look.marker, "ls": "", "ms": 4.5, "alpha": 0.8}
            title = get_backbone_title(str(backbone))
            axes.plot(group["structures_per_s"], -group["objective"], label=title, **style)
        front = scored[scored["is_pareto_optimal"].astype(bool)].sort_values("structures_per_s")
        axes.plot(front["structures_per_s"], -front["objective"], "-", color=GREY, lw=0.9, zorder=0, label="front")
        axes.set_xscale("log")
        axes.set_yscale("log")
        for axis, ends in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
            set_plain_ticks(axis, *ends)
        axes.set_xlabel("training throughput, structures/s")
        axes.set_ylabel(OBJECTIVE_LABEL, fontsize=8)
        axes.legend(frameon=False, fontsize=8)
        caption = (
            f"Error against throughput for {pluralize(len(scored), 'trial')} of all searches. The line is the Pareto"
            " front: the trials that no other trial matches in both quantities and beats in one."
        )
        return save_figure(figure, folder, name, caption)


def draw_configurations(
    points: pd.DataFrame, space: Mapping[str, Mapping[str, Any]], title: str, folder: Path, name: str
) -> Figure:
    """Draw the parallel coordinates of one search, with a line per trial.

    Args:
        points: The rows of the table `hpo_points` of the search.
        space: The range or the choices of each hyperparameter, as the search has logged them.
        title: The title of the search.
        folder: The folder of the figure.
        name: The name of the figure.
    """
    names = list(points["hyperparameter"].unique())
    table = points.pivot_table(index="trial", columns="hyperparameter", values="normalized_value")[names]
    objective = points.drop_duplicates("trial").set_index("trial")["objective"]
    ranks = objective.rank(ascending=False, method="min")
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(max(5.2, 0.95 * len(names) + 1.4), 3.0), layout="constrained")
        colours = mpl.colormaps["cividis"]
        n_scored = int(objective.notna().sum())
        for trial in ranks.sort_values(ascending=False, na_position="first").index:
            style: Any = {"color": NO_OBJECTIVE_COLOUR, "ls": ":", "lw": 0.9}
            if not np.isnan(objective[trial]):
                share = 1.0 - (ranks[trial] - 1) / n_scored
                style = {"color": colours(share), "lw": 2.4 if ranks[trial] == 1 else 1.0}
            axes.plot(range(len(names)), table.loc[trial, names], **style)
        rotation = 90 if len(names) > MAX_HORIZONTAL_LABELS else 0
        for k, hyperparameter in enumerate(names):
            axes.axvline(k, color="#d8dee4", lw=0.8, zorder=0)
            low, high = format_ends(space[hyperparameter])
            for value, y, side in ((low, -0.06, "top"), (high, 1.06, "bottom")):
                axes.text(k, y, value, ha="center", va=side, fontsize=7, color=GREY, rotation=rotation)
        axes.set_xticks(range(len(names)), [n.replace("_", "\n") for n in names], fontsize=7.5)
        axes.tick_params(length=0, pad=36 if rotation else 12)  # below the ends of the ranges
        axes.set_ylim(-0.05, 1.05)
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set_visible(False)
        n_without = int(objective.isna().sum())
        caption = (
            f"{title}: one line per trial, {n_scored} with an objective (yellow is good; the best one is thick)"
            + (f" and {n_without} without an objective (dotted)" if n_without else "")
            + ". Each axis spans the search range, whose ends are printed, or the list of choices, of which the first"
            " and the last are printed."
        )
        return save_figure(figure, folder, name, caption)


def format_ends(dimension: Mapping[str, Any]) -> tuple[str, str]:
    """Return the ends of a range, or the first and the last choice, as text; the last is empty for a lone choice."""
    values = dimension.get("values") or (dimension["low"], dimension["high"])
    low, *others = [str(v) if isinstance(v, (str, bool)) else format_number(v) for v in values]
    return low, others[-1] if others else ""
