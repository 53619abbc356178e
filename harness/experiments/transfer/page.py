"""The page on downstream tasks, and its figures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from harness.document.blocks import (
    EN_DASH,
    Column,
    Section,
    TableBlock,
    build_block,
    format_range,
    interval_cell,
    label_cases,
    link_run_folder,
    list_rows,
    number_cell,
    select_campaign,
    text_cell,
)
from harness.document.figures import STYLE, Figure, save_figure, set_plain_ticks
from harness.experiments.cost.page import add_cost_columns
from harness.experiments.experiment import PageContext
from harness.protocol.text import pluralize
from harness.results.tables import Row

# Errors above this multiple of the median are not drawn: the error of predicting the mean of total energies is so large
# that the other errors would be indistinguishable.
MAX_OVER_MEDIAN = 30.0


@dataclass(frozen=True)
class ModeStyle:
    """The title, colour, marker and line style of a mode."""

    title: str
    colour: str
    marker: str
    line: str = "-"


MODES = {
    "full": ModeStyle("all weights", "#0072b2", "o"),
    "frozen_encoder": ModeStyle("frozen encoder", "#56b4e9", "s"),
    "head_only": ModeStyle("head only", "#009e73", "^"),
    "as_pretrained": ModeStyle("as pretrained", "#cc79a7", "v"),
    "scratch": ModeStyle("from scratch", "#d55e00", "D"),
    "composition": ModeStyle("composition", "#59636e", "", "--"),
    "mean": ModeStyle("mean", "#9aa2ab", "", ":"),
}


def draw_errors(errors: pd.DataFrame, published: pd.DataFrame, task: pd.Series, folder: Path, name: str) -> Figure:
    """Draw the error against the number of labels, with a panel per subset, a line per mode, and published results."""
    subsets, has_stars = list(errors["subset"].unique()), False
    with mpl.rc_context(STYLE):
        width = min(8.6, 1.6 + 3.4 * len(subsets))
        figure, panels = plt.subplots(1, len(subsets), figsize=(width, 3.2), squeeze=False, layout="constrained")
        for axes, subset in zip(panels[0], subsets, strict=True):
            group = errors[errors["subset"] == subset]
            for mode, mode_style in MODES.items():
                curve = group[group["mode"] == mode].sort_values("labels")
                if curve.empty or (mode == "mean" and curve["mae"].min() > MAX_OVER_MEDIAN * group["mae"].median()):
                    continue
                style: Any = {
                    "color": mode_style.colour,
                    "marker": mode_style.marker,
                    "ls": mode_style.line,
                    "ms": 4.5,
                    "lw": 1.3,
                }
                span = np.abs(np.array([curve["mae"] - curve["mae_low"], curve["mae_high"] - curve["mae"]]))
                span = np.nan_to_num(span, posinf=0.0) if mode_style.marker else None
                axes.errorbar(curve["labels"], curve["mae"], yerr=span, capsize=2, label=mode_style.title, **style)
            others = published[(published["subset"] == subset) & (published["unit"] == task["unit"])]
            has_stars |= bool(len(others))
            if len(others):
                axes.plot(others["train"], others["value"], "*", color="#000000", ms=6, label="published")
            axes.set_xscale("log")
            axes.set_yscale("log")
            # wide intervals of few seeds may leave the panel, so that the curves remain distinguishable
            values = [v for v in (*group["mae"], *others["value"]) if v > 0 and np.isfinite(v)]
            if values:
                axes.set_ylim(0.5 * min(values), 2.0 * min(max(values), MAX_OVER_MEDIAN * float(group["mae"].median())))
            for axis, ends in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
                set_plain_ticks(axis, *ends)
            axes.set_xlabel("number of labels")
            axes.set_title(subset, fontsize=9)
        panels[0][0].set_ylabel(f"MAE, {task['unit']}")
        panels[0][-1].legend(frameon=False, fontsize=7.5)
        seeds, n_test = format_range(errors["seeds"], ".0f"), int(errors["test"].median())
        caption = (
            f"{task['label']}, {task['target']} ({task['data_origin']}): error on {n_test} held-out structures, mean of"
            f" {seeds} seeds with Student's 95% interval."
            + (" Stars: published results on the official data." if has_stars else "")
        )
        return save_figure(figure, folder, name, caption)


def draw_gains(gains: pd.DataFrame, folder: Path, name: str) -> Figure:
    """Draw the error of each mode divided by that of training from scratch, for the most labels of each task."""
    largest = select_most_labels(gains)
    rows = list(dict.fromkeys(zip(largest["label"], largest["subset"], largest["labels"], strict=True)))
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(7.0, 1.2 + 0.42 * len(rows)), layout="constrained")
        for j, mode in enumerate(m for m in MODES if m in set(largest["mode"])):
            mode_style, group = MODES[mode], largest[largest["mode"] == mode]
            positions = [
                rows.index(key) + 0.16 * (j - 1.5)
                for key in zip(group["label"], group["subset"], group["labels"], strict=True)
            ]
            span = np.nan_to_num(np.array([group["ratio"] - group["ratio_low"], group["ratio_high"] - group["ratio"]]))
            style: Any = {"color": mode_style.colour, "marker": mode_style.marker, "ls": "", "ms": 5, "capsize": 2}
            axes.errorbar(group["ratio"], positions, xerr=np.abs(span), label=mode_style.title, **style)
        axes.axvline(1.0, color="#59636e", lw=0.9, zorder=0)
        axes.set_xscale("log")
        low, high = largest["ratio"].min(), largest["ratio"].max()
        axes.set_xlim(0.7 * low, 1.5 * high)
        set_plain_ticks(axes.xaxis, *axes.get_xlim())
        axes.set_yticks(range(len(rows)), [f"{t}{f' {s}' if s else ''}, {n} labels" for t, s, n in rows])
        axes.invert_yaxis()
        axes.set_xlabel("error / error from scratch (lower is better)")
        axes.legend(frameon=False, fontsize=7.5)
        seeds = int(largest["seeds"].max())
        caption = (
            f"Gain from pretraining for {pluralize(len(rows), 'task or subset', 'tasks or subsets')}, with the most"
            f" labels of each: geometric mean of {pluralize(seeds, 'seed')} with Student's 95% interval, clipped at the"
            " axis."
        )
        return save_figure(figure, folder, name, caption)


def build_sections(context: PageContext) -> list[Section]:
    """Return a section for each campaign."""
    return [build_campaign_section(str(c), context) for c in context.tables["transfer_tasks"]["campaign"].unique()]


def build_campaign_section(campaign: str, context: PageContext) -> Section:
    """Return the section on the tasks of one campaign."""
    tasks = select_campaign(context.tables["transfer_tasks"], campaign)
    labels = label_cases(tasks["case"], (str(row["title"] or row["task"]) for row in list_rows(tasks)))
    tasks, errors, gains = (
        table.assign(label=table["case"].map(labels))
        for name in ("tasks", "errors", "gains")
        for table in [select_campaign(context.tables[f"transfer_{name}"], campaign)]
    )
    published = context.tables["transfer_published"]
    figures = [draw_gains(gains, context.figures, f"{campaign}-gains")] if len(gains) else []
    for case, group in errors.groupby("case", sort=False):
        row = tasks[tasks["case"] == case].iloc[0]
        is_only = (tasks["task"] == row["task"]).sum() == 1
        name = f"{campaign}-{row['task'] if is_only else row['case']}"
        figures.append(draw_errors(group, published[published["task"] == row["task"]], row, context.figures, name))
    blocks = [build_tasks_block(tasks), build_gains_block(gains), build_errors_block(errors)]
    paragraphs = describe_transfer(tasks, gains)
    title, finding = "Transfer to downstream tasks", summarize_gains(gains)
    return Section(title, f"transfer-{campaign}", paragraphs, figures, blocks, finding=finding)


def summarize_gains(gains: pd.DataFrame) -> str:
    """Return on how many tasks fine-tuning is better than training from scratch; empty without a comparison."""
    full = select_most_labels(gains[gains["mode"] == "full"])
    better, worse = int((full["ratio_high"] < 1).sum()), int((full["ratio_low"] > 1).sum())
    where = f"on {better} of {len(full)} tasks or subsets and is worse on {worse or 'none'}"
    return f"Fine-tuning beats training from scratch {where}" if len(full) else ""


def describe_transfer(tasks: pd.DataFrame, gains: pd.DataFrame) -> list[str]:
    """Return paragraphs on the tasks, and on fine-tuning compared with training from scratch."""
    finished = tasks[(tasks["available"] == True) & (tasks["state"] == "done")]  # noqa: E712
    stand_ins = sum(str(origin).startswith("stand-in") for origin in finished["data_origin"])
    text = [
        f"Models were trained on {len(finished)} of {len(tasks)} tasks, {stand_ins} of them with stand-ins for the"
        " official data. All modes of training have the same budget of steps, use a fifth of their labels for early"
        " stopping, and are tested on held-out structures. The baseline `composition` is a linear model of the"
        " composition, fitted to the same labels."
    ]
    full = select_most_labels(gains[gains["mode"] == "full"])
    if len(full):
        better = int((full["ratio_high"] < 1).sum())
        worse = int((full["ratio_low"] > 1).sum())
        text.append(
            "With the most labels, fine-tuning of all parameters is better than training from scratch on"
            f" {better} of {len(full)} tasks or subsets (the interval of the ratio is below 1) and worse on {worse};"
            " the differences on the others are within the scatter between seeds."
        )
    if n_absent := sum(r["available"] is False for r in list_rows(tasks)):
        text.append(f"{pluralize(n_absent, 'task')} not run for want of data: the table of tasks names the files.")
    return text


def select_most_labels(gains: pd.DataFrame) -> pd.DataFrame:
    """Return the rows with the most labels of each case, subset and mode."""
    if gains.empty:
        return gains
    return gains.loc[gains.groupby(["case", "subset", "mode"], sort=False)["labels"].idxmax()]


def build_tasks_block(tasks: pd.DataFrame) -> TableBlock:
    """Return the table of tasks."""
    columns: list[Column] = [
        ("task", "label"),
        ("target", lambda r: f"{r['target']} ({r['unit']})" if r["target"] else EN_DASH),
        ("data", lambda r: r["data_origin"] or f"not run; {r['needs'] or 'incomplete'}"),
        ("level of theory", text_cell("level_of_theory")),
        ("structures", number_cell("structures", ".0f")),
        ("structures left out", text_cell("excluded")),
        ("splits", text_cell("splits")),
        ("raw records", lambda r: link_run_folder(r["folder"])),
    ]
    note = (
        "A stand-in has other structures or another level of theory than the task, so its errors do not apply to the"
        " task."
    )
    return add_cost_columns(build_block("Tasks", list_rows(tasks), columns, note), tasks)


def build_gains_block(gains: pd.DataFrame) -> TableBlock:
    """Return the table of errors relative to training from scratch, with a row per task, subset and mode."""
    columns: list[Column] = [
        *build_fit_columns(),
        ("error / error from scratch", seed_interval_cell("ratio")),
        ("force error / force error from scratch", number_cell("force_ratio")),
        ("error / error of the composition", number_cell("composition_ratio")),
        ("seeds", "seeds"),
        ("diverged", "diverged"),
    ]
    note = (
        "Ratios are geometric means over seeds with Student's 95% interval, for the most labels; below 1, pretraining"
        " helps."
    )
    return build_block("Gain from pretraining", list_rows(select_most_labels(gains)), columns, note)


def build_errors_block(errors: pd.DataFrame) -> TableBlock:
    """Return the table of mean errors, with a row per task, subset, mode and number of labels."""
    columns: list[Column] = [
        *build_fit_columns(),
        ("MAE", seed_interval_cell("mae")),
        ("unit", "unit"),
        ("force MAE (eV/\N{ANGSTROM SIGN})", number_cell("force_mae")),
        ("seeds", "seeds"),
        ("diverged", "diverged"),
        ("test structures", "test"),
    ]
    return build_block(
        "Errors",
        list_rows(errors),
        columns,
        "Errors are means over seeds with Student's 95% interval, without the fits that have diverged.",
    )


def build_fit_columns() -> list[Column]:
    """Return the columns that identify a row: task, subset, mode and number of labels."""
    return [
        ("task", "label"),
        ("subset", text_cell("subset")),
        ("mode", lambda r: MODES[r["mode"]].title),
        ("number of labels", "labels"),
    ]


def seed_interval_cell(column: str) -> Callable[[Row], str]:
    """Return a function that formats a mean over seeds, with an interval if there are several seeds."""
    format_with_interval, format_alone = interval_cell(column, f"{column}_low", f"{column}_high"), number_cell(column)
    return lambda row: format_with_interval(row) if row["seeds"] > 1 else format_alone(row)
