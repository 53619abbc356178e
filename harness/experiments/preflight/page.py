"""The page on the checks of machines, and its figure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import pandas as pd

from harness.document.blocks import (
    Column,
    Section,
    TableBlock,
    build_block,
    duration_cell,
    link_run_folder,
    list_rows,
    number_cell,
    text_cell,
)
from harness.document.figures import STYLE, Figure, save_figure
from harness.experiments.experiment import PageContext
from harness.protocol.text import pluralize

# The colour and the shape of each verdict.
VERDICTS = {"ok": ("#1a7f37", "o"), "failed": ("#b42318", "X"), "not checked": ("#8a5a00", "D")}
ORDER = ("failed", "not checked", "ok")
MIB = 2**20


def build_sections(context: PageContext) -> list[Section]:
    """Return a section for each case."""
    items = context.tables["preflight_items"]
    return [build_case_section(str(folder), rows, context) for folder, rows in items.groupby("folder", sort=False)]


def build_case_section(folder: str, items: pd.DataFrame, context: PageContext) -> Section:
    """Return the section on one case: the verdict on each item, and the tables behind it."""
    first = list_rows(items)[0]
    name = f"{first['campaign']}.{Path(folder).name}"  # the folder is unique, unlike the case; no campaign has a dot
    blocks = [build_items_block(items)]
    for table, build in (
        ("preflight_calculations", build_calculations_block),
        ("preflight_measurements", build_measurements_block),
        ("preflight_bindings", build_bindings_block),
    ):
        rows = context.tables[table]
        rows = rows[rows["folder"] == folder]
        if len(rows):
            blocks.append(build(rows))
    figure = draw_items(items, context.figures, name)
    title = f"{first['system']}: {first['case']}"
    return Section(title, name, describe_case(items), [figure], blocks, finding=summarize(items))


def summarize(items: pd.DataFrame) -> str:
    """Return how many items are ok, how many were not checked, and which failed."""
    verdicts = items["verdict"]
    n_checked = int((verdicts != "not checked").sum())
    n_ok, system = (verdicts == "ok").sum(), items["system"].iloc[0]
    text = f"{n_ok} of {pluralize(n_checked, 'checked item')} of {system} ok"
    n_unchecked = len(items) - n_checked
    text += f"; {n_unchecked} not checked" if n_unchecked else ""
    failed = items[verdicts == "failed"]["item"]
    return text + (f"; failed: {', '.join(failed)}" if len(failed) else "")


def describe_case(items: pd.DataFrame) -> list[str]:
    """Return sentences on the machine, on the state of the case, and on what has not been checked."""
    first = list_rows(items)[0]
    device = first["device_name"] or ("the CPU" if first["device"] == "cpu" else None)
    ranks = pluralize(first["world_size"], "rank") if first["world_size"] else "An unknown number of ranks"
    texts = [f"{ranks} on {first['hosts'] or 'unknown nodes'}; device of the calculations: {device or 'unknown'}."]
    if first["state"] != "done":
        texts.append(f"The case is {first['state']}: {first['error'] or 'see `stderr`'}.")
    unchecked = items[items["verdict"] == "not checked"]["item"]
    if len(unchecked):
        texts.append(f"Not checked: {', '.join(unchecked)}. The table has the reasons.")
    return texts


def build_items_block(items: pd.DataFrame) -> TableBlock:
    """Return the table with a row per item, failed ones first."""
    rows = sorted(list_rows(items), key=lambda row: ORDER.index(row["verdict"]))
    columns: list[Column] = [
        ("item", "item"),
        ("verdict", "verdict"),
        ("observed", "observed"),
        ("what to do", text_cell("advice")),
        ("expected", "expected"),
        ("time", duration_cell("duration_s")),
        ("raw records", lambda row: link_run_folder(row["folder"])),
    ]
    return build_block("Items", rows, columns)


def build_calculations_block(calculations: pd.DataFrame) -> TableBlock:
    """Return the table of calculations in several formulations, with their errors and speed-ups."""
    columns: list[Column] = [
        ("item", "item"),
        ("calculation", "calculation"),
        ("formulation", "formulation"),
        ("precision", "precision"),
        ("width", text_cell("width")),
        ("error", number_cell("error", ".1e")),
        ("tolerance", number_cell("tolerance", ".0e")),
        ("time (ms)", number_cell("duration_s", scale=1e3)),
        ("plain (ms)", number_cell("plain_s", scale=1e3)),
        ("speed-up", number_cell("speedup")),
        ("peak memory (MiB)", number_cell("peak_bytes", scale=1 / MIB)),
        ("rank", "rank"),
        ("reason if unavailable", text_cell("unavailable_reason")),
    ]
    rows = list_rows(calculations)
    device = rows[0]["device_name"] or rows[0]["device"] or "an unknown device"
    note = (
        "Errors are relative to the largest value of the plain formulation in FP64. The speed-up compares with the"
        " plain formulation in the same precision."
    )
    return build_block(f"Calculations on {device}", rows, columns, note)


def build_measurements_block(measurements: pd.DataFrame) -> TableBlock:
    """Return the table of measured numbers and their reference values."""
    columns: list[Column] = [
        ("item", "item"),
        ("quantity", "name"),
        ("measured", number_cell("value")),
        ("reference", number_cell("reference")),
        ("unit", "unit"),
    ]
    return build_block("Measurements", list_rows(measurements), columns)


def build_bindings_block(bindings: pd.DataFrame) -> TableBlock:
    """Return the table of the cores and the device of each rank."""
    columns: list[Column] = [
        ("rank", "rank"),
        ("node", "host"),
        ("rank in the node", "local_rank"),
        ("logical processors", "cores"),
        ("device", text_cell("device_name")),
        ("identifier of the device", text_cell("device")),
    ]
    return build_block("Binding of ranks", list_rows(bindings), columns)


def draw_items(items: pd.DataFrame, folder: Path, name: str) -> Figure:
    """Draw the duration of each item whose duration is known, with the colour and the shape of its verdict."""
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(5.2, 0.6 + 0.22 * len(items)), layout="constrained")
        labels = items["item"].tolist()
        for verdict in ORDER:
            colour, marker = VERDICTS[verdict]
            points = [
                (row["duration_s"], k)
                for k, row in enumerate(list_rows(items))
                if row["verdict"] == verdict and row["duration_s"] is not None
            ]
            style: Any = {"color": colour, "marker": marker, "ls": "none", "ms": 6, "clip_on": False, "label": verdict}
            if points:
                axes.plot(*zip(*points, strict=True), **style)
        axes.set_yticks(range(len(labels)), labels)
        axes.set_ylim(len(labels) - 0.5, -0.5)
        axes.set_xlim(left=0)
        axes.set_xlabel("duration of the check (s)")
        axes.legend()
        verdicts = ", ".join(f"{(items['verdict'] == v).sum()} {v}" for v in reversed(ORDER))
        return save_figure(figure, folder, f"{name}-items", f"Verdicts and durations of the items: {verdicts}.")
