"""The page on weak and strong scaling."""

from __future__ import annotations

from collections.abc import Mapping
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
    format_range,
    interval_cell,
    list_rows,
    number_cell,
    select_campaign,
    text_cell,
)
from harness.document.figures import STYLE, Figure, save_figure
from harness.experiments.cost.page import add_cost_columns
from harness.experiments.experiment import PageContext
from harness.experiments.implementations import describe_implementations
from harness.planning.footprint import estimate_case
from harness.protocol.programs.data_parallel import REGIONS
from harness.protocol.text import pluralize
from harness.results.tables import Row

MS = 1e3
LARGE_NODES = 9400  # the largest jobs of the paper
MODE_COLOURS = ("#0072b2", "#e69f00", "#009e73")


def build_sections(context: PageContext) -> list[Section]:
    """Return a section for each campaign."""
    groups = context.tables["scaling"].groupby("campaign", sort=False)
    return [build_campaign_section(rows, context) for _, rows in groups]


def build_campaign_section(rows: pd.DataFrame, context: PageContext) -> Section:
    """Return the section on one campaign: the throughput for each number of ranks, and projections to more ranks."""
    setups = dict.fromkeys(f"{r['data']}, {r['precision'].upper()}, {r['device']}" for r in list_rows(rows))
    paragraphs = [f"{'; '.join(setups)}."]
    paragraphs[0] += f" Computation of messages: {', '.join(rows['message_backend'].unique())}."
    shared = rows[rows["shares_cores"].astype(bool)]
    if len(shared):
        paragraphs.append(
            f"{len(shared)} of {len(rows)} runs had more ranks than cores, or nodes emulated on one host. Such runs"
            " show that training works and gives the same results, but not how it scales, and projections do not use"
            " them."
        )
    paragraphs += [f"Slow ranks in {r['case']}: {r['slow_ranks']}." for r in list_rows(rows) if r["slow_ranks"]]
    campaign = rows["campaign"].iloc[0]
    paragraphs += describe_implementations(record for record in context.records if record.campaign == campaign)
    projection = select_campaign(context.tables["projection"], campaign)
    held_out = projection[projection["kind"] == "cross-validated"]
    if len(held_out):
        error = held_out["error"]
        paragraphs.append(
            f"Projections from smaller runs differ by {format_range(error, '+.0%')} from"
            f" {pluralize(len(held_out), 'measured run')}. Numbers for more ranks are projections, not measurements."
        )
    name = f"scaling-{campaign}"
    figures = [draw_scaling(rows, projection, context.figures, name)] if len(rows) > 1 else []
    blocks = [build_runs_block(rows), build_regions_block(rows)]
    if len(projection):
        blocks.append(build_projection_block(projection))
    largest = max(list_rows(rows), key=lambda row: row["ranks"])["folder"]
    for record in context.records:
        if record.location == largest:
            blocks += build_footprint_blocks(record.case)
    title = f"Scaling on {rows['system'].iloc[0]}"
    return Section(title, name, paragraphs, figures, blocks, finding=summarize_efficiency(rows))


def summarize_efficiency(rows: pd.DataFrame) -> str:
    """Return the efficiency of the largest run of each mode; empty if no mode has several numbers of ranks."""
    texts = []
    for mode, group in rows.groupby("mode"):
        largest = list_rows(group.loc[[group["ranks"].idxmax()]])[0]
        if group["ranks"].nunique() > 1 and largest["efficiency"] is not None:
            texts.append(f"{mode} scaling is {largest['efficiency']:.0%} efficient on {largest['ranks']} ranks")
    return "; ".join(texts)


def build_runs_block(rows: pd.DataFrame) -> TableBlock:
    """Return the table of runs."""
    columns: list[Column] = [
        ("case", "case"),
        ("nodes", "nodes"),
        ("ranks", "ranks"),
        ("structures per step", number_cell("global_batch_size", ",")),
        (
            "structures/s [lowest, highest]",
            interval_cell("structures_per_s", "structures_per_s_min", "structures_per_s_max"),
        ),
        ("efficiency [lowest, highest]", format_efficiency),
        ("communication, share of a step", number_cell("communication_fraction", ".0%")),
        ("waiting for data, share of the time", number_cell("data_wait_fraction", ".1%")),
        ("edges per rank, largest / mean", number_cell("edges_imbalance", ".2f")),
        ("relative gradient error", number_cell("gradient_error", ".1e")),
        ("divergence of parameters", number_cell("parameter_divergence", ".1e")),
    ]
    note = (
        "Nodes and ranks are the observed ones. The efficiency is the throughput per rank divided by that of the"
        " smallest run of the mode; the ends of its range compare the slowest epoch of the run with the fastest"
        " epoch of the smallest run, and the reverse. Communication is 1 - time of the same steps without exchange /"
        " time with exchange. Waiting for data is a share of the training time. The gradient error is the difference of"
        " the ranks' mean gradient from the gradient of one process, divided by the largest gradient. Divergence is the"
        " largest difference of a rank's parameters from those of rank 0 after training, divided by the largest"
        " parameter."
    )
    return add_cost_columns(build_block("Runs", list_rows(rows), columns, note), rows)


def format_efficiency(row: Row) -> str:
    """Return the efficiency with its range: `92% [90%, 95%]`."""
    value, low, high = (format_number(row[f"efficiency{end}"], ".0%") for end in ("", "_low", "_high"))
    return f"{value} [{low}, {high}]"


