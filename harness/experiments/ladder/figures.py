"""Figures of the ladder: speed-ups compared with the paper's, and the roofline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from harness.document.blocks import Table
from harness.document.figures import STYLE, Figure, save_figure
from harness.results.runs import RunRecord

PAPER_COLOURS = ("#bdbdbd", "#969696", "#d9d9d9", "#737373")
OUR_COLOURS = {"fp64": "#0072b2", "fp32": "#e69f00"}
# The line styles of the roofs, by operation: matrix products with one row per atom (`nodes`), and those of the heads.
ROOF_LINE_STYLES = {"nodes": "-", "heads": "--"}


def draw_ladder(rows: pd.DataFrame, paper: Table, stages: list[str], folder: Path, name: str) -> Figure:
    """Draw the speed-up of every stage over the baseline, for the paper's four columns and for each precision."""
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(8.6, 3.7), layout="constrained")
        precisions = [p for p in OUR_COLOURS if p in set(rows["precision"])]
        width = 0.85 / (len(paper.columns) + len(precisions))
        style: Any = {"width": 0.92 * width, "error_kw": {"lw": 0.9, "capsize": 1.5}}
        x = np.arange(len(stages))
        for k, column in enumerate(paper.columns):
            values = [paper.rows[s][k] / paper.rows["baseline"][k] if s in paper.rows else np.nan for s in stages]
            axes.bar(x + (k + 0.5) * width, values, label=f"paper, {column}", color=PAPER_COLOURS[k], **style)
        for j, precision in enumerate(precisions):
            group = rows[rows["precision"] == precision].drop_duplicates("stage").set_index("stage").reindex(stages)
            span = np.array([group["speedup"] - group["speedup_low"], group["speedup_high"] - group["speedup"]])
            offset = (len(paper.columns) + j + 0.5) * width
            label, colour = f"measured, {precision.upper()}", OUR_COLOURS[precision]
            axes.bar(x + offset, group["speedup"].tolist(), yerr=span, label=label, color=colour, **style)
            missing = np.flatnonzero(group["speedup"].isna().to_numpy())
            axes.plot(missing + offset, np.ones(len(missing)), "x", color="#d55e00", ms=5, clip_on=False)
        axes.set_xticks(x + 0.425, [s.replace("_", "\n") for s in stages])
        axes.set_yscale("log")
        axes.set_ylabel("speed-up over the baseline (x)")
        axes.legend(frameon=False, ncols=2, loc="upper left", fontsize=8)
        counts = rows.loc[rows["samples"] > 0, "samples"]
        n = int(counts.min()) if len(counts) else 0
        subject = ", ".join(rows[column].iloc[0] for column in ("architecture", "model", "workload"))
        caption = (
            f"Cumulative speed-up over the baseline of the same column, {subject} workload:"
            f" median of paired ratios with 95% interval, n = {n} rounds. The paper prints no row for batched heads or"
            " for the stages after torch compile. A cross marks a stage without a valid speed-up: it did not run, or"
            " its numbers are wrong."
        )
        return save_figure(figure, folder, name, caption)


def draw_roofline(rows: pd.DataFrame, records: list[RunRecord], folder: Path, name: str) -> Figure:
    """Draw the GFLOP/s of each stage against its FLOP/byte, below the machine's roof, with a panel per precision."""
    groups = {
        p: group for p, group in rows.groupby("precision", sort=False) if group["attainable_fraction"].notna().any()
    }
    with plt.rc_context(STYLE):
        figure, panels = plt.subplots(
            1, len(groups), figsize=(4.3 * len(groups), 3.7), layout="constrained", sharey=True, squeeze=False
        )
        for axes, (precision, group) in zip(panels[0], groups.items(), strict=True):
            ceilings = next(r.facts["ceilings"] for r in records if r.case["parameters"]["precision"] == precision)
            _draw_roof(axes, ceilings, group)
            _draw_points(axes, group, OUR_COLOURS.get(str(precision), "#009e73"))
            axes.set_title(str(precision).upper(), fontsize=9)
            axes.set_xlabel("FLOP / byte")
        panels[0][0].set_ylabel("GFLOP/s")
        caption = (
            f"{rows['architecture'].iloc[0]}: rate of each stage against its arithmetic per byte of traffic. The"
            " slanted line is the bandwidth of a copy of 256 MiB, and the horizontal lines are the rates of matrix"
            " products with the model's shapes and types (solid: one row per atom, dashed: heads), all measured in the"
            " same run. Percentages compare each stage with the rate that it could attain if all of its traffic went to"
            " main memory; caches can raise them above 100%."
        )
        return save_figure(figure, folder, name, caption)


def _draw_roof(axes: Axes, ceilings: dict[str, Any], group: pd.DataFrame) -> None:
    low, high = (
        0.5 * (group["gflop"] / group["memory_traffic_gb"]).min(),
        3.0 * (group["gflop"] / group["memory_traffic_gb"]).max(),
    )
    top = max(p["gflop_per_s"] for p in ceilings["products"] if p["operation"] != "messages")
    ridge = float(np.clip(top / ceilings["copy_gb_per_s"], low, high))  # the only bend of the roof
    intensity = np.array([low, ridge, high])
    axes.plot(intensity, np.minimum(intensity * ceilings["copy_gb_per_s"], top), color="#999999", linewidth=1)
    for product in ceilings["products"]:
        if product["operation"] in ROOF_LINE_STYLES:
            rate = product["gflop_per_s"]
            left = max(low, rate / ceilings["copy_gb_per_s"])
            axes.plot([left, high], [rate, rate], ROOF_LINE_STYLES[product["operation"]], color="#999999", linewidth=1)
            if product["operation"] == "nodes":
                axes.text(high, rate, product["dtype"], fontsize=7, ha="right", va="bottom", color="#555555")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylim(bottom=0.3 * group["gflop_per_s"].min())


def _draw_points(axes: Axes, group: pd.DataFrame, colour: str) -> None:
    """Draw a numbered point for each stage, and a list of the stages, since similar stages coincide."""
    known = group[group["attainable_fraction"].notna()]
    lines = []
    for k, (_, r) in enumerate(known.iterrows(), 1):
        position = (r["gflop"] / r["memory_traffic_gb"], r["gflop_per_s"])
        axes.plot(*position, "o", color=colour, ms=9, alpha=0.55)
        axes.annotate(str(k), position, ha="center", va="center", fontsize=6.5)
        lines.append(f"{k:>2} {r['stage'].replace('_', ' ')} {100 * r['attainable_fraction']:.0f}%")
    axes.text(1.02, 1.0, "\n".join(lines), transform=axes.transAxes, fontsize=6.5, ha="left", va="top")
