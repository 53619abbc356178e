"""The section of the report on training steps, beside the inference ladder."""

from __future__ import annotations

import pandas as pd

from harness.document.blocks import Section, View, interval, lines, number, threads_of
from harness.experiments.cost.page import with_costs
from harness.experiments.ladder.page import BUSY
from harness.experiments.training_steps.metrics import TOLERANCE
from harness.protocol.text import count


def steps_sections(table: pd.DataFrame) -> list[Section]:
    """A section for each model and workload, a table for each precision."""
    return [_section(str(name), rows) for name, rows in table.groupby("experiment", sort=False)]


def _section(name: str, rows: pd.DataFrame) -> Section:
    first = lines(rows)[0]
    views = [_view(str(precision), own) for precision, own in rows.groupby("precision", sort=False)]
    return Section(f"Training steps: {first['model']}", f"training-steps-{name}", _paragraphs(first, rows), views=views)


def _paragraphs(first: dict[str, object], rows: pd.DataFrame) -> list[str]:
    said = [
        "One step: forward, the loss of energies and forces, and the gradient of all"
        f" {number(first['parameters'], ',.0f')} parameters; the optimizer's update is left out. Fused messages are"
        " compiled code around PaiNN's messages as one operator, whose derivatives are operators too. Batches of"
        f" {number(first['batch_size'], '.0f')} of the random workload: {number(first['structures'], '.0f')}"
        f" structures, {number(first['atoms'], ',.0f')} atoms, {number(first['edges'], ',.0f')} edges (at most"
        f" {number(first['max_neighbours'], '.0f')} an atom). Weights are untrained and labels drawn at random: times"
        " and rounding errors are real, the loss means nothing.",
    ]
    threads, load = first["threads"], rows["load"].max()
    if isinstance(threads, (int, float)) and load > threads + BUSY:
        said.append(
            f"Other work was running beside this (load {load:.1f} for {count(threads, 'thread')}): read the intervals."
        )
    return said


def _view(precision: str, rows: pd.DataFrame) -> View:
    columns = [
        "stage", "verdict", "step (s) [interval]", "speed-up [interval]", "over torch compile [interval]",
        "loss, relative error", "gradient, relative error", "peak memory (MiB)", "first step (s)", "n",
    ]  # fmt: skip
    body = [
        [
            r["stage"].replace("_", " "),
            r["verdict"],
            interval(r["step_s"], r["step_low"], r["step_high"]),
            interval(r["speedup"], r["speedup_low"], r["speedup_high"]),
            interval(r["over_compiled"], r["over_compiled_low"], r["over_compiled_high"]),
            number(r["loss_error"], ".1e"),
            number(r["gradient_error"], ".1e"),
            number(r["peak_bytes"] and r["peak_bytes"] / 2**20, ".0f"),
            number(r["first_call_s"], ".1f"),
            str(r["samples"]),
        ]
        for r in lines(rows)
    ]
    first = lines(rows)[0]
    state = (
        "" if first["case_state"] == "done" else f" The case is not complete ({first['case_state']}): what there is."
    )
    note = (
        f"{first['device']}, {threads_of(first['threads'])}. Medians over rounds with order-statistic"
        f" intervals ({number(100 * rows['coverage'].max(), '.1f')}% coverage); ratios from pairs of the same round."
        " The gradient's error is the norm of the difference of all its numbers over the norm of the baseline's; ok"
        f" within {TOLERANCE[precision]:g}.{state}"
    )
    return with_costs(View(f"{precision.upper()} training step", columns, body, note), rows)
