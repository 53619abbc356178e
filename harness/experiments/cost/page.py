"""The page on the costs of runs, and the columns of costs in the tables of other pages.

A part is an epoch, a trial, a stage or a precision of a case.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import pandas as pd

from harness.document.blocks import (
    EN_DASH,
    Column,
    Section,
    TableBlock,
    build_block,
    duration_cell,
    format_number,
    link_run_folder,
    list_rows,
    number_cell,
    text_cell,
)
from harness.document.figures import STYLE, Figure, save_figure
from harness.experiments.cost.speed_page import build_speed_section
from harness.experiments.experiment import PageContext
from harness.protocol.text import pluralize
from harness.results.tables import Row

MAX_ROWS = 60
# The bars of a figure whose names are in the normal size.
MAX_LARGE_NAMES = 20
GIB = 2**30
SECONDS_PER_HOUR = 3600.0
JOULES_PER_KWH = 3.6e6
# The headers of the columns of costs in the tables of other pages, and the formats of their numbers.
COST_COLUMNS = {
    "energy_per_result_j": ("J/{unit}", ".3g"),
    "gpu_hours": ("GPU-hours", ".3g"),
    "counter_gflop_per_s": ("counted GFLOP/s", ".3g"),
    "counter_gb_per_s": ("counted GB/s", ".3g"),
}


def add_cost_columns(block: TableBlock, rows: pd.DataFrame) -> TableBlock:
    """Return the block with additional columns for the costs that `rows` contains.

    Args:
        block: The block.
        rows: The rows of the table that the block shows, in the same order.
    """
    columns, body = list(block.columns), [list(row) for row in block.rows]
    for name, (header, spec) in COST_COLUMNS.items():
        if name in rows and rows[name].notna().any():
            units = rows["work_unit"].dropna().unique()
            columns.append(header.format(unit=units[0] if len(units) == 1 else "result"))
            for row, value in zip(body, rows[name].tolist(), strict=True):
                row.append(format_number(value, spec))
    return replace(block, columns=columns, rows=body)


def build_sections(context: PageContext) -> list[Section]:
    """Return a section on costs and one on the speed of nodes, each only if it has data."""
    speed = context.tables["cost_speed"]
    return [*build_cost_sections(context), *([build_speed_section(speed)] if len(speed) else [])]


def build_cost_sections(context: PageContext) -> list[Section]:
    """Return the section on costs, or none if no case has telemetry."""
    cases, part_rows, sources = (context.tables[f"cost_{name}"] for name in ("cases", "parts", "sources"))
    with_telemetry = cases[cases["source"].notna()]
    if with_telemetry.empty:
        return []
    figures = [draw_node_hours(cases, context.figures)]
    if with_telemetry["energy_j"].notna().any():
        figures.append(draw_energy(with_telemetry[with_telemetry["energy_j"].notna()], context.figures))
    elif with_telemetry["busy_cores"].notna().any():
        figures.append(draw_cores(with_telemetry, context.figures))
    blocks = [build_campaigns_block(cases), build_cases_block(with_telemetry)]
    with_energy = part_rows[part_rows["energy_j"].notna()]
    if len(with_energy):
        blocks.append(build_parts_block(with_energy))
    blocks.append(build_sources_block(sources))
    paragraphs = describe_costs(cases, part_rows, with_telemetry)
    return [Section("Costs of runs", "cost", paragraphs, figures, blocks, finding=summarize_costs(cases))]


def summarize_costs(cases: pd.DataFrame) -> str:
    """Return the cost of all runs in node-hours, and their energy."""
    energy = cases["energy_j"].dropna()
    text = f"{pluralize(len(cases), 'case')} took {format_number(cases['node_hours'].sum())} node-hours"
    if energy.empty:
        return f"{text}; no sensor measured their energy"
    return f"{text} and {format_number(energy.sum() / JOULES_PER_KWH)} kWh ({len(energy)} with measured energy)"


def describe_costs(cases: pd.DataFrame, part_rows: pd.DataFrame, with_telemetry: pd.DataFrame) -> list[str]:
    """Return paragraphs on the available telemetry, and on the cases and parts without energy."""
    text = [
        f"{len(with_telemetry)} of {pluralize(len(cases), 'case')} {'has' if len(with_telemetry) == 1 else 'have'}"
        f" telemetry, with a median sampling interval of {format_number(with_telemetry['interval_s'].median())} s."
        " Energy is the increase of an energy counter, corrected for resets, or else the integral of power. The energy"
        " is assigned to cases, trials, epochs and stages by their times and nodes, with linear interpolation between"
        " samples."
    ]
    without = with_telemetry[with_telemetry["energy_j"].isna()]
    if len(without):
        reasons = ", ".join(f"{n}: {reason}" for reason, n in without["unavailable_reason"].value_counts().items())
        text.append(f"{len(without)} of them have no energy ({reasons}). Missing energies are not estimated.")
    withheld = part_rows[part_rows["energy_j"].isna()]
    if len(withheld):
        kinds = withheld["unavailable_reason"].str.split(":").str[0].value_counts()
        reasons = ", ".join(f"{n} {reason}" for reason, n in kinds.items())
        text.append(f"{len(withheld)} epochs, trials, stages and precisions have no energy: {reasons}.")
    if with_telemetry["sampler_core_fraction"].notna().any():
        share = with_telemetry["sampler_core_fraction"]
        text.append(
            f"The sampler of the harness used {share.median():.2%} of one core in the median case, and at most"
            f" {share.max():.2%}."
        )
    return text


def build_campaigns_block(cases: pd.DataFrame) -> TableBlock:
    """Return the table of campaigns, with a row for each."""
    columns = ["campaign", "cases", "cases with telemetry", "cases with energy", "hours, sum over cases", "GPU-hours",
               "node-hours", "energy (kJ)", "energy includes"]  # fmt: skip
    body = []
    for campaign, group in cases.groupby("campaign", sort=False):
        energies = group["energy_j"].dropna()
        scopes = ", ".join(group.loc[energies.index, "energy_scope"].unique())
        body.append(
            [
                str(campaign), str(len(group)), str(int(group["source"].notna().sum())), str(len(energies)),
                format_number(group["seconds"].sum() / SECONDS_PER_HOUR),
                format_number(group["gpu_hours"].sum() if group["gpu_hours"].notna().any() else None),
                format_number(group["node_hours"].sum()),
                format_number(energies.sum() / 1e3 if len(energies) else None),
                scopes or EN_DASH,
            ]
        )  # fmt: skip
    return TableBlock("Campaigns", columns, body, "Energy is the sum over the cases with energy.")


def build_cases_block(with_telemetry: pd.DataFrame) -> TableBlock:
    """Return the table of the first MAX_ROWS cases, without empty columns."""
    columns: list[Column] = [
        ("case", "case"),
        ("precision", text_cell("precision")),
        ("time", duration_cell("seconds")),
        ("nodes", format_nodes),
        ("energy (kJ)", number_cell("energy_j", scale=1e-3)),
        ("energy includes", text_cell("energy_scope")),
        ("energy measured by", text_cell("energy_method")),
        ("mean power (W)", number_cell("power_w")),
        ("J/result", number_cell("energy_per_result_j")),
        ("unit of results", text_cell("work_unit")),
        ("GPU-hours", number_cell("gpu_hours")),
        ("GPU use (%)", number_cell("accelerator_utilization_percent")),
        ("highest GPU memory (%)", number_cell("accelerator_memory_max_percent")),
        ("highest GPU temperature (\N{DEGREE SIGN}C)", number_cell("accelerator_temperature_max_c")),
        ("busy cores per node", number_cell("busy_cores")),
        ("highest host memory (GiB)", number_cell("host_memory_used_max_bytes", scale=1 / GIB)),
        ("network, received + sent (GB)", lambda r: format_number(sum_network_gb(r))),
        ("counted GFLOP/s", number_cell("counter_gflop_per_s")),
        ("counted GB/s", number_cell("counter_gb_per_s")),
        ("reason for missing energy", text_cell("unavailable_reason")),
        ("raw records", lambda r: link_run_folder(r["folder"])),
    ]
    more = (
        f" The table shows the first {MAX_ROWS} of {len(with_telemetry)} cases; all are in tables/cost_cases.csv."
        if len(with_telemetry) > MAX_ROWS
        else ""
    )
    note = (
        "`62 of 64` nodes means that two nodes sent no samples. Host memory is the memory that all processes on the"
        " node use. Counted GFLOP/s and GB/s are the operations and the traffic of device memory from hardware"
        " counters, divided by the time of the whole case; inactive lanes of a wavefront count as operations too."
        f"{more}"
    )
    block = build_block("Cases", list_rows(with_telemetry.head(MAX_ROWS)), columns, note)
    filled = [k for k in range(len(columns)) if any(row[k] != EN_DASH for row in block.rows)]
    return TableBlock("Cases", [columns[k][0] for k in filled], [[row[k] for k in filled] for row in block.rows], note)


def build_parts_block(part_rows: pd.DataFrame) -> TableBlock:
    """Return the table of parts, with a row per case and kind of part; stages and precisions have a row each."""
    columns = ["case", "kind of part", "parts", "J/result [lowest, highest]", "unit of results", "mean power (W)"]
    body = []
    for (_, case, scope), group in part_rows.groupby(["campaign", "case", "scope"], sort=False):
        parts = group.groupby("name", sort=False) if scope in ("stage", "precision") else [("", group)]
        for name, rows in parts:
            energy = rows["energy_per_result_j"]
            body.append(
                [
                    str(case), f"{scope} {name}".strip(), str(len(rows)),
                    f"{format_number(energy.median())} [{format_number(energy.min())}, {format_number(energy.max())}]",
                    rows["work_unit"].iloc[0],
                    format_number(rows["power_w"].median()),
                ]
            )  # fmt: skip
    note = "The numbers are medians over the parts in a row; all parts are in tables/cost_parts.csv."
    return TableBlock("Energy of epochs, trials, stages and precisions", columns, body[:MAX_ROWS], note)


def build_sources_block(sources: pd.DataFrame) -> TableBlock:
    """Return the table of telemetry sources, with a row per campaign, kind and version of the collector."""
    body = []
    for (campaign, kind, version), group in sources.groupby(["campaign", "kind", "version"], sort=False):
        faulty = group[group["faults"] != ""]
        first = f"{Path(faulty['path'].iloc[0]).name}: {faulty['faults'].iloc[0]}" if len(faulty) else "none"
        more = f"; {pluralize(len(faulty) - 1, 'more file')} in tables/cost_sources.csv" if len(faulty) > 1 else ""
        body.append([str(campaign), str(kind), str(version) or EN_DASH, str(len(group)), first + more])
    note = "Faulty samples are corrected where this is safe, and otherwise left out of all numbers."
    return TableBlock("Telemetry", ["campaign", "kind", "collector", "files", "faults"], body, note)


def format_nodes(row: Row) -> str:
    """Return the number of nodes, `64`, or `62 of 64` if two nodes sent no samples."""
    return (
        f"{row['nodes']:.0f}"
        if row["nodes"] == row["nodes_sampled"]
        else f"{row['nodes_sampled']:.0f} of {row['nodes']:.0f}"
    )


def sum_network_gb(row: Row) -> float | None:
    """Return the gigabytes that the nodes' interfaces received and sent."""
    traffic = [row[name] for name in ("received_bytes", "sent_bytes") if row[name] is not None]
    return sum(traffic) / 1e9 if traffic else None


