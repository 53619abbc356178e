"""Figures of the section on data: imbalance, elements, distributions, reading."""

from __future__ import annotations

import math
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.layout_engine import ConstrainedLayoutEngine
from numpy.typing import NDArray

from harness.document.figures import STYLE, Figure, kept
from harness.document.periodic_table import SYMBOLS, cell_of
from harness.document.ticks import short
from harness.experiments.data.metrics import wholes

ROLE_COLOURS = {"official": "#009e73", "sample": "#0072b2", "stand-in": "#e69f00"}
ORIGINAL_COLOUR = "#bdbdbd"
MODE_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")
EMPTY = "#eef0f2"
TITLES = {
    "sizes": "size",
    "energy_ev_per_atom": "energy beyond the references",
    "force_norm_ev_per_a": "force on an atom",
}


def imbalance_bars(datasets: pd.DataFrame, folder: Path, name: str) -> Figure:
    """Structures of each dataset beside those of its original, on a logarithmic scale."""
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(8.6, 0.9 + 0.32 * len(datasets)), layout="constrained")
        y = np.arange(len(datasets))
        original = datasets["original_count"].astype(float)
        axes.barh(y - 0.19, original, 0.36, color=ORIGINAL_COLOUR, label="original dataset")
        for role, colour in ROLE_COLOURS.items():
            own = np.flatnonzero(datasets["role"] == role)
            if len(own):
                axes.barh(own + 0.19, datasets["structures"].iloc[own], 0.36, color=colour, label=f"here, {role}")
        for k, (there, here) in enumerate(zip(original, datasets["structures"], strict=True)):
            for place, count in ((k - 0.19, there), (k + 0.19, here)):
                if count > 0:
                    text: Any = {"xytext": (3, 0), "textcoords": "offset points", "va": "center", "fontsize": 7}
                    axes.annotate(short(count), (count, place), **text)
        axes.set_yticks(y, datasets["head"])
        axes.set_ylim(len(datasets) - 0.4, -0.6)
        axes.set_xscale("log")
        counts = np.concatenate([original[original > 0], datasets["structures"].astype(float).clip(lower=1)])
        axes.set_xlim(10 ** np.floor(np.log10(counts.min()) - 1), 3 * counts.max())
        axes.set_xlabel("structures")
        axes.legend(frameon=False, fontsize=8, ncols=3, loc="lower left", bbox_to_anchor=(0, 1.0), borderaxespad=0.1)
        spans = [(original, "of the originals"), (datasets["structures"].astype(float), "here")]
        told = [f"{short(c.max() / c[c > 0].min())} to 1 {what}" for c, what in spans if (c > 0).any()]
        caption = f"Structures per dataset. The largest to the smallest: {', '.join(told)}."
        return kept(figure, folder, name, caption)


def element_table(datasets: pd.DataFrame, elements: pd.DataFrame, folder: Path, name: str) -> Figure:
    """Structures that hold each element, of all datasets together, on the periodic table."""
    counted = elements[elements["slug"].isin(wholes(datasets)["slug"])]
    totals = counted.groupby("element")["structures"].sum()
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(8.6, 4.5), layout="constrained")
        norm = _norm(totals)
        _cells(axes, totals, norm)
        for z, symbol in enumerate(SYMBOLS, 1):
            row, column = cell_of(z)
            count = float(totals.get(symbol, 0))
            dark = count > 0 and norm(count) < 0.55
            colour = "white" if dark else "#1b1f24" if count else "#9aa2ab"
            axes.text(column, row - 0.12, symbol, ha="center", va="center", fontsize=8.5, color=colour)
            if count:
                axes.text(column, row + 0.27, short(count), ha="center", va="center", fontsize=5.5, color=colour)
        bar = figure.colorbar(mpl.cm.ScalarMappable(norm, "cividis"), ax=axes, fraction=0.025, pad=0.01)
        bar.set_label("structures that hold the element")
        stand_ins = int((datasets["role"] == "stand-in").sum())
        some = f", {stand_ins} of them stand-ins" if stand_ins else ""
        caption = f"Elements of all {len(datasets)} datasets together{some}: {len(totals)}. Grey: in none."
        return kept(figure, folder, name, caption)


