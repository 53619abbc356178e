"""Figures of searches: the best error so far, accuracy against throughput, and the evaluated points."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from harness.document.figures import STYLE, Figure, save_figure, set_plain_ticks
from harness.protocol.backbones import GREY, find_backbone
from harness.protocol.text import pluralize

FAILED_COLOUR = "#b42318"


def draw_best_so_far(trials: pd.DataFrame, names: dict[str, str], folder: Path, name: str) -> Figure:
    """Draw the lowest mean error so far over time and over node-hours, with a line per search."""
    with mpl.rc_context(STYLE):
        figure, panels = plt.subplots(1, 2, figsize=(8.6, 3.5), sharey=True, layout="constrained")
        per_hour, unit = (1.0, "hours") if trials["ended_h"].max() > 1.0 else (60.0, "minutes")
        for axes, column, label in zip(
            panels,
            ("ended_h", "spent_node_hours"),
            (f"{unit} since the search began", f"node-{unit} spent"),
            strict=True,
        ):
            for search, group in trials.groupby("search", sort=False):
                colour = find_backbone(search).colour
                title = names.get(str(search), str(search))
                x = per_hour * group[column]
                axes.step(x, -group["best_so_far"], where="post", color=colour, lw=1.4, label=title)
                axes.plot(x, -group["objective"], ".", color=colour, ms=4, alpha=0.6)
                failed = x[group["objective"].isna()]
                if len(failed):
                    options: Any = {"transform": axes.get_xaxis_transform(), "clip_on": False}
                    axes.plot(failed, np.full(len(failed), 1.0), "x", color=colour, ms=5, **options)
            axes.set_xlabel(label)
        panels[0].set_yscale("log")
        set_plain_ticks(panels[0].yaxis, *panels[0].get_ylim())
        panels[0].set_ylabel("(MAE(E/atom) + MAE(F)) / 2, eV and eV/\N{ANGSTROM SIGN}")
        panels[1].legend(frameon=False, fontsize=8)
        caption = (
            f"Mean errors on validation structures of {pluralize(len(trials), 'trial')}, in eV/atom and"
            " eV/\N{ANGSTROM SIGN}. Dots are trials, lines the lowest error so far, and crosses at the top trials"
            " without an objective."
        )
        return save_figure(figure, folder, name, caption)


def draw_front(trials: pd.DataFrame, names: dict[str, str], folder: Path, name: str) -> Figure:
    """Draw every trial's mean error over its rate, and the Pareto front."""
    scored = trials[trials["objective"].notna()]
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(6.2, 3.8), layout="constrained")
        for backbone, group in scored.groupby("backbone", sort=False):
            key = str(backbone)
            look: Any = {
                "color": find_backbone(key).colour,
                "marker": find_backbone(key).marker,
                "ls": "",
                "ms": 4.5,
            }
            axes.plot(group["graphs_per_s"], -group["objective"], label=names.get(key, key), alpha=0.8, **look)
        front = scored[scored["on_front"].astype(bool)].sort_values("graphs_per_s")
        axes.plot(front["graphs_per_s"], -front["objective"], "-", color=GREY, lw=0.9, zorder=0, label="front")
        axes.set_xscale("log")
        axes.set_yscale("log")
        for axis, ends in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
            set_plain_ticks(axis, *ends)
        axes.set_xlabel("training throughput, graphs/s")
        axes.set_ylabel("(MAE(E/atom) + MAE(F)) / 2")
        axes.legend(frameon=False, fontsize=8)
        caption = (
            f"Accuracy against throughput, {pluralize(len(scored), 'trial')} of all searches."
            " The line is the Pareto front: no other trial is better in both."
        )
        return save_figure(figure, folder, name, caption)


def draw_points(points: pd.DataFrame, title: str, folder: Path, name: str) -> Figure:
    """Draw the parallel coordinates of one search, with a line per trial."""
    names = list(points["hyperparameter"].unique())
    table = points.pivot_table(index="trial", columns="hyperparameter", values="place")[names]
    objective = points.drop_duplicates("trial").set_index("trial")["objective"]
    ranks = objective.rank(ascending=False)
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(max(5.2, 0.95 * len(names) + 1.4), 3.0), layout="constrained")
        colours = mpl.colormaps["cividis"]
        n_scored = max(1, int(objective.notna().sum()))
        for trial in ranks.sort_values(ascending=False, na_position="first").index:
            style: Any = {"color": FAILED_COLOUR, "ls": ":", "lw": 0.9}
            if not np.isnan(objective[trial]):
                share = 1.0 - (ranks[trial] - 1) / n_scored
                style = {"color": colours(share), "lw": 2.4 if ranks[trial] == 1 else 1.0}
            axes.plot(range(len(names)), table.loc[trial, names], **style)
        ends = points.groupby("hyperparameter", sort=False)["value"]
        for k, hyperparameter in enumerate(names):
            axes.axvline(k, color="#d8dee4", lw=0.8, zorder=0)
            low, high = _format_ends(ends.get_group(hyperparameter))
            for value, y, side in ((low, -0.06, "top"), (high, 1.06, "bottom")):
                axes.text(k, y, value, ha="center", va=side, fontsize=7, color=GREY)
        axes.set_xticks(range(len(names)), [n.replace("_", "\n") for n in names], fontsize=7.5)
        axes.tick_params(length=0, pad=12)
        axes.set_ylim(-0.05, 1.05)
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set_visible(False)
        failed = int(objective.isna().sum())
        caption = (
            f"{title}: one line per trial, {n_scored} with an objective (yellow is good, and the best trial is thick)"
            + (f" and {failed} without one (dotted)" if failed else "")
            + ". Each axis spans the search range; the numbers are the smallest and the largest evaluated value."
        )
        return save_figure(figure, folder, name, caption)


def _format_ends(values: pd.Series[Any]) -> tuple[str, str]:
    """Return the smallest and the largest value as text."""
    if values.map(lambda v: isinstance(v, str)).any():
        return str(values.iloc[0]) if values.nunique() == 1 else "", ""
    return f"{values.astype(float).min():.3g}", f"{values.astype(float).max():.3g}"
