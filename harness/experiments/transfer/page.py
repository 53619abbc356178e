"""The section of the report on downstream tasks."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from harness.document.blocks import DASH, Cell, Section, View, interval, lines, number, raw_records
from harness.experiments.cost.page import with_costs
from harness.experiments.transfer.figures import MODES, errors_over_labels, gains_of_pretraining
from harness.experiments.transfer.metrics import TransferTables


def transfer_sections(tables: TransferTables, figures: Path) -> list[Section]:
    """A section for each campaign; draws its figures into the folder."""
    return [campaign_section(str(c), tables, figures) for c in tables.tasks["campaign"].unique()]


def campaign_section(campaign: str, tables: TransferTables, figures: Path) -> Section:
    """Every task of one campaign: what was learned of it, and what is missing."""
    tasks, errors, gains = (t[t["campaign"] == campaign] for t in (tables.tasks, tables.errors, tables.gains))
    titles = dict(zip(tasks["task"], tasks["title"], strict=True))
    drawn = [gains_of_pretraining(gains, figures, f"{campaign}-gains")] if len(gains) else []
    for task, own in errors.groupby("task", sort=False):
        published = tables.published[tables.published["task"] == task]
        row = tasks[tasks["task"] == task].iloc[0]
        drawn.append(errors_over_labels(own, published, row, figures, f"{campaign}-{task}"))
    views = [tasks_view(tasks), gains_view(gains, titles), errors_view(errors, titles)]
    return Section("Transfer to downstream tasks", f"transfer-{campaign}", paragraphs(tasks, gains), drawn, views)


def paragraphs(tasks: pd.DataFrame, gains: pd.DataFrame) -> list[str]:
    """How many tasks, and on how many fine-tuning beats training from nothing."""
    ran = tasks[(tasks["available"] == True) & (tasks["state"] == "done")]  # noqa: E712
    stand_ins = int(ran["role"].fillna("").str.startswith("stand-in").sum())
    said = [
        f"{len(ran)} of {len(tasks)} tasks were learned from, {stand_ins} of them on stand-ins for the official data."
        " Every way of training has the same budget of steps, is stopped by a fifth of the labels that it may"
        " see, and is"
        " tested on structures of which it has seen none. Composition: a linear model of it, fitted on the same labels."
    ]
    full = last(gains[gains["mode"] == "full"])
    if len(full):
        better = int((full["high"] < 1).sum())
        worse = int((full["low"] > 1).sum())
        said.append(
            f"With the most labels of each, fine-tuning everything is better than training from scratch on {better} of"
            f" {len(full)} (the interval of the ratio lies below one), worse on {worse}; on the others seeds do"
            " not tell."
        )
    absent = [str(r["needs"]) for r in lines(tasks) if r["available"] is False]
    if absent:
        said.append("Not run: " + "; ".join(absent) + ".")
    return said


def last(gains: pd.DataFrame) -> pd.DataFrame:
    """The rows with the most labels of each task, part and mode."""
    if gains.empty:
        return gains
    return gains.loc[gains.groupby(["task", "subset", "mode"], sort=False)["labels"].idxmax()]


def tasks_view(tasks: pd.DataFrame) -> View:
    """A row a task."""
    columns = ["task", "target", "data", "level", "structures", "left out", "splits", "raw records"]
    body: list[list[Cell]] = [
        [
            str(r["title"] or r["task"]), f"{r['target']} ({r['unit']})" if r["target"] else DASH,
            str(r["role"] or "not run: see above"), str(r["level"] or DASH), number(r["structures"], ".0f"),
            str(r["left_out"] or DASH), str(r["splits"] or DASH), raw_records(r["folder"]),
        ]
        for r in lines(tasks)
    ]  # fmt: skip
    note = "Stand-in: other structures or another level of theory than the task's own; its errors are not the task's."
    return with_costs(View("Tasks", columns, body, note), tasks)


def gains_view(gains: pd.DataFrame, titles: dict[str, str]) -> View:
    """Errors over those from scratch."""
    columns = ["task", "part", "mode", "labels", "error / from scratch", "forces", "error / composition", "seeds"]
    body = [
        [
            titles.get(r["task"], str(r["task"])), r["subset"] or DASH, MODES[r["mode"]].title, str(r["labels"]),
            interval(r["ratio"], r["low"], r["high"]) if r["seeds"] > 1 else number(r["ratio"]),
            number(r["force_ratio"]), number(r["composition_ratio"]), str(r["seeds"]),
        ]
        for r in lines(last(gains))
    ]  # fmt: skip
    note = "Geometric mean over seeds with Student's 95% interval; below 1, pretraining helps. The most labels of each."
    return View("Gain from pretraining", columns, body, note)


def errors_view(errors: pd.DataFrame, titles: dict[str, str]) -> View:
    """Every mean error."""
    columns = [
        "task",
        "part",
        "mode",
        "labels",
        "MAE",
        "unit",
        "force MAE (eV/\N{ANGSTROM SIGN})",
        "seeds",
        "tested on",
    ]
    body = [
        [
            titles.get(r["task"], str(r["task"])), r["subset"] or DASH, MODES[r["mode"]].title, str(r["labels"]),
            interval(r["mae"], r["low"], r["high"]) if r["seeds"] > 1 else number(r["mae"]), str(r["unit"]),
            number(r["force_mae"]), str(r["seeds"]), str(r["test"]),
        ]
        for r in lines(errors)
    ]  # fmt: skip
    return View("Errors", columns, body, "Mean over seeds with Student's 95% interval.")
