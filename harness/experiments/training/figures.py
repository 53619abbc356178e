"""Figures of the sections on training: errors relative to baselines, learning curves, ratios of multi-task errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from numpy.typing import NDArray

from harness.document.figures import STYLE, Figure, save_figure, set_plain_ticks
from harness.experiments.data.figures import ORIGIN_COLOURS
from harness.experiments.data.metrics import ORIGINS
from harness.experiments.training.multitask import TOLERANCE
from harness.experiments.training.quantities import ENERGY, FORCES, QUANTITIES

COLOURS = {"forces": "#0072b2", "energy": "#e69f00", "training": "#0072b2", "validation": "#e69f00"}
RED, GREY = "#d55e00", "#59636e"
TITLES = {"energy": "energy per atom / composition only", "forces": "forces / zero forces"}
FRACTIONS = {1 / 3: "1/3", 1 / 2: "1/2", 1.0: "1"}
VERDICT_TEXTS = {"no labels": "no force labels", "not finite": "not finite", "no structures": "no test structures"}


def classify_origin(data_origin: str) -> str:
    """Return the kind of a data origin, such as `stand-in` for `stand-in for OC2020`."""
    return next((kind for kind in ORIGINS if data_origin.startswith(kind)), data_origin)


def draw_error_ratios(errors: pd.DataFrame, folder: Path, name: str) -> Figure:
    """Draw the error of each head divided by that of its trivial baseline, with the target, for both quantities."""
    with mpl.rc_context(STYLE):
        figure, panels = _create_panels(errors)
        for axes, quantity in zip(panels, (FORCES, ENERGY), strict=True):
            group = errors[errors["quantity"] == quantity.name]
            colours = [ORIGIN_COLOURS.get(classify_origin(origin), GREY) for origin in group["data_origin"]]
            _draw_dots(axes, group, colours, quantity.target)
            axes.set_title(TITLES[quantity.name], fontsize=9, pad=14)
            for position, style in ((quantity.target, "--"), (1.0, "-")):
                axes.axvline(position, color=GREY, lw=0.9, ls=style, zorder=0)
                text = "target " * (position < 1) + FRACTIONS[position]
                _label_above(axes, position, text)
            axes.set_xlabel("MAE / MAE of the baseline")
        kinds = [kind for kind in ORIGIN_COLOURS if kind in set(map(classify_origin, errors["data_origin"]))]
        handles = [mpl.lines.Line2D([], [], marker="o", ls="", color=ORIGIN_COLOURS[k], label=k) for k in kinds]
        figure.legend(handles=handles, loc="outside lower right", ncols=3, frameon=False, fontsize=8)
        caption = (
            "Errors on held-out structures divided by those of a trivial baseline: mean of"
            f" {describe_seeds(errors)}. Heads to the left of the dashed line meet the target."
        )
        return save_figure(figure, folder, name, caption, card=0)


def describe_seeds(rows: pd.DataFrame) -> str:
    """Return the number of seeds as text, such as `2 to 3 seeds with 95% interval (Student's)`."""
    smallest, largest = int(rows["seeds"].min()), int(rows["seeds"].max())
    if largest == 1:
        return "one seed, hence without intervals"
    count = largest if smallest == largest else f"{smallest} to {largest}"
    return f"{count} seeds with 95% interval (Student's)"


def _create_panels(rows: pd.DataFrame) -> tuple[Any, Any]:
    """Return a figure with two panels side by side, high enough for a line for each head."""
    heads = rows["head"].nunique()
    return plt.subplots(1, 2, figsize=(8.6, 1.3 + 0.24 * heads), sharey=True, layout="constrained")


def _draw_dots(axes: Axes, group: pd.DataFrame, colours: list[str], reference: float) -> None:
    """Draw the ratio of each head with its interval, or its verdict if there is no ratio.

    Args:
        axes: The panel.
        group: The rows of the heads.
        colours: The colour of each head.
        reference: A ratio that the axis includes.
    """
    y = np.arange(len(group))
    values, low, high = (group[f"ratio{end}"].to_numpy(dtype=float) for end in ("", "_low", "_high"))
    left, right = _choose_limits(np.concatenate([values, low, high, [reference]]))
    for k, colour in enumerate(colours):
        axes.plot([max(low[k], left), high[k]], [k, k], color=colour, lw=1.4)
        axes.plot(values[k], k, "o", color=colour, ms=5)
    axes.set_xscale("log")
    axes.set_xlim(left, right)
    axes.set_yticks(y, group["head"])
    axes.set_ylim(len(group) - 0.5, -0.6)
    axes.grid(axis="y", color="#eef0f2", lw=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(axis="y", length=0)
    set_plain_ticks(axes.xaxis, left, right)
    style: Any = {"transform": axes.get_yaxis_transform(), "va": "center", "fontsize": 7.5}
    for position, verdict in zip(y[~np.isfinite(values)], group["verdict"][~np.isfinite(values)], strict=True):
        colour = RED if verdict == "not finite" else GREY
        axes.text(0.02, position, VERDICT_TEXTS.get(verdict, verdict), color=colour, **style)


def _choose_limits(values: NDArray[np.float64]) -> tuple[float, float]:
    """Return the limits of an axis that contains all values and 1; the left limit is at least 0.001."""
    positive = values[np.isfinite(values) & (values > 0)]
    smallest, largest = float(positive.min()), float(positive.max())
    return max(min(0.8 * smallest, 0.8), 1e-3), max(1.25 * largest, 1.25)


def _set_log_axes(axes: Axes, steps: pd.Series[float]) -> None:
    """Make both axes logarithmic, over the range of the steps."""
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(0.9 * steps.min(), 1.1 * steps.max())
    for axis, ends in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
        set_plain_ticks(axis, *ends)


def _label_above(axes: Axes, x: float, text: str, side: str = "center") -> None:
    position: Any = {"xytext": (0, 2), "textcoords": "offset points", "ha": side, "va": "bottom"}
    axes.annotate(text, (x, 1.0), xycoords=axes.get_xaxis_transform(), fontsize=7, color=GREY, **position)


def draw_loss_curves(epochs: pd.DataFrame, folder: Path, name: str) -> Figure:
    """Draw the training and validation losses against the steps on logarithmic axes, with a line per seed."""
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(6.2, 3.4), layout="constrained")
        for number, (_, run) in enumerate(epochs.groupby("case", sort=False)):
            for column, label in (("loss", "training"), ("validation_loss", "validation")):
                style: Any = {"color": COLOURS[label], "lw": 1.2, "alpha": 0.85, "marker": "." if len(run) < 3 else ""}
                axes.plot(run["step"], run[column], label=label if number == 0 else None, **style)
            best = run[run["best"].eq(True)].tail(1)
            best_style: Any = {"ms": 4.5, "mfc": "white", "color": RED, "label": "best" if number == 0 else None}
            axes.plot(best["step"], best["validation_loss"], "o", **best_style)
        _set_log_axes(axes, epochs["step"])
        axes.set_xlabel("steps")
        axes.set_ylabel("loss")
        axes.legend(frameon=False, fontsize=8)
        runs = epochs["case"].nunique()
        caption = (
            f"Learning curves of {runs} run{'s' if runs > 1 else ''}, with one line for each. The training loss is the"
            " mean over the steps of an epoch, with the weights of each step."
        )
        return save_figure(figure, folder, name, caption)


def draw_head_curves(heads: pd.DataFrame, errors: pd.DataFrame, folder: Path, name: str) -> Figure:
    """Draw the validation error divided by the error of the trivial baseline against the steps, in a panel per head."""
    names = [h for h in errors["head"].unique() if h in set(heads["head"])]
    columns = min(4, len(names))
    lines = -(-len(names) // columns)
    with mpl.rc_context(STYLE):
        size = (max(5.2, 2.0 * columns + 0.6), 1.45 * lines + 0.9)
        options: Any = {"sharex": True, "sharey": True, "squeeze": False}
        figure, grid = plt.subplots(lines, columns, figsize=size, layout="constrained", **options)
        for axes in grid.flat[len(names) :]:
            axes.set_axis_off()
        for axes, head in zip(grid.flat, names, strict=False):
            rows = heads[(heads["head"] == head) & (heads["split"] == "validation")]
            head_errors = errors[errors["head"] == head].set_index("quantity")
            suffix = ", stand-in" if classify_origin(head_errors["data_origin"].iloc[0]) == "stand-in" else ""
            axes.set_title(f"{head}{suffix}", fontsize=8, pad=2)
            for quantity in QUANTITIES:
                baseline = float(head_errors.loc[quantity.name, "baseline_mae"])
                for _, run in rows.groupby("case", sort=False):
                    style: Any = {"color": COLOURS[quantity.name], "lw": 1.0, "marker": "." if len(run) < 3 else ""}
                    axes.plot(run["step"], run[quantity.mae] / baseline, **style)
                axes.axhline(quantity.target, color=COLOURS[quantity.name], lw=0.8, ls=":")
            axes.tick_params(labelsize=7.5)
        _set_log_axes(grid[0, 0], heads["step"])
        for axes in grid.flat[: len(names)]:
            axes.axhline(1.0, color=GREY, lw=0.6, zorder=0)
        figure.supxlabel("steps", fontsize=9)
        figure.supylabel("MAE / MAE of the baseline", fontsize=9)
        handles = [mpl.lines.Line2D([], [], color=COLOURS[q.name], label=TITLES[q.name]) for q in (FORCES, ENERGY)]
        figure.legend(handles=handles, loc="outside upper left", ncols=2, frameon=False, fontsize=8)
        caption = (
            "Errors of each head on validation structures divided by those of the baseline on test structures, with one"
            " line per seed. Dotted lines are the targets."
        )
        return save_figure(figure, folder, name, caption)


def draw_ablation_ratios(rows: pd.DataFrame, folder: Path, name: str) -> Figure:
    """Draw the ratio of the multi-task to the single-task error of each head, for forces and for energies."""
    heads = list(rows["head"].unique())
    with mpl.rc_context(STYLE):
        figure, panels = _create_panels(rows)
        for axes, quantity in zip(panels, (FORCES, ENERGY), strict=True):
            group = rows[rows["quantity"] == quantity.name].set_index("head").reindex(heads).reset_index()
            group["verdict"] = group["verdict"].fillna("no labels, or no pair of runs")
            _draw_dots(axes, group, [RED if v == "worse" else COLOURS["training"] for v in group["verdict"]], TOLERANCE)
            axes.set_title({"energy": "energy per atom", "forces": "forces"}[quantity.name], fontsize=9, pad=14)
            for position, style, text, side in (
                (1, "-", "equal ", "right"),
                (TOLERANCE, "--", " worse by 10%", "left"),
            ):
                axes.axvline(position, color=GREY, lw=0.9, ls=style, zorder=0)
                _label_above(axes, position, text, side)
            axes.set_xlabel("multi-task MAE / single-task MAE")
        caption = (
            "Errors on held-out structures of a model trained on all datasets divided by those of a model trained on"
            f" the head's dataset alone: geometric mean of {describe_seeds(rows)}, paired by seed. Below 1, multi-task"
            f" training is better; red heads are worse by more than {TOLERANCE - 1:.0%}."
        )
        return save_figure(figure, folder, name, caption)