def element_tables(datasets: pd.DataFrame, elements: pd.DataFrame, folder: Path, name: str) -> Figure:
    """Structures that hold each element, dataset by dataset."""
    columns = min(4, len(datasets))
    lines = -(-len(datasets) // columns)
    with mpl.rc_context(STYLE):
        figure, grid = plt.subplots(
            lines, columns, figsize=(2.15 * columns + 0.6, 1.34 * lines + 0.1), layout="constrained", squeeze=False
        )
        norm = _norm(elements["structures"])
        for axes in grid.flat:
            axes.set_axis_off()
        for axes, row in zip(grid.flat, datasets.to_dict("records"), strict=False):
            own = elements[elements["slug"] == row["slug"]].set_index("element")["structures"]
            _cells(axes, own, norm)
            mark = ", stand-in" if row["role"] == "stand-in" else ""
            axes.set_title(f"{row['head']}{mark}: {len(own)}", fontsize=8, pad=2)
        bar = figure.colorbar(mpl.cm.ScalarMappable(norm, "cividis"), ax=grid, fraction=0.02, pad=0.01)
        bar.set_label("structures")
        caption = "Structures that hold each element; beside each name, how many elements there are. Grey: not in it."
        return kept(figure, folder, name, caption)


def _norm(counts: pd.Series[float]) -> LogNorm:
    """From the power of ten below the least count to the largest."""
    least = 10 ** math.floor(math.log10(max(1.0, float(counts.min()))))
    return LogNorm(least, max(10.0 * least, float(counts.max())))


def _cells(axes: Axes, counts: pd.Series[float], norm: LogNorm) -> None:
    """A square for each element, coloured by its count."""
    colours = mpl.colormaps["cividis"]
    places = [cell_of(z) for z in range(1, len(SYMBOLS) + 1)]
    found = [float(counts.get(s, 0)) for s in SYMBOLS]
    squares = [mpl.patches.Rectangle((column - 0.47, row - 0.47), 0.94, 0.94) for row, column in places]
    faces = [colours(norm(n)) if n else EMPTY for n in found]
    axes.add_collection(mpl.collections.PatchCollection(squares, facecolors=faces, edgecolors="none"))
    axes.set_xlim(-0.6, 17.6)
    axes.set_ylim(9.0, -0.6)
    axes.set_aspect("equal")
    axes.set_axis_off()


def distribution_rows(datasets: pd.DataFrame, bins: pd.DataFrame, folder: Path, name: str) -> Figure:
    """Histograms of sizes, energies and forces, one row a dataset."""
    with mpl.rc_context(STYLE):
        figure, grid = plt.subplots(
            len(datasets), 3, figsize=(8.6, 0.9 + 0.42 * len(datasets)), sharex="col", squeeze=False,
            layout=ConstrainedLayoutEngine(hspace=0.0, h_pad=0.01, wspace=0.03),
        )  # fmt: skip
        for column, (quantity, label, edges) in enumerate(_axes_of(bins)):
            for axes, row in zip(grid[:, column], datasets.to_dict("records"), strict=True):
                own = bins[(bins["slug"] == row["slug"]) & (bins["quantity"] == quantity)]
                _ridge(axes, own, edges, ROLE_COLOURS[row["role"]], note_of(row, quantity))
                axes.tick_params(axis="x", which="both", bottom=axes is grid[-1, column], labelsize=8)
            last = grid[-1, column]
            last.set_xlabel(label)
            grid[0, column].set_title(TITLES[quantity], fontsize=9)
            if quantity != "energy_ev_per_atom":
                last.set_xscale("log")
            last.set_xlim(edges[0], edges[-1])
        for axes, head in zip(grid[:, 0], datasets["head"], strict=True):
            axes.set_ylabel(head, rotation=0, ha="right", va="center", fontsize=8)
        there = {r: c for r, c in ROLE_COLOURS.items() if r in set(datasets["role"])}
        handles = [mpl.patches.Patch(color=c, label=r) for r, c in there.items()]
        figure.legend(handles=handles, loc="outside upper left", ncols=3, frameon=False, fontsize=8)
        caption = (
            "Distributions of each dataset, every row to its own height: atoms per structure with the median, energy"
            " per atom beyond the reference energies with its standard deviation, lengths of the forces on atoms with"
            " their root mean square. The axis of energies covers 98% of every dataset."
        )
        return kept(figure, folder, name, caption)


def _axes_of(bins: pd.DataFrame) -> list[tuple[str, str, NDArray[np.float64]]]:
    """For each quantity its label and the edges of coarser bins, shared by all datasets."""
    found = []
    for quantity, label, per_octave in (
        ("sizes", "atoms", 2), ("energy_ev_per_atom", "eV/atom", 0), ("force_norm_ev_per_a", "eV/\N{ANGSTROM SIGN}", 4)
    ):  # fmt: skip
        own = bins[(bins["quantity"] == quantity) & (bins["high"] != 0 if per_octave else True)]
        low, high = (-1.0, 1.0) if own.empty else (float(own["low"].min()), float(own["high"].max()))
        if not per_octave:
            ends = [_between(b, q) for _, b in own.groupby("slug") for q in (0.01, 0.99)] or [low, high]
            edges = np.linspace(min(ends), max(ends), 60)
        else:
            least = max(low, 1.0 if quantity == "sizes" else 1e-4) if not own.empty else 1.0
            first, last = np.floor(np.log2(least) * per_octave), np.ceil(np.log2(max(high, 2 * least)) * per_octave)
            edges = 2.0 ** (np.arange(first, last + 1) / per_octave)
        found.append((quantity, label, edges))
    return found


def _between(own: pd.DataFrame, share: float) -> float:
    """The value below which a share of a histogram lies."""
    total = own["count"].cumsum() / own["count"].sum()
    return float(np.interp(share, total, own["high"]))


def _ridge(axes: Axes, own: pd.DataFrame, edges: NDArray[np.float64], colour: str, note: str) -> None:
    """One histogram, its fine bins spread over the coarser ones, without an axis of its own."""
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_ylim(0, 1.25)
    if own.empty:
        note = "no labels"
    else:
        places = np.concatenate([[own["low"].iloc[0]], own["high"]])
        below = np.interp(edges, places, np.concatenate([[0], own["count"].cumsum()]))
        heights = np.diff(below)
        axes.stairs(heights / max(heights.max(), 1e-300), edges, fill=True, color=colour, alpha=0.85, linewidth=0)
    axes.text(0.99, 0.93, note, transform=axes.transAxes, ha="right", va="top", fontsize=7, color="#3d444d")


def note_of(row: dict[Hashable, Any], quantity: str) -> str:
    """The number that goes with a histogram."""
    words = {
        "sizes": ("median {:.0f}", "size_median"),
        "energy_ev_per_atom": ("sd {:.2g}", "energy_sd"),
        "force_norm_ev_per_a": ("rms {:.2g}", "force_rms"),
    }
    text, key = words[quantity]
    return "" if pd.isna(row[key]) else text.format(float(row[key]))


def reading_lines(reading: pd.DataFrame, folder: Path, name: str) -> Figure:
    """Time for one sample over ranks, each mode of reading, with a line down to the floor."""
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(6.8, 3.7), layout="constrained")
        lines = len(reading.groupby(["mode", "nodes"], dropna=False))
        several = reading["nodes"].nunique() > 1
        for k, ((mode, nodes), own) in enumerate(reading.groupby(["mode", "nodes"], sort=False, dropna=False)):
            low, high = own["us_per_sample"] - own["us_low"], own["us_high"] - own["us_per_sample"]
            x = own["ranks"] * 2.0 ** (0.05 * (k - (lines - 1) / 2))
            style: Any = {"marker": "o", "ms": 4.5, "capsize": 2.5, "lw": 1.2, "color": MODE_COLOURS[k % 6]}
            axes.errorbar(
                x,
                own["us_per_sample"],
                yerr=np.array([low, high]),
                label=f"{mode}, {nodes:.0f} nodes" if several else mode,
                **style,
            )
            there = own["floor_us"].notna()
            span: Any = {"color": style["color"], "lw": 0.9, "ls": ":"}
            axes.vlines(x[there], own["floor_us"][there].astype(float), own["us_per_sample"][there], **span)
            axes.plot(x[there], own["floor_us"][there].astype(float), "_", color=style["color"], ms=6)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        ticks = sorted(set(reading["ranks"]))
        axes.set_xticks(ticks, [str(t) for t in ticks])
        axes.set_xlim(ticks[0] / 1.4, ticks[-1] * 1.4)
        axes.tick_params(axis="x", which="minor", bottom=False)
        axes.set_xlabel("ranks")
        axes.set_ylabel("\N{MICRO SIGN}s per sample, slowest rank")
        axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
        told = sorted(set(reading["floor"].dropna()))
        floor = f" The dash under each point, the floor: {'; '.join(told)}." if told else ""
        stand_ins = int(reading["stand_ins"].max())
        floor += f" {stand_ins} of the sets read are stand-ins." if stand_ins else ""
        caption = (
            f"Time to have one sample, median over batches with {100 * reading['coverage'].min():.0f}% interval,"
            f" n = {reading['batches'].min()} or more; points of one number of ranks are set side by side.{floor}"
        )
        return kept(figure, folder, name, caption)
