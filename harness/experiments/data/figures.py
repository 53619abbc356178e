"""Figures of the page on data: imbalance, elements, distributions, and times of reading."""

from __future__ import annotations

import math
import re
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

from harness.document.figures import STYLE, Figure, format_count, save_figure
from harness.experiments.data.metrics import exclude_subsets

ORIGIN_COLOURS = {"official": "#009e73", "sample": "#0072b2", "stand-in": "#e69f00"}
ORIGINAL_COLOUR = "#bdbdbd"
LINE_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")
EMPTY_COLOUR = "#eef0f2"
TITLES = {
    "atoms_per_structure": "size",
    "energy_ev_per_atom": "energy relative to references",
    "force_norm_ev_per_angstrom": "force on an atom",
}
ELEMENT_SYMBOLS: list[str] = re.findall(
    "[A-Z][a-z]?",
    "H He Li Be B C N O F Ne Na Mg Al Si P S Cl Ar K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As Se Br Kr Rb Sr Y Zr Nb Mo"
    " Tc Ru Rh Pd Ag Cd In Sn Sb Te I Xe Cs Ba La Ce Pr Nd Pm Sm Eu Gd Tb Dy Ho Er Tm Yb Lu Hf Ta W Re Os Ir Pt Au Hg"
    " Tl Pb Bi Po At Rn Fr Ra Ac Th Pa U Np Pu Am Cm Bk Cf Es Fm Md No Lr Rf Db Sg Bh Hs Mt Ds Rg Cn Nh Fl Mc Lv Ts Og",
)
# The atomic numbers at which the periods end, after 0 for the start of the first.
PERIOD_ENDS = (0, 2, 10, 18, 36, 54, 86, 118)


def draw_imbalance(datasets: pd.DataFrame, folder: Path, name: str) -> Figure:
    """Draw the number of structures of each dataset, and of the original dataset, on a logarithmic scale."""
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(8.6, 0.9 + 0.32 * len(datasets)), layout="constrained")
        y = np.arange(len(datasets))
        original = datasets["published_structures"].astype(float)
        axes.barh(y - 0.19, original, 0.36, color=ORIGINAL_COLOUR, label="original dataset")
        for origin, colour in ORIGIN_COLOURS.items():
            group = np.flatnonzero(datasets["data_origin"] == origin)
            if len(group):
                structures = datasets["structures"].iloc[group]
                axes.barh(group + 0.19, structures, 0.36, color=colour, label=f"in this report, {origin}")
        for k, (published, converted) in enumerate(zip(original, datasets["structures"], strict=True)):
            for position, count in ((k - 0.19, published), (k + 0.19, converted)):
                if count > 0:
                    style: Any = {"xytext": (3, 0), "textcoords": "offset points", "va": "center", "fontsize": 7}
                    axes.annotate(format_count(count), (count, position), **style)
        axes.set_yticks(y, datasets["head"])
        axes.set_ylim(len(datasets) - 0.4, -0.6)
        axes.set_xscale("log")
        counts = np.concatenate([original[original > 0], datasets["structures"].astype(float).clip(lower=1)])
        axes.set_xlim(10 ** np.floor(np.log10(counts.min()) - 1), 3 * counts.max())
        axes.set_xlabel("structures")
        axes.legend(frameon=False, fontsize=8, ncols=3, loc="lower left", bbox_to_anchor=(0, 1.0), borderaxespad=0.1)
        groups = [(original, "for the original datasets"), (datasets["structures"].astype(float), "in this report")]
        texts = [f"{format_count(c.max() / c[c > 0].min())} {label}" for c, label in groups if (c > 0).any()]
        caption = f"Structures per dataset. The ratio of the largest to the smallest dataset is {', '.join(texts)}."
        return save_figure(figure, folder, name, caption, card=0)


