"""The sections on multi-task against single-task training, on the page of training."""

from __future__ import annotations

import pandas as pd

from harness.document.blocks import EN_DASH, Section, TableBlock, format_number, number_cell, rows_as_dicts
from harness.experiments.experiment import PageContext
from harness.experiments.training.descriptions import (
    MEV,
    QUANTITY_TITLES,
    UNITS,
    describe_dataset,
    describe_model,
    describe_runs,
    describe_setup,
    format_estimate,
    format_range,
    join_unique,
)
from harness.experiments.training.figures import draw_ablation_ratios
from harness.experiments.training.multitask import TOLERANCE
from harness.experiments.training.quantities import QUANTITIES
from harness.protocol.text import count
from harness.results.tables import Row


def build_ablation_sections(context: PageContext) -> list[Section]:
    """Return a section for each multi-task experiment that has single-task baselines."""
    experiments = context.tables["ablation_heads"]["experiment"].unique()
    return [build_ablation_section(experiment, context) for experiment in experiments]


def build_ablation_section(experiment: str, context: PageContext) -> Section:
    """Return the errors of each head of a model trained on all sets, and of a model trained on its set alone."""
    runs = context.tables["training_runs"]
    rows, overall, errors, multi_task = (
        table[table["experiment"] == experiment]
        for table in (
            context.tables["ablation_heads"],
            context.tables["ablation_overall"],
            context.tables["training_errors"],
            runs,
        )
    )
    single_task = runs[(runs["recipe"] == multi_task["recipe"].iloc[0]) & (runs["task"] == "single-task")]
    both = pd.concat([multi_task, single_task])
    paragraphs = [
        describe_setup(multi_task, errors),
        describe_budget(both),
        *describe_verdicts(rows, overall),
        *describe_runs(both),
    ]
    name = f"ablation-{experiment}"
    drawn = [draw_ablation_ratios(rows, context.figures, name)]
    blocks = [build_errors_block(errors, rows), build_runs_block(multi_task, single_task)]
    return Section(f"Multi-task against single-task: {describe_model(multi_task)}", name, paragraphs, drawn, blocks)


def describe_budget(runs: pd.DataFrame) -> str:
    """Return whether all runs drew the same number of structures, in total or of each set."""
    totals = sorted(set(runs["budget"]))
    if len(totals) == 1:
        return f"Equal budgets: {totals[0]:,} structures drawn in training by every run, of one set or of all."
    per_set = sorted(set(runs["budget"] // runs["sets"]))
    if len(per_set) == 1:
        return (
            f"Equal budgets: {per_set[0]:,} structures of each set drawn in training, by the model that learns it alone"
            f" or by that of all; the models of one set together cost what the other costs ({totals[-1]:,})."
        )
    return f"WRONG: budgets differ, from {totals[0]:,} to {totals[-1]:,} structures drawn in training by a run."


def describe_verdicts(rows: pd.DataFrame, overall: pd.DataFrame) -> list[str]:
    """Return the geometric mean over heads of each quantity, and the heads that are worse."""
    text = []
    for r in rows_as_dicts(overall):
        of_quantity = rows[rows["quantity"] == r["quantity"]]
        worse = rows_as_dicts(of_quantity[of_quantity["verdict"] != "ok"])
        names = [
            f"{o['head']} ({format_number(o['ratio'], '.2f') + 'x' if o['ratio'] else 'not finite'})" for o in worse
        ]
        text.append(
            f"{QUANTITY_TITLES[r['quantity']]}: the multi-task error is {format_estimate(r, 'ratio', 1.0, '.2f')} times"
            f" the single-task one, geometric mean over {r['heads']} heads and {count(r['seeds'], 'seed')}. Worse by"
            f" more than {TOLERANCE - 1:.0%}: {', '.join(names) or 'none'}."
        )
    return text


def build_errors_block(errors: pd.DataFrame, rows: pd.DataFrame) -> TableBlock:
    """Return both errors of each head and their ratio."""
    columns = ["data", "level of theory", "test structures"]
    for q in QUANTITIES:
        columns += [f"{q.name}, multi-task ({UNITS[q.name]})", "single-task", "ratio [95%]", "verdict"]
    by_head = {(r["head"], r["quantity"]): r for r in rows_as_dicts(rows)}
    body = []
    for about in rows_as_dicts(errors.drop_duplicates("head")):
        line = [describe_dataset(about), about["level"] or EN_DASH, format_number(about["structures"], ",.0f")]
        for q in QUANTITIES:
            row = by_head.get((about["head"], q.name))
            line += [EN_DASH] * 4 if row is None else format_comparison(row)
        body.append(line)
    note = (
        "MAE on the same held-out structures, means over the seeds that both have. Ratios: geometric means of pairs of"
        f" one seed with Student's 95% interval of their logarithms. Worse: larger by more than {TOLERANCE - 1:.0%}. A"
        " dash: no force labels, or no pair of runs."
    )
    return TableBlock("Held-out errors", columns, body, note)


def format_comparison(row: Row) -> list[str]:
    """Return both errors, their ratio, and the verdict."""
    errors = [number_cell(column, scale=MEV)(row) for column in ("multi_task", "single_task")]
    return [*errors, format_estimate(row, "ratio", 1.0, ".2f"), row["verdict"]]


def build_runs_block(multi_task: pd.DataFrame, single_task: pd.DataFrame) -> TableBlock:
    """Return what the runs of either kind took, from the least to the most."""
    columns = [
        "training", "runs", "seeds", "asked for", "found", "compiled", "steps", "time (s)", "graphs/s",
        "waiting for data", "parameters",
    ]  # fmt: skip
    body = [
        [
            task,
            str(len(runs)),
            join_unique(runs["seed"]),
            join_unique(runs["precision"]).upper(),
            join_unique(runs["found"]),
            f"{runs['compiled'].astype(bool).sum()} runs",
            format_range(runs["steps"], ",.0f"),
            format_range(runs["train_s"]),
            format_range(runs["graphs_per_s"]),
            format_range(runs["waiting"], ".1%"),
            format_range(runs["parameters"], ",.0f"),
        ]
        for task, runs in (("multi-task", multi_task), ("single-task, all heads", single_task))
    ]
    note = "From the least to the most of all runs; each one in tables/training_runs.csv."
    return TableBlock("Runs", columns, body, note)
