"""The sections on multi-task against single-task training, on the page of training."""

from __future__ import annotations

import pandas as pd

from harness.document.blocks import EN_DASH, Section, TableBlock, format_number, format_range, list_rows, number_cell
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
    join_unique,
)
from harness.experiments.training.figures import draw_ablation_ratios
from harness.experiments.training.multitask import TOLERANCE
from harness.experiments.training.quantities import QUANTITIES
from harness.protocol.text import pluralize
from harness.results.tables import Row


def build_ablation_sections(context: PageContext) -> list[Section]:
    """Return a section for each multi-task setup that has single-task runs to compare with."""
    setups = context.tables["ablation_heads"]["setup"].unique()
    return [build_ablation_section(setup, context) for setup in setups]


def build_ablation_section(setup: str, context: PageContext) -> Section:
    """Return the section on a model trained on all datasets, compared with models trained on one dataset each."""
    runs = context.tables["training_runs"]
    rows, overall, errors, multi_task = (
        table[table["setup"] == setup]
        for table in (
            context.tables["ablation_heads"],
            context.tables["ablation_overall"],
            context.tables["training_errors"],
            runs,
        )
    )
    single_task = runs[(runs["recipe"] == multi_task["recipe"].iloc[0]) & (runs["regime"] == "single-task")]
    all_runs = pd.concat([multi_task, single_task])
    paragraphs = [
        describe_setup(multi_task, errors),
        describe_budget(all_runs),
        *describe_verdicts(rows, overall),
        *describe_runs(all_runs),
    ]
    name = f"ablation-{setup}"
    figures = [draw_ablation_ratios(rows, context.figures, name)]
    blocks = [build_errors_block(errors, rows), build_runs_block(multi_task, single_task)]
    title = f"Multi-task against single-task: {describe_model(multi_task)}"
    ratios = [
        f"{r['quantity'].removesuffix('s')} errors by {format_estimate(r, 'ratio', 1.0, '.2f')}"
        for r in list_rows(overall)
    ]
    finding = f"Multi-task training multiplies {' and '.join(ratios)}" if ratios else ""
    return Section(title, name, paragraphs, figures, blocks, finding=finding)


def describe_budget(runs: pd.DataFrame) -> str:
    """Return a paragraph that says whether runs sample equal numbers of structures, in total or of each dataset."""
    totals = sorted(set(runs["budget"]))
    if len(totals) == 1:
        return f"Equal budgets: every run samples {totals[0]:,} structures in training, of one dataset or of all."
    per_set = sorted(set(runs["budget"] // runs["datasets"]))
    if len(per_set) == 1:
        return (
            f"Equal budgets: both kinds of training sample {per_set[0]:,} structures of each dataset, so that the"
            f" single-task runs in total cost as much as a multi-task run ({totals[-1]:,} structures)."
        )
    return f"Incorrect: budgets differ, from {totals[0]:,} to {totals[-1]:,} structures sampled in training."


def describe_verdicts(rows: pd.DataFrame, overall: pd.DataFrame) -> list[str]:
    """Return a paragraph per quantity: the mean ratio of the errors, and the heads with larger multi-task errors."""
    text = []
    for r in list_rows(overall):
        heads = rows[rows["quantity"] == r["quantity"]]
        worse = list_rows(heads[heads["verdict"] != "ok"])
        names = [
            f"{w['head']} ({format_number(w['ratio'], '.2f') + 'x' if w['ratio'] else 'not finite'})" for w in worse
        ]
        text.append(
            f"{QUANTITY_TITLES[r['quantity']]}: the multi-task error is {format_estimate(r, 'ratio', 1.0, '.2f')} times"
            f" the single-task error, as a geometric mean over {r['heads']} heads and"
            f" {pluralize(r['seeds'], 'seed')}. Worse by more than {TOLERANCE - 1:.0%}: {', '.join(names) or 'none'}."
        )
    return text


def build_errors_block(errors: pd.DataFrame, rows: pd.DataFrame) -> TableBlock:
    """Return the table of the held-out errors of each head in both kinds of training, and of their ratio."""
    columns = ["data", "level of theory", "test structures"]
    for q in QUANTITIES:
        columns += [f"{q.name}, multi-task ({UNITS[q.name]})", f"{q.name}, single-task ({UNITS[q.name]})"]
        columns += [f"{q.name}, multi-task / single-task [95%]", f"{q.name}, verdict"]
    by_head = {(r["head"], r["quantity"]): r for r in list_rows(rows)}
    body = []
    for head_row in list_rows(errors.drop_duplicates("head")):
        structures = format_number(head_row["structures"], ",.0f")
        line = [describe_dataset(head_row), head_row["level_of_theory"] or EN_DASH, structures]
        for q in QUANTITIES:
            row = by_head.get((head_row["head"], q.name))
            line += [EN_DASH] * 4 if row is None else format_comparison(row)
        body.append(line)
    note = (
        "The MAE on the same held-out structures is averaged over the seeds that both kinds of training have. Ratios"
        " are geometric means over seeds with Student's 95% interval of the logarithms. A head is worse if its error"
        f" is larger by more than {TOLERANCE - 1:.0%}. A dash means that there are no force labels, or no pair of"
        " runs."
    )
    return TableBlock("Held-out errors", columns, body, note)


def format_comparison(row: Row) -> list[str]:
    """Return both errors, their ratio, and the verdict as cells of a table."""
    errors = [number_cell(column, scale=MEV)(row) for column in ("multi_task", "single_task")]
    return [*errors, format_estimate(row, "ratio", 1.0, ".2f"), row["verdict"]]


def build_runs_block(multi_task: pd.DataFrame, single_task: pd.DataFrame) -> TableBlock:
    """Return the table of runs, with ranges over the runs of each kind of training."""
    columns = [
        "training", "runs", "seeds", "requested precision", "observed types", "compiled", "steps", "time (s)",
        "structures/s", "waiting for data, share of the time", "parameters",
    ]  # fmt: skip
    body = [
        [
            task,
            str(len(runs)),
            join_unique(runs["seed"]),
            join_unique(runs["precision"]).upper(),
            join_unique(runs["observed_dtypes"]),
            f"{runs['compiled'].astype(bool).sum()} runs",
            format_range(runs["steps"], ",.0f"),
            format_range(runs["train_s"]),
            format_range(runs["structures_per_s"]),
            format_range(runs["data_wait_fraction"], ".1%"),
            format_range(runs["parameters"], ",.0f"),
        ]
        for task, runs in (("multi-task", multi_task), ("single-task, all heads", single_task))
    ]
    note = "The numbers are ranges over all runs; the individual runs are in tables/training_runs.csv."
    return TableBlock("Runs", columns, body, note)
