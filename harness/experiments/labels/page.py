"""The page on labels of new structures, and its figure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes

from harness.document.blocks import (
    Column,
    Section,
    TableBlock,
    build_block,
    format_interval,
    format_number,
    interval_cell,
    link_run_folder,
    list_rows,
    number_cell,
    text_cell,
)
from harness.document.figures import STYLE, Figure, save_figure
from harness.experiments.cost.page import add_cost_columns
from harness.experiments.experiment import PageContext
from harness.protocol.text import pluralize
from harness.results.tables import Row

BLUE, RED, GREY = "#0072b2", "#d55e00", "#59636e"
MEV = 1000.0
MAX_WORST = 10  # structures in the table of the largest errors


def build_sections(context: PageContext) -> list[Section]:
    """Return a section on all cases, and one on the structures of each case."""
    labels = context.tables["labels"]
    if labels.empty:
        return []
    finding = f"{labels['labelled'].sum()} of {pluralize(labels['structures'].sum(), 'structure')} labelled"
    sections = [Section("Labels", "labels", [], [], [build_summary_block(labels)], finding=finding)]
    return [*sections, *(build_case_section(row, context) for row in list_rows(labels))]


def build_summary_block(labels: pd.DataFrame) -> TableBlock:
    """Return the table with a row per case."""
    columns: list[Column] = [
        ("calculator", "calculator"),
        ("level of theory", text_cell("level_of_theory")),
        ("structures of", text_cell("source")),
        ("labelled", lambda r: f"{r['labelled']} of {r['structures']}"),
        ("s per structure, median", interval_cell("calculation_s", "calculation_s_low", "calculation_s_high")),
        ("ranks", "ranks"),
        ("model", text_cell("checkpoint")),
        ("head", lambda r: r["head"] or ("gate" if r["checkpoint"] else None)),
        ("energy MAE (meV/atom) [95%]", lambda r: format_error(r, "energy_mae_ev_per_atom")),
        ("force MAE (meV/\N{ANGSTROM SIGN}) [95%]", lambda r: format_error(r, "force_mae_ev_per_angstrom")),
        ("zero forces, MAE", number_cell("zero_force_mae_ev_per_angstrom", scale=MEV)),
        ("raw records", lambda r: link_run_folder(r["folder"])),
    ]
    note = (
        "Levels of theory differ in the energies of the elements. Before energies are compared, one energy per element"
        " is fitted to the differences, for each structure to all structures but itself. Errors are means over"
        " structures with Student's 95% interval."
    )
    return add_cost_columns(build_block("Calculators", list_rows(labels), columns, note), labels)


def format_error(row: Row, column: str) -> str:
    """Return an error in meV with its interval."""
    ends = [row[f"{column}{end}"] for end in ("", "_low", "_high")]
    return format_interval(*(None if value is None else MEV * value for value in ends))


def build_case_section(case: Row, context: PageContext) -> Section:
    """Return the section on the labels of one case: their distribution, failures, and the largest errors."""
    structures, failures = (
        table[table["folder"] == case["folder"]]
        for table in (context.tables["label_structures"], context.tables["label_failures"])
    )
    name = f"{case['campaign']}.{Path(case['folder']).name}"  # the folder is unique, unlike the case
    figures = [draw_labels(structures, context.figures, f"{name}-labels")] if len(structures) else []
    blocks = [build_failures_block(failures)] if len(failures) else []
    if structures["energy_error_ev_per_atom"].notna().any():
        blocks.append(build_worst_block(structures))
    title, paragraphs = f"{case['case']}: {case['level_of_theory']}", describe_case(case, failures)
    return Section(title, name, paragraphs, figures, blocks, finding=summarize_case(case))


def summarize_case(case: Row) -> str:
    """Return the errors of the model against the labels; empty without a model."""
    errors = [case[name] for name in ("energy_mae_ev_per_atom", "force_mae_ev_per_angstrom")]
    if not case["checkpoint"] or None in errors:
        return ""
    energy, forces = (format_number(MEV * error) for error in errors)
    return f"energies of {case['checkpoint']} differ by {energy} meV/atom, forces by {forces} meV/\N{ANGSTROM SIGN}"


def describe_case(case: Row, failures: pd.DataFrame) -> list[str]:
    """Return sentences on the number of labels, on failures by reason, and on the errors of the model."""
    texts = [
        f"{pluralize(case['labelled'], 'structure')} of {case['structures']} labelled with {case['class_name']}"
        f" ({case['version']}); {pluralize(case['failed'], 'failure')}."
    ]
    if case["finished_earlier"]:
        texts.append(f"An earlier attempt labelled {case['finished_earlier']} of them.")
    texts += [f"Failed: {count} {reason}." for reason, count in failures["reason"].value_counts().items()]
    if case["checkpoint"]:
        texts.append(
            f"Errors of {case['checkpoint']}: {format_error(case, 'energy_mae_ev_per_atom')} meV/atom for"
            f" {pluralize(case['compared'], 'structure')} after a fit of {pluralize(case['elements'], 'element')}, and"
            f" {format_error(case, 'force_mae_ev_per_angstrom')} meV/\N{ANGSTROM SIGN}."
        )
    if case["checkpoint"] and case["source"].startswith("shipped set"):
        texts.append(
            "The structures are chosen from a whole shipped set, on most of which the shipped models are trained: these"
            " are not errors for new structures."
        )
    if case["unpredicted"]:
        texts.append(f"Not predicted: {case['unpredicted']}.")
    return texts


def build_failures_block(failures: pd.DataFrame) -> TableBlock:
    """Return the table of the structures without a label."""
    columns: list[Column] = [
        ("structure", "structure"),
        ("formula", "formula"),
        ("atoms", "atoms"),
        ("reason", "reason"),
        ("time (s)", number_cell("calculation_s")),
    ]
    return build_block("Structures without a label", list_rows(failures), columns)


def build_worst_block(structures: pd.DataFrame) -> TableBlock:
    """Return the table of the structures with the largest errors of the energy."""
    order = structures["energy_error_ev_per_atom"].abs().sort_values(ascending=False).index[:MAX_WORST]
    columns: list[Column] = [
        ("structure", "structure"),
        ("formula", "formula"),
        ("energy error (meV/atom)", number_cell("energy_error_ev_per_atom", scale=MEV)),
        ("force MAE (meV/\N{ANGSTROM SIGN})", number_cell("force_error_ev_per_angstrom", scale=MEV)),
        ("largest force (eV/\N{ANGSTROM SIGN})", number_cell("force_max_ev_per_angstrom")),
    ]
    return build_block("Largest errors of the model", list_rows(structures.loc[order]), columns)


def draw_labels(structures: pd.DataFrame, folder: Path, name: str) -> Figure:
    """Draw the seconds over the number of atoms, the distribution of energies, and the model's energies over them."""
    has_model = structures["energy_error_ev_per_atom"].notna().any()
    with mpl.rc_context(STYLE):
        panels = 3 if has_model else 2
        figure, axes = plt.subplots(1, panels, figsize=(2.9 * panels, 2.8), layout="constrained")
        axes[0].plot(structures["atoms"], structures["calculation_s"], "o", color=BLUE, ms=3.5, alpha=0.7, mew=0)
        axes[0].set_yscale("log")
        axes[0].set_xlabel("atoms")
        axes[0].set_ylabel("s per structure")
        residuals = MEV * structures["residual_ev_per_atom"].dropna()
        axes[1].hist(residuals, bins=min(30, max(5, len(residuals) // 4)), color=BLUE)
        axes[1].set_xlabel("label minus sum over elements (meV/atom)")
        axes[1].set_ylabel("structures")
        if has_model:
            draw_comparison(axes[2], structures)
        caption = (
            "Labelled structures. Left: seconds of the calculation. Middle: energies relative to a sum over the"
            " elements that is fitted to all other structures."
        )
        if has_model:
            caption += " Right: the same energies by the model; the line means equality."
        return save_figure(figure, folder, name, caption, card=2 if has_model else 1)


def draw_comparison(axes: Axes, structures: pd.DataFrame) -> None:
    """Draw the energies of the model over those of the labels, both relative to a sum over the elements."""
    known = structures.dropna(subset=["residual_ev_per_atom", "energy_error_ev_per_atom"])
    label = MEV * known["residual_ev_per_atom"]
    model = label + MEV * known["energy_error_ev_per_atom"]
    style: Any = {"color": RED, "ms": 3.5, "alpha": 0.7, "mew": 0}
    axes.plot(label, model, "o", **style)
    ends = [min(label.min(), model.min()), max(label.max(), model.max())]
    axes.plot(ends, ends, color=GREY, lw=0.9)
    axes.set_xlabel("label (meV/atom)")
    axes.set_ylabel("model (meV/atom)")
