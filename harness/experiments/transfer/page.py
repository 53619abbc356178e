"""The page on downstream tasks."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd

from harness.document.blocks import (
    EN_DASH,
    Column,
    Section,
    TableBlock,
    build_block,
    interval_cell,
    link_run_folder,
    number_cell,
    rows_as_dicts,
    select_campaign,
    text_cell,
)
from harness.experiments.cost.page import add_cost_columns
from harness.experiments.experiment import PageContext
from harness.experiments.transfer.figures import MODES, draw_errors, draw_gains
from harness.results.tables import Row


def build_sections(context: PageContext) -> list[Section]:
    """Return a section for each campaign."""
    return [build_campaign_section(str(c), context) for c in context.tables["transfer_tasks"]["campaign"].unique()]


def build_campaign_section(campaign: str, context: PageContext) -> Section:
    """Return what was learnt of every task of one campaign, and what is missing."""
    tasks, errors, gains = (
        select_campaign(context.tables[f"transfer_{name}"], campaign) for name in ("tasks", "errors", "gains")
    )
    published = context.tables["transfer_published"]
    titles = dict(zip(tasks["task"], tasks["title"], strict=True))
    drawn = [draw_gains(gains, context.figures, f"{campaign}-gains")] if len(gains) else []
    for task, group in errors.groupby("task", sort=False):
        row = tasks[tasks["task"] == task].iloc[0]
        name = f"{campaign}-{task}"
        drawn.append(draw_errors(group, published[published["task"] == task], row, context.figures, name))
    blocks = [build_tasks_block(tasks), build_gains_block(gains, titles), build_errors_block(errors, titles)]
    paragraphs = describe_transfer(tasks, gains)
    return Section("Transfer to downstream tasks", f"transfer-{campaign}", paragraphs, drawn, blocks)


def describe_transfer(tasks: pd.DataFrame, gains: pd.DataFrame) -> list[str]:
    """Return how many tasks there are, and on how many fine-tuning beats training from scratch."""
    ran = tasks[(tasks["available"] == True) & (tasks["state"] == "done")]  # noqa: E712
    stand_ins = sum(str(role).startswith("stand-in") for role in ran["role"])
    text = [
        f"{len(ran)} of {len(tasks)} tasks were learned from, {stand_ins} of them on stand-ins for the official data."
        " Every way of training has the same budget of steps, is stopped by a fifth of the labels that it"
        " may see, and is tested on structures of which it has seen none. Composition: a linear model of it, fitted on"
        " the same labels."
    ]
    full = select_most_labels(gains[gains["mode"] == "full"])
    if len(full):
        better = int((full["high"] < 1).sum())
        worse = int((full["low"] > 1).sum())
        text.append(
            f"With the most labels of each, fine-tuning everything is better than training from scratch on {better} of"
            f" {len(full)} (the interval of the ratio lies below one), worse on {worse}; on the others seeds do"
            " not tell."
        )
    absent = [str(r["needs"]) for r in rows_as_dicts(tasks) if r["available"] is False]
    if absent:
        text.append("Not run: " + "; ".join(absent) + ".")
    return text


def select_most_labels(gains: pd.DataFrame) -> pd.DataFrame:
    """Return the rows with the most labels of each task, part and mode."""
    if gains.empty:
        return gains
    return gains.loc[gains.groupby(["task", "subset", "mode"], sort=False)["labels"].idxmax()]


def build_tasks_block(tasks: pd.DataFrame) -> TableBlock:
    """Return a row per task."""
    columns: list[Column] = [
        ("task", lambda r: str(r["title"] or r["task"])),
        ("target", lambda r: f"{r['target']} ({r['unit']})" if r["target"] else EN_DASH),
        ("data", text_cell("role", "not run: see above")),
        ("level", text_cell("level")),
        ("structures", number_cell("structures", ".0f")),
        ("left out", text_cell("left_out")),
        ("splits", text_cell("splits")),
        ("raw records", lambda r: link_run_folder(r["folder"])),
    ]
    note = "Stand-in: other structures or another level of theory than the task's own; its errors are not the task's."
    return add_cost_columns(build_block("Tasks", rows_as_dicts(tasks), columns, note), tasks)


def build_gains_block(gains: pd.DataFrame, titles: dict[str, str]) -> TableBlock:
    """Return the errors over those of training from scratch."""
    columns: list[Column] = [
        *identify_fit(titles),
        ("error / from scratch", interval_of_seeds("ratio")),
        ("forces", number_cell("force_ratio")),
        ("error / composition", number_cell("composition_ratio")),
        ("seeds", "seeds"),
    ]
    note = "Geometric mean over seeds with Student's 95% interval; below 1, pretraining helps. The most labels of each."
    return build_block("Gain from pretraining", rows_as_dicts(select_most_labels(gains)), columns, note)


def build_errors_block(errors: pd.DataFrame, titles: dict[str, str]) -> TableBlock:
    """Return every mean error."""
    columns: list[Column] = [
        *identify_fit(titles),
        ("MAE", interval_of_seeds("mae")),
        ("unit", "unit"),
        ("force MAE (eV/\N{ANGSTROM SIGN})", number_cell("force_mae")),
        ("seeds", "seeds"),
        ("tested on", "test"),
    ]
    return build_block("Errors", rows_as_dicts(errors), columns, "Mean over seeds with Student's 95% interval.")


def identify_fit(titles: dict[str, str]) -> list[Column]:
    """Return the columns that say which task, part, mode and number of labels a row is of."""
    return [
        ("task", lambda r: titles.get(r["task"], str(r["task"]))),
        ("part", text_cell("subset")),
        ("mode", lambda r: MODES[r["mode"]].title),
        ("labels", "labels"),
    ]


def interval_of_seeds(column: str) -> Callable[[Row], str]:
    """Return what shows a mean over seeds: with its interval, or alone where there is one seed."""
    with_interval, alone = interval_cell(column, "low", "high"), number_cell(column)
    return lambda row: with_interval(row) if row["seeds"] > 1 else alone(row)
