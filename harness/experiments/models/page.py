"""The page on interatomic potentials, and its figures."""

from __future__ import annotations

from collections.abc import Mapping
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
    interval_cell,
    link_run_folder,
    list_rows,
    number_cell,
    text_cell,
)
from harness.document.figures import STYLE, Figure, save_figure, set_plain_ticks
from harness.experiments.cost.page import add_cost_columns
from harness.experiments.experiment import PageContext
from harness.experiments.models.vector_biases_page import build_vector_bias_sections
from harness.experiments.physics import build_physics_block
from harness.experiments.rounds import describe_rounds
from harness.protocol.text import pluralize
from harness.results.tables import Row

MIB = 2**20
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#59636e")
MARKERS = "osD^vP*"


def build_sections(context: PageContext) -> list[Section]:
    """Return the sections of the page: one for each case of the programs `models` and `vector_biases`."""
    table = context.tables["models"]
    sections = [build_case_section(str(case), rows, context) for case, rows in table.groupby("folder", sort=False)]
    return [*sections, *build_vector_bias_sections(context)]


def build_case_section(folder: str, rows: pd.DataFrame, context: PageContext) -> Section:
    """Return the section about one case: the summary, the speed, the errors and the physics of its models."""
    first = rows.iloc[0]
    speed, errors, physics = (
        select_case(context.tables[name], folder) for name in ("model_speed", "model_errors", "model_physics")
    )
    figures = [draw_speed(speed, context.figures, f"{first['campaign']}-{first['case']}-speed")] if len(speed) else []
    blocks = [build_summary_block(rows, find_missing_energies(folder, context))]
    if len(errors):
        blocks.append(build_errors_block(errors))
    if len(physics):
        blocks.append(build_physics_block("Physics", physics, "model"))
    title = f"{first['case']}: {pluralize(len(rows), 'potential')}"
    anchor = f"{first['campaign']}-{first['case']}"
    return Section(
        title,
        anchor,
        [*describe_models(rows), *describe_rounds(context.records, [folder])],
        figures,
        blocks,
        finding=summarize_models(rows),
    )


def summarize_models(rows: pd.DataFrame) -> str:
    """Return how many models have correct physics, and the fastest of them."""
    correct = rows[rows["verdict"] == "ok"]
    verb = "has" if len(correct) == 1 else "have"
    text = f"{len(correct)} of {pluralize(len(rows), 'potential')} {verb} correct physics"
    timed = correct[correct["us_per_atom"].notna()].sort_values("us_per_atom")
    if len(timed):
        fastest = timed.iloc[0]
        text += (
            f"; {fastest['model']} is the fastest, at {format_number(fastest['us_per_atom'])} \N{MICRO SIGN}s per atom"
        )
    return text


def select_case(table: pd.DataFrame, folder: str) -> pd.DataFrame:
    """Return the rows of the case in a folder."""
    return table[table["folder"] == folder]


def describe_models(rows: pd.DataFrame) -> list[str]:
    """Return sentences about the fastest model, physics that failed or was not fully checked, and largest crystals."""
    texts = []
    timed = rows[rows["us_per_atom"].notna()]
    correct = timed[timed["verdict"] == "ok"]
    if len(correct):
        fastest = correct.sort_values("us_per_atom").iloc[0]
        texts.append(
            f"Fastest potential with correct physics: {fastest['model']}, {format_number(fastest['us_per_atom'])} us"
            f" per atom for {fastest['atoms']:.0f} atoms with {pluralize(fastest['threads'], 'thread')}."
        )
    for verdict, text in (
        ("incorrect", "Incorrect physics"),
        ("failed", "Failed"),
        ("unavailable", "Unavailable here"),
        ("ok", "Partly checked"),
        ("not checked", "Not checked"),
    ):
        group = rows[rows["verdict"] == verdict]
        texts += [f"{text}: {row['model']}, {row['reason']}." for _, row in group.iterrows() if row["reason"]]
    texts += [
        f"Largest crystal of {row['model']}: {row['largest_atoms']:,.0f} atoms; {row['largest_limit']}."
        for row in list_rows(rows.dropna(subset="largest_limit"))
    ]
    return texts


def find_missing_energies(folder: str, context: PageContext) -> dict[str, str]:
    """Return the reason why the energy of a model is unknown, by model; a reason for the whole case comes first."""
    cases, parts, models = (
        select_case(context.tables[name], folder) for name in ("cost_cases", "cost_parts", "models")
    )
    if cases["energy_j"].isna().any():
        return dict.fromkeys(models["model"], str(cases["unavailable_reason"].iloc[0]))
    parts = parts[(parts["scope"] == "stage") & parts["energy_j"].isna()]
    return dict(zip(parts["name"], parts["unavailable_reason"], strict=True))


