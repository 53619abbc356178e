"""Figures in one style: vector and PNG, colour-blind safe, n and interval in the caption."""

from __future__ import annotations

import hashlib
import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from harness.document.paper import Table
from harness.host.atomic_files import write_below

# Okabe and Ito's palette, https://jfly.uni-koeln.de/color/
PAPER_COLOURS = ("#bdbdbd", "#969696", "#d9d9d9", "#737373")
OUR_COLOURS = {"fp64": "#0072b2", "fp32": "#e69f00"}
LONGEST = 120
STYLE: Any = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # names may hold dollar signs
    "svg.hashsalt": "gfm-harness",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.dpi": 100,
    "savefig.dpi": 160,
}


@dataclass(frozen=True)
class Figure:
    """A drawn figure: its file name without ending, caption, and SVG source."""

    name: str
    caption: str
    svg: str


def ladder_bars(rows: pd.DataFrame, paper: Table, stages: list[str], folder: Path, name: str) -> Figure:
    """Cumulative speed-up of every stage, the paper's four columns beside ours, as <name>.svg and .png in folder."""
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(8.6, 3.7), layout="constrained")
        precisions = [p for p in OUR_COLOURS if p in set(rows["precision"])]
        width = 0.85 / (len(paper.columns) + len(precisions))
        for k, column in enumerate(paper.columns):
            values = [paper.rows[s][k] / paper.rows["baseline"][k] if s in paper.rows else np.nan for s in stages]
            _bars(axes, k, width, values, None, f"paper, {column}", PAPER_COLOURS[k])
        for j, precision in enumerate(precisions):
            own = rows[rows["precision"] == precision].drop_duplicates("stage").set_index("stage").reindex(stages)
            span = np.array([own["speedup"] - own["speedup_low"], own["speedup_high"] - own["speedup"]])
            place = len(paper.columns) + j
            label = f"here, {precision.upper()}"
            _bars(axes, place, width, own["speedup"].tolist(), span, label, OUR_COLOURS[precision])
            _crosses(axes, own, (place + 0.5) * width)
        axes.set_xticks(np.arange(len(stages)) + 0.425, [s.replace("_", "\n") for s in stages])
        axes.set_yscale("log")
        axes.set_ylabel("speed-up over own baseline (x)")
        axes.legend(frameon=False, ncols=2, loc="upper left", fontsize=8)
        counts = rows.loc[rows["samples"] > 0, "samples"]
        n = int(counts.min()) if len(counts) else 0
        caption = (
            f"Cumulative speed-up, {rows['model'].iloc[0]}, {rows['workload'].iloc[0]} workload: median of paired"
            f" ratios, 95% interval, n = {n} rounds. The paper prints no row for batched heads and for what comes after"
            " torch compile. A cross marks a stage that is wrong or did not run."
        )
        return kept(figure, folder, name, caption)


def scaling_lines(rows: pd.DataFrame, projection: pd.DataFrame, folder: Path, name: str) -> Figure:
    """Throughput over ranks for each mode, beside perfect scaling and what is projected, as <name>.svg and .png."""
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(6.2, 3.6), layout="constrained")
        for (mode, own), colour in zip(rows.groupby("mode"), ("#0072b2", "#e69f00", "#009e73"), strict=False):
            low, high = own["graphs_per_s"] - own["lowest"], own["highest"] - own["graphs_per_s"]
            style: Any = {"marker": "o", "capsize": 3, "color": colour, "label": mode}
            axes.errorbar(own["ranks"], own["graphs_per_s"], yerr=np.array([low, high]), **style)
            first = own.iloc[0]
            further = projection[(projection["mode"] == mode) & (projection["basis"] == "projected")]
            axes.plot(further["ranks"], further["graphs_per_s"], "x--", color=colour, linewidth=0.9, ms=4)
            ranks = np.array([*own["ranks"], *further["ranks"]], dtype=float)
            axes.plot(ranks, first["graphs_per_s"] * ranks / first["ranks"], ":", color=colour, linewidth=1)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        ticks = sorted({*rows["ranks"], *projection["ranks"]})
        axes.set_xticks(ticks, [str(t) for t in ticks])
        axes.set_xlabel("ranks")
        axes.set_ylabel("graphs/s")
        axes.legend(frameon=False)
        caption = (
            f"Training throughput on {rows['system'].iloc[0]}: median of the kept epochs, lowest and highest as bars;"
            " dotted: perfect scaling from the smallest run"
            + ("; crosses, dashed: projected, not measured." if len(projection) else ".")
        )
        return kept(figure, folder, name, caption)


def file_name(name: str) -> str:
    """The name as that of a file: without slashes and the like, and not too long; different names stay different."""
    plain = re.sub(r"[^\w.=+-]+", "-", name, flags=re.ASCII)
    if plain == name and len(name) <= LONGEST:
        return name
    return f"{plain[:LONGEST]}-{hashlib.sha256(name.encode(errors='replace')).hexdigest()[:8]}"


def kept(figure: Any, folder: Path, name: str, caption: str) -> Figure:
    """The figure written as PNG and SVG, and closed."""
    name = file_name(name)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", metadata={"Software": None})
    write_below(folder.parent, f"{folder.name}/{name}.png", picture.getvalue())
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    plt.close(figure)
    svg = text.getvalue()
    write_below(folder.parent, f"{folder.name}/{name}.svg", svg)
    return Figure(name, caption, svg[svg.index("<svg") :])


def _bars(axes: Axes, place: int, width: float, values: list[float], span: object, label: str, colour: str) -> None:
    x = np.arange(len(values)) + (place + 0.5) * width
    axes.bar(x, values, width=0.92 * width, yerr=span, label=label, color=colour, error_kw={"lw": 0.9, "capsize": 1.5})


def _crosses(axes: Axes, own: pd.DataFrame, offset: float) -> None:
    missing = np.flatnonzero(own["speedup"].isna().to_numpy())
    axes.plot(missing + offset, np.ones(len(missing)), "x", color="#d55e00", ms=5, clip_on=False)
