"""The sections on training steps, on the page of the inference ladder."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from harness.document.blocks import (
    Column,
    Section,
    TableBlock,
    build_block,
    format_number,
    format_threads,
    interval_cell,
    list_rows,
    number_cell,
)
from harness.experiments.cost.page import add_cost_columns
from harness.experiments.ladder.stages import LOAD_MARGIN
from harness.experiments.ladder.training_steps import STEPS, TOLERANCE
from harness.experiments.rounds import describe_rounds
from harness.protocol.text import pluralize
from harness.results.runs import RunRecord
from harness.results.tables import Row


def build_steps_sections(table: pd.DataFrame, records: Sequence[RunRecord]) -> list[Section]:
    """Return a section for each setup, which is a model and a workload, with a table for each precision."""
    return [_build_section(str(name), rows, records) for name, rows in table.groupby("setup", sort=False)]


def _build_section(name: str, rows: pd.DataFrame, records: Sequence[RunRecord]) -> Section:
    first = list_rows(rows)[0]
    blocks = [_build_block(str(precision), group) for precision, group in rows.groupby("precision", sort=False)]
    return Section(
        f"Training steps: {first['architecture']}, {first['model']}",
        f"training-steps-{name}",
        [*_describe(first, rows), *describe_rounds(records, rows["folder"])],
        tables=blocks,
        finding=_summarize(rows),
    )


def _summarize(rows: pd.DataFrame) -> str:
    """Return the largest speed-up of a step in each precision; empty without one."""
    texts = []
    for precision, group in rows[rows["speedup"].notna()].groupby("precision", sort=False):
        best = list_rows(group.loc[[group["speedup"].idxmax()]])[0]
        texts.append(
            f"{interval_cell('speedup')(best)} times as many steps in {str(precision).upper()} with"
            f" {best['stage'].replace('_', ' ')}"
        )
    return "; ".join(texts)


def _describe(first: Row, rows: pd.DataFrame) -> list[str]:
    thousands = {"parameters": ",.0f", "atoms": ",.0f", "edges": ",.0f"}
    sizes = {k: format_number(first[k], thousands.get(k, ".0f")) for k in (*STEPS["workload"], "parameters")}
    paragraphs = [
        "A step is the forward pass, the loss of energies and forces, and the gradient of all"
        f' {sizes["parameters"]} parameters, without the optimizer\'s update. In the stage "fused messages", the'
        " compiled model computes PaiNN's messages with one operator, and their derivatives with others. The random"
        f" workload has {sizes['structures']} structures in batches of {sizes['batch_size']}, with {sizes['atoms']}"
        f" atoms and {sizes['edges']} edges in total (at most {sizes['max_neighbours']} per atom). Weights are"
        " untrained and labels are random: times and rounding errors are realistic, but the loss has no meaning.",
    ]
    threads, load = first["threads"], rows["load_1min"].max()
    if isinstance(threads, (int, float)) and load > threads + LOAD_MARGIN:
        paragraphs.append(
            f"Other processes were running at the same time (load {load:.1f} for {pluralize(threads, 'thread')}): the"
            " intervals show their effect."
        )
    return paragraphs


def _build_block(precision: str, rows: pd.DataFrame) -> TableBlock:
    columns: list[Column] = [
        ("stage", lambda r: r["stage"].replace("_", " ")),
        ("verdict", "verdict"),
        ("step (s) [interval]", interval_cell("step_s", "step_s_low", "step_s_high")),
        ("speed-up [interval]", interval_cell("speedup")),
        ("speed-up over torch compile [interval]", interval_cell("over_compiled")),
        ("loss, relative error", number_cell("loss_error", ".1e")),
        ("gradient, relative error", number_cell("gradient_error", ".1e")),
        ("arithmetic (GFLOP)", number_cell("gflop", ".1f")),
        ("share of the attainable", number_cell("attainable_fraction", ".0%")),
        ("peak memory (MiB)", number_cell("peak_bytes", ".0f", 1 / 2**20)),
        ("first step (s)", number_cell("first_call_s", ".1f")),
        ("rounds", "samples"),
    ]
    first = list_rows(rows)[0]
    state = "" if first["state"] == "done" else f" The case is incomplete ({first['state']})."
    note = (
        f"{first['device']}, {format_threads(first['threads'])}. Medians over rounds with order-statistic"
        f" intervals ({format_number(100 * rows['coverage'].max(), '.1f')}% coverage); speed-ups are ratios within a"
        " round. The error of the gradient is the norm of its difference from the baseline's gradient, divided by the"
        " norm of the latter. The share of the attainable is the time of the arithmetic at the rates of the fastest"
        " matrix products of the same shapes, divided by the time of the step. A stage is ok if both errors are at most"
        f" {TOLERANCE[precision]:g}.{state}"
    )
    block = build_block(f"{precision.upper()} training step", list_rows(rows), columns, note)
    return add_cost_columns(block, rows)
