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
    """Return the section on the tasks of one campaign."""
    tasks, errors, gains = (
        select_campaign(context.tables[f"transfer_{name}"], campaign) for name in ("tasks", "errors", "gains")
    )
    published = context.tables["transfer_published"]
    titles = dict(zip(tasks["task"], tasks["title"], strict=True))
    figures = [draw_gains(gains, context.figures, f"{campaign}-gains")] if len(gains) else []
    for task, group in errors.groupby("task", sort=False):
        row = tasks[tasks["task"] == task].iloc[0]
        name = f"{campaign}-{task}"
        figures.append(draw_errors(group, published[published["task"] == task], row, context.figures, name))
    blocks = [build_tasks_block(tasks), build_gains_block(gains, titles), build_errors_block(errors, titles)]
    paragraphs = describe_transfer(tasks, gains)
    return Section("Transfer to downstream tasks", f"transfer-{campaign}", paragraphs, figures, blocks)


def describe_transfer(tasks: pd.DataFrame, gains: pd.DataFrame) -> list[str]:
    """Return paragraphs on the tasks, and on fine-tuning compared with training from scratch."""
    finished = tasks[(tasks["available"] == True) & (tasks["state"] == "done")]  # noqa: E712
    stand_ins = sum(str(role).startswith("stand-in") for role in finished["role"])
    text = [
        f"Models were trained on {len(finished)} of {len(tasks)} tasks, {stand_ins} of them with stand-ins for the"
        " official data. All modes of training have the same budget of steps, use a fifth of their labels for early"
        " stopping, and are tested on held-out structures. Composition: a linear model of the composition, fitted to"
        " the same labels."
    ]
    full = select_most_labels(gains[gains["mode"] == "full"])
    if len(full):
        better = int((full["high"] < 1).sum())
        worse = int((full["low"] > 1).sum())
        text.append(
            "With the most labels of each, fine-tuning of all parameters is better than training from scratch on"
            f" {better} of {len(full)} (the interval of the ratio lies below one) and worse on {worse}; the others"
            " are within the scatter between seeds."
        )
    absent = [str(r["needs"]) for r in rows_as_dicts(tasks) if r["available"] is False]
    if absent:
        text.append("Not run: " + "; ".join(absent) + ".")
    return text


def select_most_labels(gains: pd.DataFrame) -> pd.DataFrame:
    """Return the rows with the most labels of each task, subset and mode."""
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
    note = "Stand-in: structures or a level of theory other than the task's; its errors do not apply to the task."
    return add_cost_columns(build_block("Tasks", rows_as_dicts(tasks), columns, note), tasks)


def build_gains_block(gains: pd.DataFrame, titles: dict[str, str]) -> TableBlock:
    """Return a row per task, subset and mode with errors over those of training from scratch."""
    columns: list[Column] = [
        *identify_fit(titles),
        ("error / from scratch", seed_interval_cell("ratio")),
        ("forces", number_cell("force_ratio")),
        ("error / composition", number_cell("composition_ratio")),
        ("seeds", "seeds"),
    ]
    note = "Geometric mean over seeds with Student's 95% interval, for the most labels; below 1, pretraining helps."
    return build_block("Gain from pretraining", rows_as_dicts(select_most_labels(gains)), columns, note)


def build_errors_block(errors: pd.DataFrame, titles: dict[str, str]) -> TableBlock:
    """Return a row per task, subset, mode and number of labels with its mean error."""
    columns: list[Column] = [
        *identify_fit(titles),
        ("MAE", seed_interval_cell("mae")),
        ("unit", "unit"),
        ("force MAE (eV/\N{ANGSTROM SIGN})", number_cell("force_mae")),
        ("seeds", "seeds"),
        ("tested on", "test"),
    ]
    return build_block("Errors", rows_as_dicts(errors), columns, "Mean over seeds with Student's 95% interval.")


def identify_fit(titles: dict[str, str]) -> list[Column]:
    """Return the columns that identify a row: task, subset, mode and number of labels."""
    return [
        ("task", lambda r: titles.get(r["task"], str(r["task"]))),
        ("subset", text_cell("subset")),
        ("mode", lambda r: MODES[r["mode"]].title),
        ("labels", "labels"),
    ]


def seed_interval_cell(column: str) -> Callable[[Row], str]:
    """Return a function that formats a mean over seeds, with its interval if there are several seeds."""
    format_with_interval, format_alone = interval_cell(column, "low", "high"), number_cell(column)
    return lambda row: format_with_interval(row) if row["seeds"] > 1 else format_alone(row)
