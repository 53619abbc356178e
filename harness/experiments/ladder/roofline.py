"""The roofline of a ladder: what each stage reaches, under what its machine can do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from harness.document.figures import OUR_COLOURS, STYLE, Figure, kept
from harness.results.runs import Record

SHAPES = {"nodes": "-", "heads": "--"}


def roofline(rows: pd.DataFrame, records: list[Record], folder: Path, name: str) -> Figure:
    """GFLOP/s over FLOP/byte, a panel a precision, as <name>.svg and .png in folder."""
    shown = {p: own for p, own in rows.groupby("precision", sort=False) if own["share_of_attainable"].notna().any()}
    with plt.rc_context(STYLE):
        figure, panels = plt.subplots(
            1, len(shown), figsize=(4.3 * len(shown), 3.7), layout="constrained", sharey=True, squeeze=False
        )
        for axes, (precision, own) in zip(panels[0], shown.items(), strict=True):
            ceilings = next(r.facts["ceilings"] for r in records if r.case["parameters"]["precision"] == precision)
            _roof(axes, ceilings, own)
            _points(axes, own, OUR_COLOURS.get(str(precision), "#009e73"))
            axes.set_title(str(precision).upper(), fontsize=9)
            axes.set_xlabel("FLOP / byte")
        panels[0][0].set_ylabel("GFLOP/s")
        caption = (
            "Rate of each stage over its arithmetic per byte moved. Slope: a copy of 256 MiB; levels: matrix products"
            " of the model's shapes, solid with a row for every atom, dashed of the heads, in the types that occur; all"
            " measured in the same run. Numbers: share of what is attainable for the stage's own mix,"
            " without caches: what they hold can bring it above 100%."
        )
        return kept(figure, folder, name, caption)


def _roof(axes: Axes, ceilings: dict[str, Any], own: pd.DataFrame) -> None:
    low, high = 0.5 * (own["gflop"] / own["gb"]).min(), 3.0 * (own["gflop"] / own["gb"]).max()
    top = max(p["gflop_per_s"] for p in ceilings["products"] if p["of"] != "messages")
    ridge = float(np.clip(top / ceilings["copy_gb_per_s"], low, high))  # a straight line only from bend to bend
    intensity = np.array([low, ridge, high])
    axes.plot(intensity, np.minimum(intensity * ceilings["copy_gb_per_s"], top), color="#999999", linewidth=1)
    for product in ceilings["products"]:
        if product["of"] in SHAPES:
            rate = product["gflop_per_s"]
            left = max(low, rate / ceilings["copy_gb_per_s"])
            axes.plot([left, high], [rate, rate], SHAPES[product["of"]], color="#999999", linewidth=1)
            if product["of"] == "nodes":
                axes.text(high, rate, product["dtype"], fontsize=7, ha="right", va="bottom", color="#555555")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylim(bottom=0.3 * own["gflop_per_s"].min())


def _points(axes: Axes, own: pd.DataFrame, colour: str) -> None:
    """Numbered, with the names beside, since stages that do the same in another order lie on top of each other."""
    known = own[own["share_of_attainable"].notna()]
    lines = []
    for k, (_, r) in enumerate(known.iterrows(), 1):
        place = (r["gflop"] / r["gb"], r["gflop_per_s"])
        axes.plot(*place, "o", color=colour, ms=9, alpha=0.55)
        axes.annotate(str(k), place, ha="center", va="center", fontsize=6.5)
        lines.append(f"{k:>2} {r['stage'].replace('_', ' ')} {100 * r['share_of_attainable']:.0f}%")
    axes.text(0.98, 0.02, "\n".join(lines), transform=axes.transAxes, fontsize=6.5, ha="right", va="bottom")
