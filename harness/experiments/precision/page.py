"""The page on the comparison of precisions."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pandas as pd

from harness.document.blocks import (
    EN_DASH,
    Column,
    Section,
    TableBlock,
    build_block,
    format_number,
    format_range,
    format_threads,
    interval_cell,
    label_cases,
    list_rows,
    number_cell,
    select_campaign,
    text_cell,
)
from harness.document.figures import Figure
from harness.experiments.cost.page import add_cost_columns
from harness.experiments.experiment import PageContext
from harness.experiments.physics import format_check, judge_checks
from harness.experiments.precision.figures import draw_deviation_against_speedup, draw_drift
from harness.experiments.precision.metrics import MAX_HARMLESS_FRACTION, REFERENCE, TYPES
from harness.experiments.rounds import describe_rounds
from harness.protocol.backbones import get_backbone_title
from harness.protocol.text import pluralize

MEV = 1e3
# The checks that low precision affects most.
SHOWN_CHECKS = ("rotation: forces", "forces from energies")
BACKBONE_COLUMN: Column = ("backbone", "title")
NOT_FINITE = "not finite"
# The column that is NaN if the predictions of a quantity are not finite.
DEVIATIONS = {"energy": "energy_deviation_mean_ev_per_atom", "force": "force_deviation_mean_ev_per_angstrom"}


def build_sections(context: PageContext) -> list[Section]:
    """Return a section for each campaign."""
    return [build_campaign_section(str(c), context) for c in context.tables["precision_costs"]["campaign"].unique()]


def build_campaign_section(campaign: str, context: PageContext) -> Section:
    """Return the section on one campaign."""
    costs = select_campaign(context.tables["precision_costs"], campaign)
    titles = label_cases(costs["case"], costs["backbone"].map(get_backbone_title))
    costs, inference, training, losses, modules, types, physics = (
        table.assign(title=table["case"].map(titles))
        for name in ("costs", "inference", "training", "losses", "modules", "types", "physics")
        for table in [select_campaign(context.tables[f"precision_{name}"], campaign)]
    )
    figures: list[Figure] = []
    low = inference[inference["precision"] != REFERENCE]
    if (low["force_deviation_mean_ev_per_angstrom"] > 0).any() and (low["energy_deviation_mean_ev_per_atom"] > 0).any():
        figures.append(draw_deviation_against_speedup(costs, inference, context.figures, f"{campaign}-errors"))
    if (losses["relative_deviation"] > 0).any():
        figures.append(draw_drift(losses, context.figures, f"{campaign}-drift"))
    blocks = [
        build_costs_block(costs),
        build_inference_block(inference),
        build_training_block(training),
        build_modules_block(modules),
        build_types_block(types),
    ]
    if len(physics):
        blocks.insert(2, build_precisions_physics_block(physics))
    title = f"Precision: {', '.join(p.upper() for p in costs['precision'].unique())}"
    paragraphs, finding = describe_comparison(costs, inference, training), summarize_precisions(costs, inference)
    paragraphs += describe_rounds(context.records, costs["folder"])
    return Section(title, f"precision-{campaign}", paragraphs, figures, blocks, finding=finding)


def summarize_precisions(costs: pd.DataFrame, inference: pd.DataFrame) -> str:
    """Return the range of speed-ups of each lower precision in inference, and for how many heads it is harmless."""
    texts = []
    for precision, rows in inference[inference["precision"] != REFERENCE].groupby("precision", sort=False):
        speedups = costs[(costs["phase"] == "inference") & (costs["precision"] == precision)]["speedup"].dropna()
        if len(speedups):
            texts.append(
                f"{str(precision).upper()} is {format_range(speedups, '.1f')} times as fast as FP64 and harmless for"
                f" {(rows['verdict'] == 'harmless').mean():.0%} of pairs of backbone and head"
            )
    return "; ".join(texts)


def describe_comparison(costs: pd.DataFrame, inference: pd.DataFrame, training: pd.DataFrame) -> list[str]:
    """Return paragraphs on device and data, with a summary of the verdicts."""
    devices = dict.fromkeys(f"{row['device']}, {format_threads(row['threads'])}" for row in list_rows(costs))
    text = [f"{pluralize(costs['backbone'].nunique(), 'backbone')} on {'; '.join(devices)}."]
    if "bf16" in set(costs["precision"]):
        text[0] += (
            " In BF16, parameters, sums, energies and forces are FP32, and matrix products of the encoder are BF16."
        )
    for precision, rows in inference[inference["precision"] != REFERENCE].groupby("precision", sort=False):
        harmless = int((rows["verdict"] == "harmless").sum())
        text.append(
            f"{str(precision).upper()} in inference adds at most {MAX_HARMLESS_FRACTION:.0%} of the model's error"
            f" against labels for {harmless} of {len(rows)} pairs of backbone and head."
        )
    if training["data_origin"].astype(str).str.startswith("stand-in").any():
        text.append(
            "The labels are those of the shipped datasets, which include stand-ins, and training is brief. Except for"
            " the shipped model, the errors against labels are those of models that have not converged."
        )
    diverged = costs[(costs["phase"] == "training") & ~costs["finite"].astype(bool)]
    if len(diverged):
        cases = ", ".join(f"{r['title']} in {r['precision'].upper()}" for r in list_rows(diverged))
        text.append(f"The training loss or its gradient became non-finite: {cases}.")
    return text


def build_costs_block(costs: pd.DataFrame) -> TableBlock:
    """Return the table of rates and memory, with a row per phase, backbone and precision."""
    ordered = costs.sort_values(["phase", "backbone"], ascending=[False, True], kind="stable")
    columns: list[Column] = [
        ("phase", "phase"),
        BACKBONE_COLUMN,
        ("precision", lambda r: r["precision"].upper()),
        ("structures/s [95%]", interval_cell("structures_per_s", "structures_per_s_low", "structures_per_s_high")),
        ("speed-up over FP64 [95%]", interval_cell("speedup")),
        ("peak memory (MiB)", number_cell("peak_bytes", ".0f", 2**-20)),
        ("rounds or steps", "samples"),
    ]
    note = (
        "The models run in eager mode, without compilation. Rates are medians with order-statistic intervals. Ratios to"
        " FP64 are computed within one step or round, in which the precisions alternate. Peak memory is the largest"
        " total of the tensors of one step or prediction."
    )
    return add_cost_columns(build_block("Throughput and memory", list_rows(ordered), columns, note), ordered)


def iter_lower_precisions(table: pd.DataFrame) -> Iterator[tuple[list[str], pd.DataFrame]]:
    """Yield the titles of each case and each precision except FP64, and their rows."""
    for (title, precision), rows in table.groupby(["title", "precision"], sort=False):
        if precision != REFERENCE:
            yield [str(title), str(precision).upper()], rows


def build_inference_block(inference: pd.DataFrame) -> TableBlock:
    """Return the table of the errors that lower precisions add: a row per backbone and precision, over all heads."""
    columns = [
        "backbone", "precision", "mean |dE| from FP64 (meV/atom)", "largest |dE| (meV/atom)",
        "mean |dF| from FP64 (meV/\N{ANGSTROM SIGN})", "largest |dF| (meV/\N{ANGSTROM SIGN})", "mean |dE| / MAE of E",
        "mean |dF| / MAE of F", "worst head", "heads for which it is harmless", "weights",
    ]  # fmt: skip
    body = []
    for names, rows in iter_lower_precisions(inference):
        worst = find_worst_head(rows)
        body.append(
            [
                *names,
                format_finite(MEV * rows["energy_deviation_mean_ev_per_atom"].mean(skipna=False)),
                format_finite(MEV * rows["energy_deviation_max_ev_per_atom"].max(skipna=False)),
                format_finite(MEV * rows["force_deviation_mean_ev_per_angstrom"].mean(skipna=False)),
                format_finite(MEV * rows["force_deviation_max_ev_per_angstrom"].max(skipna=False)),
                *(
                    NOT_FINITE if math.isnan(worst[deviation]) else format_number(worst[f"{quantity}_fraction"], ".2%")
                    for quantity, deviation in DEVIATIONS.items()
                ),
                worst["head"],
                f"{int((rows['verdict'] == 'harmless').sum())} of {len(rows)}",
                worst["weights"],
            ]
        )
    note = (
        "All precisions use the same weights. The ratios compare the mean difference from FP64 with the model's MAE"
        " against labels, for the worst head: one whose predictions are not finite, or else the one with the largest"
        f" ratio. A precision is harmless if both ratios are at most {MAX_HARMLESS_FRACTION:.0%}; heads without force"
        " labels are judged by their energies alone. All heads are in tables/precision_inference.csv."
    )
    return TableBlock("Inference: differences from FP64", columns, body, note)


def find_worst_head(rows: pd.DataFrame) -> pd.Series:
    """Return the row of the first head whose predictions are not finite, or else that of the largest ratio."""
    ratios = rows[["energy_fraction", "force_fraction"]].max(axis=1).fillna(-math.inf)
    return rows.iloc[int(ratios.mask(rows["verdict"] == NOT_FINITE, math.inf).argmax())]


def format_finite(value: float, spec: str = ".2g") -> str:
    """Return a number as text, or `not finite` for NaN."""
    return NOT_FINITE if math.isnan(value) else format_number(value, spec)


def build_precisions_physics_block(physics: pd.DataFrame) -> TableBlock:
    """Return the table of the physics of each backbone and precision: the verdict, and the violations of two checks."""
    columns = ["backbone", "precision", "physics", "checks passed", *SHOWN_CHECKS, "reason"]
    body = []
    for (title, precision), rows in physics.groupby(["title", "precision"], sort=False):
        checks = list_rows(rows)
        worst = []
        for name in SHOWN_CHECKS:
            measured = [r for r in checks if r["check"] == name and r["passed"] is not None]
            worst.append(format_check(max(measured, key=lambda r: r["value"])) if measured else EN_DASH)
        verdict, reason = judge_checks(checks)
        passed = f"{sum(r['passed'] is True for r in checks)} of {len(checks)}"
        body.append([str(title), str(precision).upper(), verdict, passed, *worst, reason])
    note = (
        "The weights are the same as above. The columns of the two checks show the larger of the violations for the"
        " crystal and the molecule; in brackets, the tolerance for rounding errors in this precision. All checks are in"
        " tables/precision_physics.csv."
    )
    return TableBlock("Physics of each precision", columns, body, note)


def build_training_block(training: pd.DataFrame) -> TableBlock:
    """Return the table of test errors relative to training in FP64, with a row per backbone and precision."""
    columns = [
        "backbone", "trained in", "MAE(E) / MAE(E) in FP64, median of heads", "range of E",
        "MAE(F) / MAE(F) in FP64, median of heads", "range of F", "heads",
    ]  # fmt: skip
    body = []
    for names, rows in iter_lower_precisions(training):
        ratios: list[str] = []
        for column in ("energy_ratio", "force_ratio"):
            values = rows[column].dropna()
            ratios += [format_number(values.median(), ".3f"), format_range(values, ".3f")]
        body.append([*names, *ratios, str(len(rows))])
    note = (
        "All precisions start from equal weights and use equal batches and one seed. Absolute errors are in"
        " tables/precision_training.csv."
    )
    return TableBlock("Training: errors on held-out structures", columns, body, note)


def build_modules_block(modules: pd.DataFrame) -> TableBlock:
    """Return the table of the modules in which errors arise and are largest, with a row per backbone and precision."""
    columns = [
        "backbone", "precision", "error arises in", "error there, |x - x64| / |x64|", "error is largest in",
        "largest error", "error of that module's input", "error of the heads",
    ]  # fmt: skip
    body = []
    for names, rows in iter_lower_precisions(modules):
        ordered = rows.sort_values("order").astype({"input": float, "output": float})
        # other modules without an error have outputs of 0
        is_finite = ordered[ordered["module"] == "heads"]["output"].notna().all()
        known = ordered[ordered["output"].notna()]
        if known.empty:
            body.append([*names, *[EN_DASH] * 5, EN_DASH if is_finite else NOT_FINITE])
            continue
        largest, last = known.iloc[int(known["output"].argmax())], known.iloc[-1]
        first = known[known["output"] >= 0.5 * known["output"].median()].iloc[0]
        end = known[known["module"] == "heads"]["output"]
        body.append(
            [
                *names,
                f"{first['module']} ({first['kind']})",
                format_number(first["output"], ".1e"),
                *(
                    [
                        f"{largest['module']} ({largest['kind']})",
                        format_number(largest["output"], ".1e"),
                        format_number(largest["input"], ".1e"),
                        format_number(end.iloc[0] if len(end) else None, ".1e"),
                    ]
                    if is_finite
                    else [f"after {last['module']} ({last['kind']})", NOT_FINITE, EN_DASH, NOT_FINITE]
                ),
            ]
        )
    note = (
        "The outputs of every module for one batch of energies are compared with those of FP64 and the same weights."
        " The error arises in the first module whose error is at least half of the median. If the energies are not"
        " finite, the table names the last module with a finite error. All modules are in"
        " tables/precision_modules.csv."
    )
    return TableBlock("Errors by module", columns, body, note)


def build_types_block(types: pd.DataFrame) -> TableBlock:
    """Return the table of the requested precisions and the observed types."""
    columns: list[Column] = [
        BACKBONE_COLUMN,
        ("requested", lambda r: r["precision"].upper()),
        *((name.replace("_", " "), text_cell(name)) for name in TYPES["types"]),
    ]
    return build_block("Types observed in one pass", list_rows(types), columns)