def draw_node_hours(cases: pd.DataFrame, figures: Path) -> Figure:
    """Draw the node-hours of each campaign, in node-minutes if all are below one node-hour."""
    hours = cases.groupby("campaign", sort=False)["node_hours"].sum().sort_values(ascending=False).head(MAX_ROWS)
    scale, unit = (1.0, "node-hours") if hours.max() > 1 else (60.0, "node-minutes")
    caption = "Time of all cases of each campaign, multiplied by the nodes of each case."
    names = [str(name) for name in hours.index]
    return _draw_bars(names, scale * hours, figures, name="cost-node-hours", label=unit, caption=caption)


def draw_energy(with_telemetry: pd.DataFrame, figures: Path) -> Figure:
    """Draw the energy per useful result of each case, or the energy of each case if no results are counted."""
    rows = with_telemetry[with_telemetry["energy_per_result_j"] > 0]
    if rows.empty:
        caption = f"Energy of each case ({', '.join(with_telemetry['energy_scope'].unique())})."
        values = with_telemetry["energy_j"] / 1e3
        names = with_telemetry["case"].tolist()
        return _draw_bars(names, values, figures, name="cost-energy", label="energy (kJ)", caption=caption)
    caption = (
        "Energy per useful result (structure, candidate, trial, ...), with one bar per case"
        f" ({', '.join(rows['energy_scope'].unique())})."
    )
    names, values = rows["case"].tolist(), rows["energy_per_result_j"]
    return _draw_bars(names, values, figures, name="cost-energy", label="J per result", caption=caption, log=True)


