"""The sections about vector biases, with their figure."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import pandas as pd

from harness.document.blocks import (
    Column,
    Section,
    TableBlock,
    build_block,
    format_number,
    interval_cell,
    list_rows,
    number_cell,
)
from harness.document.figures import STYLE, Figure, save_figure
from harness.experiments.experiment import PageContext
from harness.protocol.text import pluralize
from harness.results.tables import Row

KINDS = {"crystal": ("crystals", "#0072b2", "o"), "molecule": ("molecules", "#d55e00", "s")}
PERCENT = 100.0


def build_vector_bias_sections(context: PageContext) -> list[Section]:
    """Return a section for each case of the program `vector_biases`."""
    table = context.tables["vector_biases"]
    return [build_case_section(rows, context.figures) for _, rows in table.groupby("folder", sort=False)]


def build_case_section(rows: pd.DataFrame, figures: Path) -> Section:
    """Return the section about one case: the finding, the weights, the figure and the table."""
    first = rows.iloc[0]
    name = f"{first['campaign']}-{first['case']}-vector-biases"
    paragraphs = [describe_finding(rows), describe_weights(list_rows(rows)[0])]
    title = f"{first['case']}: rotations of a network with vector biases"
    drawing, block = draw_errors(rows, figures, name), build_errors_block(rows)
    return Section(title, name, paragraphs, [drawing], [block], finding=summarize_errors(rows))


def summarize_errors(rows: pd.DataFrame) -> str:
    """Return the errors with the full biases, without intervals."""
    full = find_full_scale(rows)
    with_biases = "" if full == 1 else f" with {full:g} times the biases"
    errors = describe_errors(rows, full, has_interval=False)
    return f"rotating a structure changes its forces{with_biases}, relative to the largest force, by {errors}"


def find_full_scale(rows: pd.DataFrame) -> float:
    """Return the factor of the biases that is closest to 1."""
    scales = rows["scale"][rows["scale"] > 0]
    return float(scales.iloc[(scales - 1.0).abs().argmin()])


def describe_finding(rows: pd.DataFrame) -> str:
    """Return the finding in one sentence: the errors with the full biases, with the smallest, and without biases."""
    full, smallest = find_full_scale(rows), float(rows["scale"][rows["scale"] > 0].min())
    with_biases = "" if full == 1 else f" with {full:g} times the biases"
    errors = describe_errors(rows, full)
    texts = [f"Rotating a structure changes its forces{with_biases}, relative to the largest force, by {errors}"]
    if smallest != full:
        texts.append(f"with {smallest:g} times the biases, by {describe_errors(rows, smallest)}")
    unbiased = rows[rows["scale"] == 0]
    if len(unbiased):
        texts.append(f"without biases, by {PERCENT * unbiased['force_error'].max():.0e}%, which is a rounding error")
    return f"{'; '.join(texts)}."


def describe_errors(rows: pd.DataFrame, scale: float, *, has_interval: bool = True) -> str:
    """Return the force errors for a factor, such as `3.1% [0.5, 20] in crystals and 12% [4, 30] in molecules`."""
    texts: list[str] = []
    for row in list_rows(rows[rows["scale"] == scale]):
        ends = ("", "_low", "_high") if has_interval and row["seeds"] > 1 else ("",)
        errors = [PERCENT * row[f"force_error{end}"] for end in ends]
        value, *bounds = (format_number(error, ".2g" if error < PERCENT else ".0f") for error in errors)
        interval = f" [{', '.join(bounds)}]" if bounds else ""
        texts.append(f"{value}%{interval} in {KINDS[row['kind']][0]}")
    return " and ".join(texts)


def describe_weights(row: Row) -> str:
    """Return a sentence about the origin of the weights and its meaning for the errors."""
    sizes = f"width {row['hidden_dim']}, {pluralize(row['num_conv_layers'], 'layer')}, {row['biases']} vector"
    sizes += f" biases with a root mean square of {format_number(row['bias_rms'], '.2g')}"
    if row["checkpoint"] is not None:
        return f"The weights are those of the checkpoint {row['checkpoint']} ({sizes}). Seeds vary the rotations."
    return (
        f"The weights are untrained, as PyTorch initialises them ({sizes}), and seeds vary them. Trained weights have"
        " other forces and biases: these numbers show that the violation exists and how it depends on the biases, but"
        " not how large it is in a published model."
    )


def draw_errors(rows: pd.DataFrame, folder: Path, name: str) -> Figure:
    """Draw the errors of forces and energies over the factor of the biases, with a line per kind of structure."""
    panels = (
        ("force_error", "force error / largest force"),
        ("energy_error_angstrom", "energy error / largest force (\N{ANGSTROM SIGN})"),
    )
    with mpl.rc_context(STYLE):
        figure, grid = plt.subplots(1, 2, figsize=(8.6, 3.6), layout="constrained")
        for axes, (column, label) in zip(grid, panels, strict=True):
            for kind, group in rows.groupby("kind"):
                title, colour, mark = KINDS[str(kind)]
                ordered = group[group["scale"] > 0].sort_values("scale")
                value = ordered[column]
                axes.plot(ordered["scale"], value, color=colour, marker=mark, ms=4.5, lw=1.3, label=title)
                if ordered[f"{column}_low"].notna().all():
                    low, high = ordered[f"{column}_low"], ordered[f"{column}_high"]
                    axes.fill_between(ordered["scale"], low, high, color=colour, alpha=0.15, lw=0)
                for level in group[group["scale"] == 0][column]:
                    axes.axhline(level, color=colour, lw=1.0, ls=":", label=f"{title}, no biases")
            axes.set_xscale("log")
            axes.set_yscale("log")
            axes.set_xlabel("factor of all vector biases")
            axes.set_ylabel(label)
        handles, labels = grid[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
        first = rows.iloc[0]
        caption = (
            f"Violation of rotational symmetry over the factor of the vector biases, in FP64: means over"
            f" {pluralize(first['rotations'], 'rotation')} of each structure, geometric means over"
            f" {pluralize(first['seeds'], 'seed')} with the 95% interval. Dotted lines: without biases."
        )
        return save_figure(figure, folder, name, caption, card=0)


def build_errors_block(rows: pd.DataFrame) -> TableBlock:
    """Return the table with a row per kind of structure and factor."""
    columns: list[Column] = [
        ("structures", "structures"),
        ("factor of the biases", number_cell("scale", "g")),
        ("force error / largest force [95%]", interval_cell("force_error")),
        ("largest", number_cell("force_error_max", ".2g")),
        ("energy error / largest force (\N{ANGSTROM SIGN}) [95%]", interval_cell("energy_error_angstrom")),
        ("largest energy error (meV/atom)", number_cell("energy_error_max_ev_per_atom", ".2g", 1e3)),
        ("rotations", "rotations"),
        ("seeds", "seeds"),
    ]
    note = (
        "An energy error is divided by the largest force, since energies from untrained weights have no physical scale;"
        " the result is the length over which this force does work equal to the error."
    )
    return build_block("Rotations with vector biases", list_rows(rows), columns, note)
