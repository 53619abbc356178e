"""The sections on treatments of imbalanced datasets, on the page of training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from harness.document.blocks import Column, Section, TableBlock, build_block, list_rows, number_cell
from harness.document.figures import STYLE, Figure, save_figure, set_plain_ticks
from harness.experiments.experiment import PageContext
from harness.experiments.training.descriptions import MEV, UNITS, describe_dataset, estimate_cell, format_estimate
from harness.experiments.training.figures import GREY, describe_seeds
from harness.experiments.training.quantities import FORCES, QUANTITIES
from harness.protocol.text import pluralize

SIZE_COLOURS = {"small": "#d55e00", "large": "#0072b2"}
SIZE_MEANING = (
    "Small datasets have fewer training structures than the mean dataset, and large ones at least as many. Ratios are"
    " geometric means over heads and seeds with Student's 95% interval over seeds; below 1, the treatment is better"
    " than the plain one."
)
# The axes of the figure end at this ratio and at its inverse.
MAX_RATIO = 2.0
# The quantities in the order of their panels, with the titles.
PANELS = ((FORCES, "forces"), *((quantity, "energy per atom") for quantity in QUANTITIES if quantity is not FORCES))


def build_imbalance_sections(context: PageContext) -> list[Section]:
    """Return a section for each group of runs that differ only in the treatment of imbalance."""
    comparisons = context.tables["imbalance_heads"]["comparison"].unique()
    return [build_imbalance_section(comparison, context) for comparison in comparisons]


def build_imbalance_section(comparison: str, context: PageContext) -> Section:
    """Return the section on the treatments that one plain recipe is compared with."""
    heads, sizes = (
        table[table["comparison"] == comparison]
        for table in (context.tables["imbalance_heads"], context.tables["imbalance_sizes"])
    )
    folder, name = context.figures, f"imbalance-{comparison}"
    figures = [draw_sizes(sizes, folder, f"{name}-sizes"), draw_heads(heads, folder, f"{name}-heads")]
    blocks = [build_sizes_block(sizes), *(build_heads_block(heads, quantity.name) for quantity in QUANTITIES)]
    count = heads["treatment"].nunique()
    title = f"Imbalance: {pluralize(count, 'treatment')} of {pluralize(heads['head'].nunique(), 'dataset')}"
    return Section(title, name, [describe_budget(heads), *describe_treatments(sizes)], figures, blocks)


def describe_budget(heads: pd.DataFrame) -> str:
    """Return the sentences on the number of samples, which is the same in all runs, and on the sizes of datasets."""
    first = heads[heads["treatment"] == heads["treatment"].iloc[0]].drop_duplicates("head")
    return (
        f"Equal budgets: every run draws {first['draws'].sum():,.0f} samples in equally many steps. The largest dataset"
        f" has {first['train'].max():,.0f} training structures, the smallest {first['train'].min():,.0f}."
    )


def describe_treatments(sizes: pd.DataFrame) -> list[str]:
    """Return a sentence per treatment with its ratios of errors for the small and the large datasets."""
    texts = []
    for treatment, rows in sizes.groupby("treatment", sort=False):
        parts = [
            f"{r['quantity']} of the {r['size']} datasets {format_estimate(r, 'ratio', 1.0, '.2f')}"
            for r in list_rows(rows)
        ]
        texts.append(f"Errors with {treatment}, divided by those of the plain treatment: {', '.join(parts)}.")
    return texts


def build_sizes_block(sizes: pd.DataFrame) -> TableBlock:
    """Return the table with a row per treatment, quantity and size of datasets."""
    columns: list[Column] = [
        ("treatment", "treatment"),
        ("quantity", "quantity"),
        ("datasets", lambda r: f"{r['heads']} {r['size']}"),
        ("error / plain error [95%]", estimate_cell("ratio", spec=".3f")),
        ("seeds", "seeds"),
    ]
    return build_block("Small and large datasets", list_rows(sizes), columns, SIZE_MEANING)


def build_heads_block(heads: pd.DataFrame, quantity: str) -> TableBlock:
    """Return the table of the errors of each head with each treatment, from the smallest dataset to the largest."""
    rows = heads[heads["quantity"] == quantity].sort_values(["train", "head"], kind="stable")
    columns: list[Column] = [
        ("data", describe_dataset),
        ("training structures", number_cell("train", ",.0f")),
        ("treatment", "treatment"),
        ("samples drawn", number_cell("draws", ",.0f")),
        (f"MAE ({UNITS[quantity]})", number_cell("treated", scale=MEV)),
        (f"plain MAE ({UNITS[quantity]})", number_cell("plain", scale=MEV)),
        ("MAE / plain MAE [95%]", estimate_cell("ratio", spec=".3f")),
    ]
    return build_block(f"{quantity.capitalize()}: errors by head and treatment", list_rows(rows), columns)


def draw_sizes(sizes: pd.DataFrame, folder: Path, name: str) -> Figure:
    """Draw the ratio of errors of small and of large datasets for each treatment, in a panel per quantity."""
    treatments = list(sizes["treatment"].unique())
    with mpl.rc_context(STYLE):
        size = (8.6, 1.3 + 0.34 * len(treatments))
        figure, panels = plt.subplots(1, 2, figsize=size, sharey=True, layout="constrained")
        for axes, (quantity, title) in zip(panels, PANELS, strict=True):
            for (treatment, kind), rows in sizes[sizes["quantity"] == quantity.name].groupby(["treatment", "size"]):
                y = treatments.index(treatment) + {"small": -0.14, "large": 0.14}[str(kind)]
                row = rows.iloc[0]
                style: Any = {"color": SIZE_COLOURS[str(kind)]}
                axes.plot([row["ratio_low"], row["ratio_high"]], [y, y], lw=1.4, **style)
                axes.plot(row["ratio"], y, "o", ms=5, **style)
            axes.set_xscale("log")
            axes.set_xlim(1 / MAX_RATIO, MAX_RATIO)
            set_plain_ticks(axes.xaxis, 1 / MAX_RATIO, MAX_RATIO)
            axes.axvline(1.0, color=GREY, lw=0.9, zorder=0)
            axes.set_yticks(range(len(treatments)), treatments)
            axes.set_ylim(len(treatments) - 0.5, -0.5)
            axes.set_title(title, fontsize=9)
            axes.set_xlabel("MAE / plain MAE")
        handles = [mpl.lines.Line2D([], [], marker="o", ls="", color=c, label=k) for k, c in SIZE_COLOURS.items()]
        figure.legend(handles=handles, loc="outside upper right", ncols=2, frameon=False, fontsize=8)
        caption = f"Errors of small and of large datasets, {describe_seeds(sizes)}. {SIZE_MEANING}"
        return save_figure(figure, folder, name, caption)


def draw_heads(heads: pd.DataFrame, folder: Path, name: str) -> Figure:
    """Draw a map of the ratios of errors by head, from the smallest dataset to the largest, and by treatment."""
    treatments = list(heads["treatment"].unique())
    order = heads.drop_duplicates("head").sort_values(["train", "head"], kind="stable")
    with mpl.rc_context(STYLE):
        size = (4.0 + 1.1 * len(treatments), 2.4 + 0.26 * len(order))
        figure, panels = plt.subplots(1, 2, figsize=size, sharey=True, layout="constrained")
        for axes, (quantity, title) in zip(panels, PANELS, strict=True):
            rows = heads[heads["quantity"] == quantity.name]
            ratios = rows.pivot(index="head", columns="treatment", values="ratio").reindex(order["head"])[treatments]
            _draw_map(axes, ratios)
            axes.set_yticks(range(len(order)), [f"{r['head']} ({r['train']:,.0f})" for r in list_rows(order)])
            axes.axhline((order["size"] == "small").sum() - 0.5, color="black", lw=1.2)
            axes.set_title(title, fontsize=9)
        caption = (
            "MAE divided by the MAE of the plain treatment, by head, with the number of training structures; above the"
            " line, datasets are small. Blue: the treatment is better."
        )
        return save_figure(figure, folder, name, caption)


def _draw_map(axes: Axes, ratios: pd.DataFrame) -> None:
    """Draw a map of ratios with their values; a ratio that is missing or not finite leaves a grey field."""
    logarithms = np.log2(ratios.to_numpy(dtype=float))
    colours = mpl.colormaps["RdBu_r"].with_extremes(bad="#d0d4d9")
    limit = np.log2(MAX_RATIO)
    axes.imshow(np.ma.masked_invalid(logarithms), cmap=colours, vmin=-limit, vmax=limit, aspect="auto")
    for (row, column), value in np.ndenumerate(logarithms):
        if np.isfinite(value):
            colour = "white" if abs(value) > 0.7 * limit else "black"
            axes.text(column, row, f"{2**value:.2f}", ha="center", va="center", fontsize=7, color=colour)
    axes.set_xticks(range(ratios.shape[1]), ratios.columns, rotation=35, ha="right", fontsize=8)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