def draw_elements(datasets: pd.DataFrame, elements: pd.DataFrame, folder: Path, name: str) -> Figure:
    """Draw the number of structures with each element, summed over all datasets, on the periodic table."""
    counted = elements[elements["dataset"].isin(exclude_subsets(datasets)["dataset"])]
    totals = counted.groupby("element")["structures"].sum()
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(8.6, 4.5), layout="constrained")
        norm = _choose_norm(totals)
        _draw_cells(axes, totals, norm)
        for z, symbol in enumerate(ELEMENT_SYMBOLS, 1):
            row, column = locate_element(z)
            count = float(totals.get(symbol, 0))
            is_dark = count > 0 and norm(count) < 0.55
            colour = "white" if is_dark else "#1b1f24" if count else "#9aa2ab"
            axes.text(column, row - 0.12, symbol, ha="center", va="center", fontsize=8.5, color=colour)
            if count:
                axes.text(column, row + 0.27, format_count(count), ha="center", va="center", fontsize=5.5, color=colour)
        bar = figure.colorbar(mpl.cm.ScalarMappable(norm, "cividis"), ax=axes, fraction=0.025, pad=0.01)
        bar.set_label("structures that contain the element")
        stand_ins = int((datasets["data_origin"] == "stand-in").sum())
        suffix = f" ({stand_ins} of them stand-ins)" if stand_ins else ""
        caption = (
            f"The {len(totals)} elements that occur in at least one of the {len(datasets)} datasets{suffix}. Grey"
            " elements are in no dataset."
        )
        return save_figure(figure, folder, name, caption, has_narrow=False)


