"""The page on the comparison of precisions, and its figures."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import pandas as pd

from harness.document.blocks import (
    EN_DASH,
    Column,
    Section,
    TableBlock,
    build_block,
    format_number,
    format_threads,
    interval_cell,
    list_rows,
    number_cell,
    select_campaign,
    text_cell,
)
from harness.document.figures import STYLE, Figure, save_figure, set_plain_ticks
from harness.experiments.cost.page import add_cost_columns
from harness.experiments.experiment import PageContext
from harness.experiments.physics import format_check, judge_checks
from harness.experiments.precision.metrics import MAX_HARMLESS_FRACTION, REFERENCE, TYPES
from harness.experiments.rounds import describe_rounds
from harness.protocol.backbones import BACKBONES, GREY, find_backbone, get_backbone_title
from harness.protocol.text import pluralize

MARKERS = {"fp64": "o", "fp32": "s", "bf16": "^"}


def draw_error_against_rate(costs: pd.DataFrame, inference: pd.DataFrame, folder: Path, name: str) -> Figure:
    """Draw the difference from FP64 against the speed-up, with a colour per backbone and a marker per precision."""
    groups = inference[inference["precision"] != REFERENCE].groupby(["backbone", "precision"], sort=False)
    with mpl.rc_context(STYLE):
        figure, panels = plt.subplots(1, 2, figsize=(8.6, 3.6), layout="constrained")
        columns = ("energy_deviation_mean_ev_per_atom", "force_deviation_mean_ev_per_angstrom")
        labels = ("energy, meV/atom from FP64", "forces, meV/\N{ANGSTROM SIGN} from FP64")
        rates = costs[costs["phase"] == "inference"].set_index(["backbone", "precision"])
        for axes, column, label in zip(panels, columns, labels, strict=True):
            for (backbone, precision), rows in groups:
                style: Any = {
                    "color": find_backbone(backbone).colour,
                    "marker": MARKERS.get(str(precision), "o"),
                }
                speedup = rates["speedup"].get((str(backbone), str(precision)), math.nan)
                axes.plot(speedup, 1e3 * rows[column].mean(), ls="", ms=5, **style)
            axes.axvline(1.0, color=GREY, lw=0.8, zorder=0)
            axes.set_yscale("log")
            axes.set_xscale("log")
            set_plain_ticks(axes.xaxis, *axes.get_xlim())
            axes.set_xlabel("throughput of inference / FP64")
            axes.set_ylabel(label)
        backbones = [b for name, b in BACKBONES.items() if name in set(inference["backbone"])]
        handles = [mpl.lines.Line2D([], [], color=b.colour, marker=".", ls="", label=b.title) for b in backbones]
        handles += [
            mpl.lines.Line2D([], [], color=GREY, marker=m, ls="", label=p.upper())
            for p, m in MARKERS.items() if p in set(inference["precision"]) - {REFERENCE}
        ]  # fmt: skip
        figure.legend(handles=handles, loc="outside lower center", ncols=8, frameon=False, fontsize=8)
        caption = (
            "Errors and speed-ups of lower precisions in inference: mean difference from FP64 over the held-out"
            f" structures of {pluralize(inference['head'].nunique(), 'head')}, and the median of ratios of throughput"
            " within a round. Points to the right of the line are faster than FP64."
        )
        return save_figure(figure, folder, name, caption, card=0)


def draw_drift(losses: pd.DataFrame, folder: Path, name: str) -> Figure:
    """Draw the relative difference of the training loss from that of FP64 at each step, in a panel per backbone."""
    backbones = list(losses["backbone"].unique())
    columns = min(3, len(backbones))
    lines = -(-len(backbones) // columns)
    with mpl.rc_context(STYLE):
        size = (2.7 * columns + 0.6, 1.9 * lines + 0.7)
        figure, grid = plt.subplots(lines, columns, figsize=size, layout="constrained", squeeze=False, sharey=True)
        for axes in grid.flat[len(backbones) :]:
            axes.set_axis_off()
        for axes, backbone in zip(grid.flat, backbones, strict=False):
            group = losses[
                (losses["backbone"] == backbone)
                & (losses["precision"] != REFERENCE)
                & (losses["relative_deviation"] > 0)
            ]
            for precision, rows in group.groupby("precision", sort=False):
                style: Any = {"lw": 1.0, "color": {"fp32": "#0072b2", "bf16": "#d55e00"}.get(str(precision), GREY)}
                axes.plot(rows["step"], rows["relative_deviation"], label=str(precision).upper(), **style)
            axes.set_yscale("log")
            axes.set_title(get_backbone_title(backbone), fontsize=9)
        grid.flat[0].legend(frameon=False, fontsize=8)
        figure.supxlabel("step", fontsize=9)
        figure.supylabel("|loss / loss in FP64 - 1|", fontsize=9)
        caption = (
            "Difference of the training loss from that of FP64, from equal weights on equal batches. Small differences"
            " grow with the steps in any precision; the differences in the first steps are rounding errors."
        )
        return save_figure(figure, folder, name, caption)


MEV = 1e3
# The checks that low precision affects most.
SHOWN_CHECKS = ("rotation: forces", "forces from energies")
BACKBONE_COLUMN: Column = ("backbone", lambda r: get_backbone_title(r["backbone"]))


def build_sections(context: PageContext) -> list[Section]:
    """Return a section for each campaign."""
    return [build_campaign_section(str(c), context) for c in context.tables["precision_costs"]["campaign"].unique()]


def build_campaign_section(campaign: str, context: PageContext) -> Section:
    """Return the section on one campaign."""
    costs, inference, training, losses, modules, types, physics = (
        select_campaign(context.tables[f"precision_{name}"], campaign)
        for name in ("costs", "inference", "training", "losses", "modules", "types", "physics")
    )
    figures: list[Figure] = []
    low = inference[inference["precision"] != REFERENCE]
    if (low["force_deviation_mean_ev_per_angstrom"] > 0).any() and (low["energy_deviation_mean_ev_per_atom"] > 0).any():
        figures.append(draw_error_against_rate(costs, inference, context.figures, f"{campaign}-errors"))
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
                f"{str(precision).upper()} is {speedups.min():.1f} to {speedups.max():.1f} times as fast as FP64 and"
                f" harmless for {(rows['verdict'] == 'harmless').mean():.0%} of backbones and heads"
            )
    return "; ".join(texts)


def describe_comparison(costs: pd.DataFrame, inference: pd.DataFrame, training: pd.DataFrame) -> list[str]:
    """Return paragraphs on device and data, with a summary of the verdicts."""
    first = costs.iloc[0]
    text = [
        f"{pluralize(costs['backbone'].nunique(), 'backbone')} on {first['device']},"
        f" {format_threads(first['threads'])}. In BF16, parameters, sums, energies and forces are FP32, and"
        " matrix products of the encoder are BF16."
    ]
    for precision, rows in inference[inference["precision"] != REFERENCE].groupby("precision", sort=False):
        harmless = int((rows["verdict"] == "harmless").sum())
        text.append(
            f"{str(precision).upper()} in inference adds at most {MAX_HARMLESS_FRACTION:.0%} of the model's error"
            f" against labels for {harmless} of {len(rows)} backbones and heads."
        )
    if training["data_origin"].astype(str).str.startswith("stand-in").any():
        text.append(
            "The labels are those of the shipped datasets, which include stand-ins, and training is brief. Except for"
            " the shipped model, the errors against labels are those of models that have not converged."
        )
    diverged = costs[~costs["finite"].astype(bool)]
    if len(diverged):
        cases = ", ".join(
            f"{get_backbone_title(r['backbone'])} in {r['precision'].upper()}" for r in list_rows(diverged)
        )
        text.append(f"The training loss became non-finite: {cases}.")
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
    """Yield the titles of each backbone and each precision except FP64, and their rows."""
    for (backbone, precision), rows in table.groupby(["backbone", "precision"], sort=False):
        if precision != REFERENCE:
            yield [get_backbone_title(str(backbone)), str(precision).upper()], rows


def build_inference_block(inference: pd.DataFrame) -> TableBlock:
    """Return the table of the errors that lower precisions add: a row per backbone and precision, over all heads."""
    columns = [
        "backbone", "precision", "mean |dE| from FP64 (meV/atom)", "largest |dE| (meV/atom)",
        "mean |dF| from FP64 (meV/\N{ANGSTROM SIGN})", "largest |dF| (meV/\N{ANGSTROM SIGN})", "mean |dE| / MAE of E",
        "mean |dF| / MAE of F", "worst head", "heads for which it is harmless", "weights",
    ]  # fmt: skip
    body = []
    for names, rows in iter_lower_precisions(inference):
        shares = rows[["energy_fraction", "force_fraction"]].max(axis=1).fillna(float("inf"))
        worst = rows.iloc[int(shares.argmax())]
        body.append(
            [
                *names,
                format_number(MEV * rows["energy_deviation_mean_ev_per_atom"].mean(), ".2g"),
                format_number(MEV * rows["energy_deviation_max_ev_per_atom"].max(), ".2g"),
                format_number(MEV * rows["force_deviation_mean_ev_per_angstrom"].mean(), ".2g"),
                format_number(MEV * rows["force_deviation_max_ev_per_angstrom"].max(), ".2g"),
                format_number(rows["energy_fraction"].max(), ".2%"),
                format_number(rows["force_fraction"].max(), ".2%"),
                worst["head"],
                f"{int((rows['verdict'] == 'harmless').sum())} of {len(rows)}",
                worst["weights"],
            ]
        )
    note = (
        "All precisions use the same weights. The ratios compare the mean difference from FP64 with the model's MAE"
        " against labels, for the head with the largest ratio. A precision is harmless if both ratios are at most"
        f" {MAX_HARMLESS_FRACTION:.0%}. All heads are in tables/precision_inference.csv."
    )
    return TableBlock("Inference: differences from FP64", columns, body, note)


def build_precisions_physics_block(physics: pd.DataFrame) -> TableBlock:
    """Return the table of the physics of each backbone and precision: the verdict, and the violations of two checks."""
    columns = ["backbone", "precision", "physics", "checks passed", *SHOWN_CHECKS, "reason"]
    body = []
    for (backbone, precision), rows in physics.groupby(["backbone", "precision"], sort=False):
        checks = list_rows(rows)
        worst = []
        for name in SHOWN_CHECKS:
            measured = [r for r in checks if r["check"] == name and r["passed"] is not None]
            worst.append(format_check(max(measured, key=lambda r: r["value"])) if measured else EN_DASH)
        verdict, reason = judge_checks(checks)
        passed = f"{sum(r['passed'] is True for r in checks)} of {len(checks)}"
        names = [get_backbone_title(str(backbone)), str(precision).upper()]
        body.append([*names, verdict, passed, *worst, reason])
    note = (
        "The weights are the same as above. The columns of the two checks show the larger violation of the crystal and"
        " the molecule, and in brackets the tolerance that rounding in the precision explains. All checks are in"
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
            ratios += [
                format_number(values.median(), ".3f"),
                f"{format_number(values.min(), '.3f')} to {format_number(values.max(), '.3f')}",
            ]
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
    for names, rows in iter_lower_precisions(modules[modules["output"].notna()]):
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
        "The outputs of every module for one batch of energies are compared with those of FP64 and the same weights."
        " The error arises in the first module whose error is at least half of the median. All modules are in"
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