def build_summary_block(rows: pd.DataFrame, missing_energies: Mapping[str, str]) -> TableBlock:
    """Return the table with a row per model.

    Args:
        rows: The rows of the table `models`.
        missing_energies: The reason why the energy of a model is unknown, by model.
    """
    columns: list[Column] = [
        ("model", "model"),
        ("verdict", "verdict"),
        ("class", text_cell("class_name")),
        ("version", text_cell("version")),
        ("type", text_cell("dtype")),
        ("us/atom [interval]", interval_cell("us_per_atom", "us_per_atom_low", "us_per_atom_high")),
        ("structures/s", number_cell("structures_per_s")),
        ("atoms", number_cell("atoms", ".0f")),
        ("exponent over atoms", number_cell("exponent", ".2f")),
        ("peak memory (MiB)", number_cell("peak_bytes", ".0f", 1 / MIB)),
        ("largest cell (atoms)", number_cell("largest_atoms", ",.0f")),
        ("force MAE (eV/\N{ANGSTROM SIGN})", number_cell("force_mae_ev_per_angstrom")),
        ("energy MAE (eV/atom)", number_cell("energy_mae_ev_per_atom")),
        ("force deviation from own FP64", format_deviation),
        ("physics checks passed", format_checks),
        ("load (s)", number_cell("load_s", ".1f")),
        ("J per million atoms", lambda r: format_energy(r, missing_energies)),
        ("raw records", lambda r: link_run_folder(r["folder"])),
    ]
    note = (
        "The time is that of the energy and forces of the largest crystal, after a random displacement of all atoms:"
        " the median over rounds with its order-statistic interval. The models take turns in each round. The peak"
        " memory is that of the model's process. Errors are means over the datasets below; that of energies is the mean"
        " absolute deviation from the mean error of equal compositions, so that reference energies cancel. Joules are"
        " those of timed predictions on all nodes, as far as the nodes have sensors; see the page on costs."
    )
    block = build_block("All models", list_rows(rows), columns, note)
    return add_cost_columns(block, rows.drop(columns="energy_per_result_j"))


def format_energy(row: Row, missing: Mapping[str, str]) -> str:
    """Return the energy per million atoms with the measured components, or the reason why it is unknown."""
    if row["energy_per_result_j"] is None:
        return missing.get(row["model"], EN_DASH)
    return f"{format_number(row['energy_per_result_j'])} ({row['energy_scope']})"


def format_deviation(row: Row) -> str:
    """Return the largest deviation of forces from the model's own FP64 predictions; `no FP64` if there are none."""
    text = format_number(row["force_deviation_max_ev_per_angstrom"], ".1e")
    is_changed = row["compiled"] or row["precision"] not in ("published", "fp64")
    return "no FP64" if text == EN_DASH and is_changed and row["verdict"] != "unavailable" else text


def format_checks(row: Row) -> str:
    """Return the number of passed checks, such as `23 of 24`; a dash without checks."""
    return f"{row['checks'] - row['violations']:.0f} of {row['checks']:.0f}" if row["checks"] else EN_DASH


def build_errors_block(errors: pd.DataFrame) -> TableBlock:
    """Return the table of errors, with a row per model, dataset and reference."""
    columns: list[Column] = [
        ("model", "model"),
        ("against", lambda r: "labels" if r["reference"] == "labels" else "its own FP64"),
        ("data", lambda r: f"{r['dataset']} ({r['level_of_theory']})"),
        ("structures", number_cell("structures", ".0f")),
        ("force MAE (eV/\N{ANGSTROM SIGN})", number_cell("force_mae_ev_per_angstrom")),
        ("largest force error", number_cell("force_max_ev_per_angstrom")),
        ("energy MAE (eV/atom)", number_cell("energy_mae_ev_per_atom")),
        ("stress MAE (eV/\N{ANGSTROM SIGN}\u00b3)", number_cell("stress_mae_ev_per_angstrom3")),
        ("not predicted", text_cell("excluded")),
    ]
    return build_block("Errors", list_rows(errors), columns)


def draw_speed(speed: pd.DataFrame, folder: Path, name: str) -> Figure:
    """Draw the time per atom over the number of atoms, with a line per model."""
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
        for k, (model, rows) in enumerate(speed.groupby("model", sort=False)):
            ordered = rows.sort_values("atoms")
            scale = 1e6 / ordered["atoms"]
            time, low, high = (scale * ordered[name] for name in ("device_s", "device_s_low", "device_s_high"))
            style: Any = {"color": COLOURS[k % len(COLOURS)], "marker": MARKERS[k % len(MARKERS)], "ms": 5, "lw": 1.3}
            span = [time - low, high - time]
            axes.errorbar(ordered["atoms"], time, yerr=span, capsize=2, label=str(model), **style)
        axes.set_xscale("log")
        axes.set_yscale("log")
        for axis, ends in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
            set_plain_ticks(axis, *ends)
        axes.set_xlabel("atoms")
        axes.set_ylabel("us per atom")
        axes.legend(frameon=False, fontsize=7.5, loc="center left", bbox_to_anchor=(1.0, 0.5))
        rounds = int(speed["samples"].max())
        caption = f"Time per atom of energy and forces: median over {pluralize(rounds, 'round')} with its interval."
        return save_figure(figure, folder, name, caption)
