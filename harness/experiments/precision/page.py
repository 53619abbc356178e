"""The page on precision."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from harness.document.blocks import (
    Column,
    Section,
    TableBlock,
    build_block,
    format_number,
    format_threads,
    interval_cell,
    number_cell,
    rows_as_dicts,
    select_campaign,
    text_cell,
)
from harness.document.figures import Figure
from harness.experiments.cost.page import add_cost_columns
from harness.experiments.experiment import PageContext
from harness.experiments.precision.figures import draw_drift, draw_error_against_rate
from harness.experiments.precision.metrics import HARMLESS, REFERENCE, TYPES
from harness.protocol.backbones import name_backbone
from harness.protocol.text import count

MEV = 1e3
BACKBONE_COLUMN: Column = ("backbone", lambda r: name_backbone(r["backbone"]))


def build_sections(context: PageContext) -> list[Section]:
    """Return a section for each campaign."""
    return [build_campaign_section(str(c), context) for c in context.tables["precision_costs"]["campaign"].unique()]


def build_campaign_section(campaign: str, context: PageContext) -> Section:
    """Return the section on one campaign."""
    costs, inference, training, losses, modules, types = (
        select_campaign(context.tables[f"precision_{name}"], campaign)
        for name in ("costs", "inference", "training", "losses", "modules", "types")
    )
    drawn: list[Figure] = []
    low = inference[inference["precision"] != REFERENCE]
    if (low["force_off_mean_ev_per_a"] > 0).any() and (low["energy_off_mean_ev_per_atom"] > 0).any():
        drawn.append(draw_error_against_rate(costs, inference, context.figures, f"{campaign}-errors"))
    if (losses["off"] > 0).any():
        drawn.append(draw_drift(losses, context.figures, f"{campaign}-drift"))
    blocks = [
        build_costs_block(costs),
        build_inference_block(inference),
        build_training_block(training),
        build_modules_block(modules),
        build_types_block(types),
    ]
    title = f"Precision: {', '.join(p.upper() for p in costs['precision'].unique())}"
    return Section(title, f"precision-{campaign}", describe_study(costs, inference, training), drawn, blocks)


def describe_study(costs: pd.DataFrame, inference: pd.DataFrame, training: pd.DataFrame) -> list[str]:
    """Return device, data, and the sum of the verdicts."""
    first = costs.iloc[0]
    text = [
        f"{count(costs['backbone'].nunique(), 'backbone')} on {first['device']}, {format_threads(first['threads'])}."
        " BF16: parameters, sums, energies and forces in FP32, matrix products of the encoder in BF16."
    ]
    for precision, rows in inference[inference["precision"] != REFERENCE].groupby("precision", sort=False):
        fine = int((rows["verdict"] == "harmless").sum())
        text.append(
            f"{str(precision).upper()} in inference: on {fine} of {len(rows)} backbones and heads it adds at most"
            f" {HARMLESS:.0%} of the error that the model has against labels."
        )
    if training["role"].astype(str).str.startswith("stand-in").any():
        text.append(
            "Labels are those of the shipped sets, stand-ins among them, and training is brief: errors against labels"
            " are those of models that have hardly learnt, except where the shipped model predicts."
        )
    diverged = costs[~costs["finite"].astype(bool)]
    if len(diverged):
        cases = ", ".join(
            f"{name_backbone(r['backbone'])} in {r['precision'].upper()}" for r in rows_as_dicts(diverged)
        )
        text.append(f"Training came to a loss that is no number: {cases}.")
    return text


def build_costs_block(costs: pd.DataFrame) -> TableBlock:
    """Return rate and memory of each task, backbone and precision."""
    ordered = costs.sort_values(["task", "backbone"], ascending=[False, True], kind="stable")
    columns: list[Column] = [
        ("task", "task"),
        BACKBONE_COLUMN,
        ("precision", lambda r: r["precision"].upper()),
        ("structures/s [95%]", interval_cell("structures_per_s", "low", "high")),
        ("over FP64 [95%]", interval_cell("speedup")),
        ("peak memory (MiB)", number_cell("peak_bytes", ".0f", 2**-20)),
        ("n", "samples"),
    ]
    note = (
        "Eager, not compiled. Medians with order-statistic intervals; over FP64: pairs of one step or round, all"
        " precisions in turn. Memory: the most that tensors of one step or prediction held at once."
    )
    return add_cost_columns(build_block("Throughput and memory", rows_as_dicts(ordered), columns, note), ordered)


def iterate_precisions(table: pd.DataFrame) -> Iterator[tuple[list[str], pd.DataFrame]]:
    """Yield the name of each backbone and lower precision, and their rows."""
    for (backbone, precision), rows in table.groupby(["backbone", "precision"], sort=False):
        if precision != REFERENCE:
            yield [name_backbone(str(backbone)), str(precision).upper()], rows


def build_inference_block(inference: pd.DataFrame) -> TableBlock:
    """Return what low precision adds to the errors, over the heads of each backbone."""
    columns = [
        "backbone", "precision", "|dE| from FP64 (meV/atom)", "largest", "|dF| from FP64 (meV/\N{ANGSTROM SIGN})",
        "largest", "of the error in E", "of the error in F", "worst head", "heads: harmless", "weights",
    ]  # fmt: skip
    body = []
    for names, rows in iterate_precisions(inference):
        shares = rows[["energy_share", "force_share"]].max(axis=1).fillna(float("inf"))
        worst = rows.iloc[int(shares.argmax())]
        body.append(
            [
                *names,
                format_number(MEV * rows["energy_off_mean_ev_per_atom"].mean(), ".2g"),
                format_number(MEV * rows["energy_off_max_ev_per_atom"].max(), ".2g"),
                format_number(MEV * rows["force_off_mean_ev_per_a"].mean(), ".2g"),
                format_number(MEV * rows["force_off_max_ev_per_a"].max(), ".2g"),
                format_number(rows["energy_share"].max(), ".2%"),
                format_number(rows["force_share"].max(), ".2%"),
                worst["head"],
                f"{int((rows['verdict'] == 'harmless').sum())} of {len(rows)}",
                worst["weights"],
            ]
        )
    note = (
        "One set of weights, cast. Of the error: the distance from FP64 over the model's error against labels, on the"
        f" worst head; harmless: at most {HARMLESS:.0%} in both. Every head is in tables/precision_inference.csv."
    )
    return TableBlock("Inference: distance from FP64, and from labels", columns, body, note)


def build_training_block(training: pd.DataFrame) -> TableBlock:
    """Return the test errors of models trained in each precision, over those of FP64."""
    columns = [
        "backbone", "trained in", "MAE(E) over FP64's, median of heads", "range", "MAE(F) over FP64's", "range", "heads"
    ]  # fmt: skip
    body = []
    for names, rows in iterate_precisions(training):
        ratios: list[str] = []
        for column in ("energy_ratio", "force_ratio"):
            values = rows[column].dropna()
            ratios += [
                format_number(values.median(), ".3f"),
                f"{format_number(values.min(), '.3f')} to {format_number(values.max(), '.3f')}",
            ]
        body.append([*names, *ratios, str(len(rows))])
    note = "Equal weights at the start, equal batches, one seed. Absolute errors: tables/precision_training.csv."
    return TableBlock("Training: errors on held-out structures", columns, body, note)


def build_modules_block(modules: pd.DataFrame) -> TableBlock:
    """Return the module where the error enters, and the one where it is largest."""
    columns = [
        "backbone", "precision", "enters at", "|x - x64| / |x64|", "largest at", "there", "of its input", "at the heads"
    ]  # fmt: skip
    body = []
    for names, rows in iterate_precisions(modules[modules["output"].notna()]):
        ordered = rows.sort_values("order")
        largest = ordered.iloc[int(ordered["output"].astype(float).argmax())]
        first = ordered[ordered["output"] >= 0.5 * ordered["output"].median()].iloc[0]
        end = ordered[ordered["module"] == "heads"]["output"]
        body.append(
            [
                *names,
                f"{first['module']} ({first['kind']})",
                format_number(first["output"], ".1e"),
                f"{largest['module']} ({largest['kind']})",
                format_number(largest["output"], ".1e"),
                format_number(largest["input"], ".1e"),
                format_number(end.iloc[0] if len(end) else None, ".1e"),
            ]
        )
    note = (
        "One batch, energies; every module's output compared with that of the same weights in FP64. Enters at: the"
        " first whose error is at least half of the median. All modules: tables/precision_modules.csv."
    )
    return TableBlock("Where precision is lost", columns, body, note)


def build_types_block(types: pd.DataFrame) -> TableBlock:
    """Return the types that were asked for, and those that were found."""
    columns: list[Column] = [
        BACKBONE_COLUMN,
        ("asked for", lambda r: r["precision"].upper()),
        *((name.replace("_", " "), text_cell(name)) for name in TYPES["types"]),
    ]
    return build_block("Types as observed in one pass", rows_as_dicts(types), columns)