def draw_cores(with_telemetry: pd.DataFrame, figures: Path) -> Figure:
    """Draw the busy cores of each case, for runs without energy."""
    rows = with_telemetry[with_telemetry["busy_cores"].notna()]
    caption = (
        "Busy cores per node, for all processes, averaged over the case. No sensor measures the energy of these runs."
    )
    label = "busy cores per node"
    names = rows["case"].tolist()
    return _draw_bars(names, rows["busy_cores"], figures, name="cost-cores", label=label, caption=caption)


def _draw_bars(
    names: Sequence[str],
    values: pd.Series[float],
    figures: Path,
    *,
    name: str,
    label: str,
    caption: str,
    log: bool = False,
) -> Figure:
    names, values = names[:MAX_ROWS], values.head(MAX_ROWS)
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(7.4, 0.9 + 0.21 * max(len(names), 2)), layout="constrained")
        positions = range(len(names))
        axes.barh(positions, values.tolist(), color="#0072b2", height=0.7)
        axes.set_yticks(list(positions), names, fontsize=7 if len(names) > MAX_LARGE_NAMES else 9)
        axes.set_ylim(len(names) - 0.4, -0.6)
        if log:
            axes.set_xscale("log")
        axes.set_xlabel(label)
        return save_figure(figure, figures, name, caption)