def build_regions_block(rows: pd.DataFrame) -> TableBlock:
    """Return the table with the time of each region of a step, with a row per run."""
    columns: list[Column] = [
        ("case", "case"),
        ("ranks", "ranks"),
        *((f"{name.replace('_', ' ')} (ms)", number_cell(f"{name}_s", scale=MS)) for name in REGIONS),
    ]
    note = (
        "The regions of separate steps are timed one by one, without prefetching and without exchange of gradients;"
        " the numbers are medians over steps of the slowest rank. In training, data, neighbour lists and collation run"
        " in a separate thread. The force gradient is the gradient of the energies, and backward is the gradient of the"
        " loss through energies and forces."
    )
    return build_block("Time of a step by region", list_rows(rows), columns, note)


def build_projection_block(projection: pd.DataFrame) -> TableBlock:
    """Return the table of projections, with the measured times of cross-validated projections."""
    columns: list[Column] = [
        ("mode", "mode"),
        ("ranks", number_cell("ranks", ",")),
        ("structures per rank", "batch_size"),
        ("kind", "kind"),
        ("largest run used (ranks)", "from_ranks"),
        ("step, measured (ms)", number_cell("measured_s", scale=MS)),
        ("computing (ms)", number_cell("compute_s", scale=MS)),
        ("all-reduce (ms)", number_cell("all_reduce_s", scale=MS)),
        ("step, projected (ms)", number_cell("projected_s", scale=MS)),
        ("step, projected with overlap (ms)", number_cell("projected_with_overlap_s", scale=MS)),
        ("projected / measured - 1", number_cell("error", "+.0%")),
        ("structures/s", number_cell("structures_per_s", ",.0f")),
        ("latency and bandwidth from", text_cell("network")),
    ]
    note = (
        "Computing is the expected time of the slowest rank if each rank has a random batch of the graphs of the runs."
        " The time of a rank is linear in atoms and edges, with the scatter of measured steps. An all-reduce of the"
        " gradient takes 2 log2(p) latencies and transfers 2 (p - 1) / p of its bytes. With overlap, the all-reduce is"
        " hidden behind the backward pass as far as possible. A cross-validated projection predicts a measured run from"
        " smaller ones."
    )
    return build_block("Projection", list_rows(projection), columns, note)


def build_footprint_blocks(case: Mapping[str, Any]) -> list[TableBlock]:
    """Return the table of what the case would open, write and send on LARGE_NODES nodes; empty if it is unknown."""
    ranks = LARGE_NODES * case.get("ranks_per_node", 1)
    estimates = estimate_case(case, LARGE_NODES, ranks)
    rows = [Row(vars(e) | {"advice": (e.remedy or "yes") if e.is_exceeded else ""}) for e in estimates]
    columns: list[Column] = [
        ("quantity", "name"),
        ("value", number_cell("value", ",.0f")),
        ("bound", number_cell("bound", ",.0f")),
        ("unit", "unit"),
        ("how it arises", "detail"),
        ("the bound is exceeded", text_cell("advice")),
    ]
    note = (
        f"The counts are extrapolated from runs of a few ranks to {LARGE_NODES:,} nodes with the ranks per node of the"
        " largest run, and are not measurements. The bounds are those of the harness; those of a site may differ."
    )
    title = f"Files and messages on {LARGE_NODES:,} nodes ({ranks:,} ranks)"
    return [build_block(title, rows, columns, note)] if rows else []


def draw_scaling(rows: pd.DataFrame, projection: pd.DataFrame, folder: Path, name: str) -> Figure:
    """Draw the throughput against the number of ranks for each mode, with perfect scaling and the projection."""
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(6.2, 3.6), layout="constrained")
        for (mode, group), colour in zip(rows.groupby("mode"), MODE_COLOURS, strict=False):
            low, high = (
                group["structures_per_s"] - group["structures_per_s_min"],
                group["structures_per_s_max"] - group["structures_per_s"],
            )
            style: Any = {"marker": "o", "capsize": 3, "color": colour, "label": mode}
            axes.errorbar(group["ranks"], group["structures_per_s"], yerr=np.array([low, high]), **style)
            first = group.iloc[0]
            projected = projection[(projection["mode"] == mode) & (projection["kind"] == "extrapolated")]
            axes.plot(projected["ranks"], projected["structures_per_s"], "x--", color=colour, linewidth=0.9, ms=4)
            ranks = np.array([*group["ranks"], *projected["ranks"]], dtype=float)
            axes.plot(ranks, first["structures_per_s"] * ranks / first["ranks"], ":", color=colour, linewidth=1)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        ticks = sorted({*rows["ranks"], *projection["ranks"]})
        axes.set_xticks(ticks, [str(t) for t in ticks])
        axes.set_xlabel("ranks")
        axes.set_ylabel("structures/s")
        axes.legend(frameon=False)
        caption = (
            f"Training throughput on {rows['system'].iloc[0]}: median of the timed epochs, with bars from the slowest"
            " to the fastest epoch. Dotted lines are perfect scaling from the smallest run."
            + (" Crosses and dashed lines are projections, not measurements." if len(projection) else "")
        )
        return save_figure(figure, folder, name, caption)
