"""The page on weak and strong scaling."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from harness.document.blocks import (
    Column,
    Section,
    TableBlock,
    build_block,
    format_number,
    interval_cell,
    number_cell,
    rows_as_dicts,
    select_campaign,
    text_cell,
)
from harness.document.figures import STYLE, Figure, save_figure
from harness.experiments.cost.page import add_cost_columns
from harness.experiments.experiment import PageContext
from harness.experiments.scaling.metrics import REGIONS
from harness.results.tables import Row

MS = 1e3
MODE_COLOURS = ("#0072b2", "#e69f00", "#009e73")


def build_sections(context: PageContext) -> list[Section]:
    """Return a section for each campaign."""
    groups = context.tables["scaling"].groupby("campaign", sort=False)
    return [build_campaign_section(rows, context) for _, rows in groups]


def build_campaign_section(rows: pd.DataFrame, context: PageContext) -> Section:
    """Return the throughput over ranks of one campaign, and its projection to more of them."""
    paragraphs = [f"{rows['data'].iloc[0]}, {rows['precision'].iloc[0].upper()}, {rows['device'].iloc[0]}."]
    shared = rows[(rows["hosts"] < rows["nodes"]) | (rows["ranks"] > rows["cores"] * rows["hosts"])]
    if len(shared):
        paragraphs.append(
            f"{len(shared)} of {len(rows)} runs had more ranks than cores, or nodes emulated on one host: they show"
            " that training ran and computed the same, but not how it scales; nothing is projected from them."
        )
    campaign = rows["campaign"].iloc[0]
    projection = select_campaign(context.tables["projection"], campaign)
    tested = projection[projection["basis"] == "held out"]
    if len(tested):
        off = tested["error"]
        paragraphs.append(
            f"The projection, made from smaller runs alone, is off by {off.min():+.0%} to {off.max():+.0%} on"
            f" {len(tested)} measured runs. What it says of more ranks is a projection, and no measurement."
        )
    name = f"scaling-{campaign}"
    drawn = [draw_scaling(rows, projection, context.figures, name)] if len(rows) > 1 else []
    blocks = [build_runs_block(rows), build_regions_block(rows)]
    if len(projection):
        blocks.append(build_projection_block(projection))
    return Section(f"Scaling on {rows['system'].iloc[0]}", name, paragraphs, drawn, blocks)


def build_runs_block(rows: pd.DataFrame) -> TableBlock:
    """Return a row per run."""
    columns: list[Column] = [
        ("case", "case"),
        ("nodes", "nodes"),
        ("ranks", "ranks"),
        ("graphs per step", number_cell("global_batch", ",")),
        ("graphs/s [lowest, highest]", interval_cell("graphs_per_s", "lowest", "highest")),
        ("efficiency [lowest, highest]", format_efficiency),
        ("communication", number_cell("communication", ".0%")),
        ("waiting for data", number_cell("waiting", ".1%")),
        ("edges, most over mean rank", number_cell("edges_imbalance", ".2f")),
        ("gradient error", number_cell("gradient_error", ".1e")),
        ("divergence", number_cell("divergence", ".1e")),
    ]
    note = (
        "Ranks as they were found running, not as asked for. Efficiency: throughput per rank over that of the smallest"
        " run of the mode; from the slowest epoch of one over the fastest of the other, and the reverse. Communication:"
        " 1 - time of the same steps without it / time with it. Waiting for data: share of the time of training."
        " Gradient error: of the ranks' mean gradient against one process, over the largest gradient. Divergence: of"
        " the ranks' parameters after training."
    )
    return add_cost_columns(build_block("Runs", rows_as_dicts(rows), columns, note), rows)


def format_efficiency(row: Row) -> str:
    """Return `92% [90%, 95%]`."""
    value, low, high = (format_number(row[f"efficiency{end}"], ".0%") for end in ("", "_low", "_high"))
    return f"{value} [{low}, {high}]"


def build_regions_block(rows: pd.DataFrame) -> TableBlock:
    """Return the time of each region of a step."""
    columns: list[Column] = [
        ("case", "case"),
        ("ranks", "ranks"),
        *((f"{name.replace('_', ' ')} (ms)", number_cell(f"{name}_s", scale=MS)) for name in REGIONS),
    ]
    note = (
        "Steps done once more, cut up: nothing is prefetched, no gradient exchanged; median over steps of the slowest"
        " rank. In training, data, neighbour lists and collation run in a thread of their own. Gradient: of the"
        " energies, for forces; backward: of the loss, through both."
    )
    return build_block("Where a step's time goes", rows_as_dicts(rows), columns, note)


def build_projection_block(projection: pd.DataFrame) -> TableBlock:
    """Return what was projected, with what was measured."""
    columns: list[Column] = [
        ("mode", "mode"),
        ("ranks", number_cell("ranks", ",")),
        ("graphs per rank", "batch_size"),
        ("basis", "basis"),
        ("from up to (ranks)", "from_ranks"),
        ("step, measured (ms)", number_cell("measured_s", scale=MS)),
        ("computing (ms)", number_cell("compute_s", scale=MS)),
        ("all-reduce (ms)", number_cell("communication_s", scale=MS)),
        ("step, projected (ms)", number_cell("projected_s", scale=MS)),
        ("if overlapped (ms)", number_cell("overlapped_s", scale=MS)),
        ("off by", number_cell("error", "+.0%")),
        ("graphs/s", number_cell("graphs_per_s", ",.0f")),
        ("network", text_cell("network")),
    ]
    note = (
        "Computing: expected time of the slowest rank, each with a batch drawn from the graphs that were"
        " dealt; a rank's time is linear in atoms and edges, with the scatter of measured steps. All-reduce: of the"
        " gradient, 2 log2(p) latencies and 2 (p - 1) / p of its bytes. Overlapped: hidden behind the backward pass as"
        " far as that goes. Held out: a measured run, projected from smaller ones."
    )
    return build_block("Projection", rows_as_dicts(projection), columns, note)


def draw_scaling(rows: pd.DataFrame, projection: pd.DataFrame, folder: Path, name: str) -> Figure:
    """Draw throughput over ranks for each mode, with perfect scaling and the projection."""
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(6.2, 3.6), layout="constrained")
        for (mode, of_mode), colour in zip(rows.groupby("mode"), MODE_COLOURS, strict=False):
            low, high = of_mode["graphs_per_s"] - of_mode["lowest"], of_mode["highest"] - of_mode["graphs_per_s"]
            style: Any = {"marker": "o", "capsize": 3, "color": colour, "label": mode}
            axes.errorbar(of_mode["ranks"], of_mode["graphs_per_s"], yerr=np.array([low, high]), **style)
            first = of_mode.iloc[0]
            further = projection[(projection["mode"] == mode) & (projection["basis"] == "projected")]
            axes.plot(further["ranks"], further["graphs_per_s"], "x--", color=colour, linewidth=0.9, ms=4)
            ranks = np.array([*of_mode["ranks"], *further["ranks"]], dtype=float)
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
        return save_figure(figure, folder, name, caption)