def draw_elements_by_dataset(datasets: pd.DataFrame, elements: pd.DataFrame, folder: Path, name: str) -> Figure:
    """Draw the number of structures with each element, in a panel per dataset."""
    columns = min(4, len(datasets))
    lines = -(-len(datasets) // columns)
    with mpl.rc_context(STYLE):
        figure, grid = plt.subplots(
            lines, columns, figsize=(2.15 * columns + 0.6, 1.34 * lines + 0.1), layout="constrained", squeeze=False
        )
        norm = _choose_norm(elements["structures"])
        for axes in grid.flat:
            axes.set_axis_off()
        for axes, row in zip(grid.flat, datasets.to_dict("records"), strict=False):
            group = elements[elements["dataset"] == row["dataset"]].set_index("element")["structures"]
            _draw_cells(axes, group, norm)
            stand_in_suffix = ", stand-in" if row["data_origin"] == "stand-in" else ""
            axes.set_title(f"{row['head']}{stand_in_suffix}: {len(group)}", fontsize=8, pad=2)
        bar = figure.colorbar(mpl.cm.ScalarMappable(norm, "cividis"), ax=grid, fraction=0.02, pad=0.01)
        bar.set_label("structures")
        caption = "Structures with each element. The title gives the number of elements. Grey elements are absent."
        return save_figure(figure, folder, name, caption)


def locate_element(z: int) -> tuple[float, int]:
    """Return the row and the column of an element in the 18-column periodic table; the f elements are in rows below."""
    period = next(k for k, last in enumerate(PERIOD_ENDS) if z <= last)
    step, length = z - PERIOD_ENDS[period - 1], PERIOD_ENDS[period] - PERIOD_ENDS[period - 1]
    if length == 32 and 3 <= step <= 17:
        return period + 1.4, step - 1
    return period - 1, step - 1 if step <= min(2, length // 2) else step - 1 + 18 - length


def _choose_norm(counts: pd.Series[float]) -> LogNorm:
    """Return a scale from the power of ten below the smallest count to the largest count."""
    smallest = 10 ** math.floor(math.log10(max(1.0, float(counts.min()))))
    return LogNorm(smallest, max(10.0 * smallest, float(counts.max())))


def _draw_cells(axes: Axes, counts: pd.Series[float], norm: LogNorm) -> None:
    """Draw a square for each element, coloured by its count."""
    colours = mpl.colormaps["cividis"]
    positions = [locate_element(z) for z in range(1, len(ELEMENT_SYMBOLS) + 1)]
    values = [float(counts.get(s, 0)) for s in ELEMENT_SYMBOLS]
    squares = [mpl.patches.Rectangle((column - 0.47, row - 0.47), 0.94, 0.94) for row, column in positions]
    faces = [colours(norm(n)) if n else EMPTY_COLOUR for n in values]
    axes.add_collection(mpl.collections.PatchCollection(squares, facecolors=faces, edgecolors="none"))
    axes.set_xlim(-0.6, 17.6)
    axes.set_ylim(9.0, -0.6)
    axes.set_aspect("equal")
    axes.set_axis_off()


def draw_distributions(datasets: pd.DataFrame, bins: pd.DataFrame, folder: Path, name: str) -> Figure:
    """Draw histograms of sizes, energies and forces, one row per dataset."""
    with mpl.rc_context(STYLE):
        figure, grid = plt.subplots(
            len(datasets), 3, figsize=(8.6, 0.9 + 0.42 * len(datasets)), sharex="col", squeeze=False,
            layout=ConstrainedLayoutEngine(hspace=0.0, h_pad=0.01, wspace=0.03),
        )  # fmt: skip
        for column, (quantity, label, edges) in enumerate(_choose_bins(bins)):
            for axes, row in zip(grid[:, column], datasets.to_dict("records"), strict=True):
                group = bins[(bins["dataset"] == row["dataset"]) & (bins["quantity"] == quantity)]
                _draw_histogram(
                    axes, group, edges, ORIGIN_COLOURS[row["data_origin"]], describe_histogram(row, quantity)
                )
                axes.tick_params(axis="x", which="both", bottom=axes is grid[-1, column], labelsize=8)
            last = grid[-1, column]
            last.set_xlabel(label)
            grid[0, column].set_title(TITLES[quantity], fontsize=9)
            if quantity != "energy_ev_per_atom":
                last.set_xscale("log")
            last.set_xlim(edges[0], edges[-1])
        for axes, head in zip(grid[:, 0], datasets["head"], strict=True):
            axes.set_ylabel(head, rotation=0, ha="right", va="center", fontsize=8)
        colours = {r: c for r, c in ORIGIN_COLOURS.items() if r in set(datasets["data_origin"])}
        handles = [mpl.patches.Patch(color=c, label=r) for r, c in colours.items()]
        figure.legend(handles=handles, loc="outside upper left", ncols=3, frameon=False, fontsize=8)
        caption = (
            "Distributions of each dataset, all scaled to the same height: atoms per structure with the median, energy"
            " per atom relative to the reference energies with the standard deviation (sd), and norms of the forces on"
            " atoms with the root mean square (rms). The axis of energies covers 98% of every dataset."
        )
        return save_figure(figure, folder, name, caption, has_narrow=False)


def _choose_bins(bins: pd.DataFrame) -> list[tuple[str, str, NDArray[np.float64]]]:
    """Return for each quantity its name, its label, and the edges of coarser bins that all datasets share."""
    edges_by_quantity = []
    # bins per octave of the quantity; 0: bins of equal width
    for quantity, label, per_octave in (
        ("atoms_per_structure", "atoms", 2),
        ("energy_ev_per_atom", "eV/atom", 0),
        ("force_norm_ev_per_angstrom", "eV/\N{ANGSTROM SIGN}", 4),
    ):
        group = bins[(bins["quantity"] == quantity) & (bins["high"] != 0 if per_octave else True)]
        low, high = (-1.0, 1.0) if group.empty else (float(group["low"].min()), float(group["high"].max()))
        if not per_octave:
            ends = [_compute_quantile(b, q) for _, b in group.groupby("dataset") for q in (0.01, 0.99)] or [low, high]
            edges = np.linspace(min(ends), max(ends), 60)
        else:
            smallest = max(low, 1.0 if quantity == "atoms_per_structure" else 1e-4) if not group.empty else 1.0
            largest = max(high, 2 * smallest)
            first, last = np.floor(np.log2(smallest) * per_octave), np.ceil(np.log2(largest) * per_octave)
            edges = 2.0 ** (np.arange(first, last + 1) / per_octave)
        edges_by_quantity.append((quantity, label, edges))
    return edges_by_quantity


def _compute_quantile(group: pd.DataFrame, share: float) -> float:
    """Return the value below which the given share of the counts of a histogram lies."""
    total = group["count"].cumsum() / group["count"].sum()
    return float(np.interp(share, total, group["high"]))


def _draw_histogram(axes: Axes, group: pd.DataFrame, edges: NDArray[np.float64], colour: str, note: str) -> None:
    """Draw one histogram without a vertical axis; the counts of its fine bins are interpolated to coarser bins.

    Args:
        axes: The panel.
        group: The rows of the table `distributions` with the fine bins.
        edges: The edges of the coarser bins.
        colour: The colour of the bars.
        note: The text in the corner.
    """
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_ylim(0, 1.25)
    if group.empty:
        note = "no labels"
    else:
        fine_edges = np.concatenate([[group["low"].iloc[0]], group["high"]])
        below = np.interp(edges, fine_edges, np.concatenate([[0], group["count"].cumsum()]))
        heights = np.diff(below)
        axes.stairs(heights / max(heights.max(), 1e-300), edges, fill=True, color=colour, alpha=0.85, linewidth=0)
    axes.text(0.99, 0.93, note, transform=axes.transAxes, ha="right", va="top", fontsize=7, color="#3d444d")


def describe_histogram(row: dict[Hashable, Any], quantity: str) -> str:
    """Return the statistic that a histogram shows as text, such as `median 24`."""
    formats = {
        "atoms_per_structure": ("median {:.0f}", "size_median"),
        "energy_ev_per_atom": ("sd {:.2g}", "energy_std_ev_per_atom"),
        "force_norm_ev_per_angstrom": ("rms {:.2g}", "force_rms_ev_per_angstrom"),
    }
    text, key = formats[quantity]
    return "" if pd.isna(row[key]) else text.format(float(row[key]))


def draw_reading(reading: pd.DataFrame, folder: Path, name: str) -> Figure:
    """Draw the time per sample against the number of ranks for each mode of reading, with a line to the lower bound."""
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(6.8, 3.7), layout="constrained")
        lines = len(reading.groupby(["read_mode", "nodes"], dropna=False))
        has_several_nodes = reading["nodes"].nunique() > 1
        for k, ((mode, nodes), group) in enumerate(reading.groupby(["read_mode", "nodes"], sort=False, dropna=False)):
            low, high = (
                group["us_per_sample"] - group["us_per_sample_low"],
                group["us_per_sample_high"] - group["us_per_sample"],
            )
            x = group["ranks"] * 2.0 ** (0.05 * (k - (lines - 1) / 2))
            colour = LINE_COLOURS[k % len(LINE_COLOURS)]
            style: Any = {"marker": "o", "ms": 4.5, "capsize": 2.5, "lw": 1.2, "color": colour}
            axes.errorbar(
                x,
                group["us_per_sample"],
                yerr=np.array([low, high]),
                label=f"{mode}, {nodes:.0f} {'node' if nodes == 1 else 'nodes'}" if has_several_nodes else mode,
                **style,
            )
            has_bound = group["lower_bound_us"].notna()
            bounds = group["lower_bound_us"][has_bound].astype(float)
            axes.vlines(x[has_bound], bounds, group["us_per_sample"][has_bound], color=colour, lw=0.9, ls=":")
            axes.plot(x[has_bound], bounds, "_", color=colour, ms=6)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        ticks = sorted(set(reading["ranks"]))
        axes.set_xticks(ticks, [str(t) for t in ticks])
        axes.set_xlim(ticks[0] / 1.4, ticks[-1] * 1.4)
        axes.tick_params(axis="x", which="minor", bottom=False)
        axes.set_xlabel("ranks")
        axes.set_ylabel("\N{MICRO SIGN}s per sample, slowest rank")
        axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
        texts = sorted(set(reading["lower_bound"].dropna()))
        remarks = f" The dash under a point marks a lower bound, the time of {'; '.join(texts)}." if texts else ""
        stand_ins = int(reading["stand_ins"].max())
        remarks += f" {stand_ins} of the datasets are stand-ins." if stand_ins else ""
        caption = (
            f"Time to read one sample: median over at least {reading['batches'].min()} batches with"
            f" a {100 * reading['coverage'].min():.0f}% confidence interval. Points with equal numbers of ranks are"
            f" drawn side by side.{remarks}"
        )
        return save_figure(figure, folder, name, caption)
