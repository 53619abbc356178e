"""The section of the report on precision."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from harness.document.blocks import DASH, Section, View, interval, lines, number, threads_of
from harness.document.figures import Figure
from harness.experiments.cost.page import with_costs
from harness.experiments.precision.figures import drift, error_against_rate
from harness.experiments.precision.metrics import HARMLESS, REFERENCE, PrecisionTables
from harness.experiments.training.page import NAMES
from harness.protocol.text import count

MEV = 1e3


def precision_sections(tables: PrecisionTables, figures: Path) -> list[Section]:
    """A section for each campaign; draws its figures into the folder."""
    return [campaign_section(str(c), tables, figures) for c in tables.costs["campaign"].unique()]


def campaign_section(campaign: str, tables: PrecisionTables, figures: Path) -> Section:
    """What one campaign has measured."""
    costs, inference, training, losses, modules, types = (
        t[t["campaign"] == campaign]
        for t in (tables.costs, tables.inference, tables.training, tables.losses, tables.modules, tables.types)
    )
    drawn: list[Figure] = []
    low = inference[inference["precision"] != REFERENCE]
    if (low["force_off_mean_ev_per_a"] > 0).any() and (low["energy_off_mean_ev_per_atom"] > 0).any():
        drawn.append(error_against_rate(costs, inference, NAMES, figures, f"{campaign}-errors"))
    if (losses["off"] > 0).any():
        drawn.append(drift(losses, NAMES, figures, f"{campaign}-drift"))
    views = [
        costs_view(costs), inference_view(inference), training_view(training), worst_view(modules), types_view(types)
    ]  # fmt: skip
    return Section(f"Precision: {', '.join(p.upper() for p in costs['precision'].unique())}", f"precision-{campaign}",
                   paragraphs(costs, inference, training), drawn, views)  # fmt: skip


def paragraphs(costs: pd.DataFrame, inference: pd.DataFrame, training: pd.DataFrame) -> list[str]:
    """Device, data, and what the verdicts come to."""
    first = costs.iloc[0]
    said = [
        f"{count(costs['backbone'].nunique(), 'backbone')} on {first['device']}, {threads_of(first['threads'])}."
        " BF16: parameters,"
        " sums, energies and forces in FP32, matrix products of the encoder in BF16."
    ]
    for precision, rows in inference[inference["precision"] != REFERENCE].groupby("precision", sort=False):
        fine = int((rows["verdict"] == "harmless").sum())
        said.append(
            f"{str(precision).upper()} in inference: on {fine} of {len(rows)} backbones and heads it adds at most"
            f" {HARMLESS:.0%} of the error that the model has against labels."
        )
    if training["role"].astype(str).str.startswith("stand-in").any():
        said.append(
            "Labels are those of the shipped sets, stand-ins among them, and training is brief: errors against labels"
            " are those of models that have hardly learnt, except where the shipped model predicts."
        )
    diverged = costs[~costs["finite"].astype(bool)]
    if len(diverged):
        cases = ", ".join(
            f"{NAMES.get(r['backbone'], r['backbone'])} in {r['precision'].upper()}" for r in lines(diverged)
        )
        said.append(f"Training came to a loss that is no number: {cases}.")
    return said


def costs_view(costs: pd.DataFrame) -> View:
    """Rate and memory of each task, backbone and precision."""
    ordered = costs.sort_values(["task", "backbone"], ascending=[False, True], kind="stable")
    columns = ["task", "backbone", "precision", "structures/s [95%]", "over FP64 [95%]", "peak memory (MiB)", "n"]
    body = [
        [
            r["task"], NAMES.get(r["backbone"], r["backbone"]), r["precision"].upper(),
            interval(r["structures_per_s"], r["low"], r["high"]),
            interval(r["speedup"], r["speedup_low"], r["speedup_high"]),
            number(r["peak_bytes"] / 2**20, ".0f") if r["peak_bytes"] is not None else DASH, str(r["samples"]),
        ]
        for r in lines(ordered)
    ]  # fmt: skip
    note = (
        "Eager, not compiled. Medians with order-statistic intervals; over FP64: pairs of one step or round, all"
        " precisions in turn. Memory: the most that tensors of one step or prediction held at once."
    )
    return with_costs(View("Throughput and memory", columns, body, note), ordered)


def inference_view(inference: pd.DataFrame) -> View:
    """What low precision adds, over the heads of each backbone."""
    columns = [
        "backbone", "precision", "|dE| from FP64 (meV/atom)", "largest", "|dF| from FP64 (meV/\N{ANGSTROM SIGN})",
        "largest", "of the error in E", "of the error in F", "worst head", "heads: harmless", "weights",
    ]  # fmt: skip
    body = []
    for (backbone, precision), rows in inference[inference["precision"] != REFERENCE].groupby(
        ["backbone", "precision"], sort=False
    ):
        shares = rows[["energy_share", "force_share"]].max(axis=1).fillna(float("inf"))
        worst = rows.iloc[int(shares.argmax())]
        body.append(
            [
                NAMES.get(str(backbone), str(backbone)), str(precision).upper(),
                number(MEV * rows["energy_off_mean_ev_per_atom"].mean(), ".2g"),
                number(MEV * rows["energy_off_max_ev_per_atom"].max(), ".2g"),
                number(MEV * rows["force_off_mean_ev_per_a"].mean(), ".2g"),
                number(MEV * rows["force_off_max_ev_per_a"].max(), ".2g"),
                number(rows["energy_share"].max(), ".2%"), number(rows["force_share"].max(), ".2%"), worst["head"],
                f"{int((rows['verdict'] == 'harmless').sum())} of {len(rows)}", worst["weights"],
            ]
        )  # fmt: skip
    note = (
        "One set of weights, cast. Of the error: the distance from FP64 over the model's error against labels, on the"
        f" worst head; harmless: at most {HARMLESS:.0%} in both. Every head is in tables/precision_inference.csv."
    )
    return View("Inference: distance from FP64, and from labels", columns, body, note)


def training_view(training: pd.DataFrame) -> View:
    """Test errors of models trained in each precision, over those of FP64."""
    columns = [
        "backbone",
        "trained in",
        "MAE(E) over FP64's, median of heads",
        "range",
        "MAE(F) over FP64's",
        "range",
        "heads",
    ]
    body = []
    for (backbone, precision), rows in training[training["precision"] != REFERENCE].groupby(
        ["backbone", "precision"], sort=False
    ):
        energy, force = rows["energy_ratio"].dropna(), rows["force_ratio"].dropna()
        body.append(
            [
                NAMES.get(str(backbone), str(backbone)), str(precision).upper(), number(energy.median(), ".3f"),
                f"{number(energy.min(), '.3f')} to {number(energy.max(), '.3f')}", number(force.median(), ".3f"),
                f"{number(force.min(), '.3f')} to {number(force.max(), '.3f')}", str(len(rows)),
            ]
        )  # fmt: skip
    note = "Equal weights at the start, equal batches, one seed. Absolute errors: tables/precision_training.csv."
    return View("Training: errors on held-out structures", columns, body, note)


def worst_view(modules: pd.DataFrame) -> View:
    """Where the error enters and where it is largest."""
    columns = [
        "backbone",
        "precision",
        "enters at",
        "|x - x64| / |x64|",
        "largest at",
        "there",
        "of its input",
        "at the heads",
    ]
    body = []
    for (backbone, precision), rows in modules[modules["output"].notna()].groupby(
        ["backbone", "precision"], sort=False
    ):
        ordered = rows.sort_values("order")
        largest = ordered.iloc[int(ordered["output"].astype(float).argmax())]
        first = ordered[ordered["output"] >= 0.5 * ordered["output"].median()].iloc[0]
        end = ordered[ordered["module"] == "heads"]["output"]
        body.append(
            [
                NAMES.get(str(backbone), str(backbone)), str(precision).upper(),
                f"{first['module']} ({first['kind']})", number(first["output"], ".1e"),
                f"{largest['module']} ({largest['kind']})", number(largest["output"], ".1e"),
                number(largest["input"], ".1e"), number(end.iloc[0] if len(end) else None, ".1e"),
            ]
        )  # fmt: skip
    note = (
        "One batch, energies; every module's output beside that of the same weights in FP64. Enters at: the first whose"
        " error is at least half of the median. All modules: tables/precision_modules.csv."
    )
    return View("Where precision is lost", columns, body, note)


def types_view(types: pd.DataFrame) -> View:
    """Types asked for and found."""
    columns = ["backbone", "asked for", "parameters", "matrix layers", "pooled", "energies", "forces"]
    body = [
        [NAMES.get(r["backbone"], r["backbone"]), r["precision"].upper(), *(r[k] or DASH for k in types.columns[4:])]
        for r in lines(types)
    ]
    return View("Types as observed in one pass", columns, body)
