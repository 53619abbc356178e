"""The page on screenings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.patches import Circle

from harness.document.blocks import (
    Column,
    Section,
    TableBlock,
    build_block,
    describe_reasons,
    format_number,
    link_run_folder,
    list_rows,
    number_cell,
    select_campaign,
    text_cell,
)
from harness.document.figures import STYLE, Figure, save_figure
from harness.experiments.cost.page import add_cost_columns
from harness.experiments.experiment import PageContext
from harness.experiments.screening.risk_figures import draw_risk_figures
from harness.protocol.text import pluralize

KIND_COLOURS = {"training": "#bdbdbd", "held out": "#0072b2", "candidates": "#e69f00", "random box": "#d55e00"}
MAX_POSITION = 12
# The corners of a cell that an edge joins; the corners are those of its bottom, then of its top, in cyclic order.
CELL_EDGES = [edge for k in range(4) for edge in ((k, (k + 1) % 4), (k + 4, (k + 1) % 4 + 4), (k, k + 4))]
# Durations below the first number are shown in a unit of as many seconds as the second number, with this name.
DURATION_UNITS = ((60.0, 1.0, "s"), (3600.0, 60.0, "min"), (86400.0, 3600.0, "h"), (3.2e7, 86400.0, "days"))


def build_sections(context: PageContext) -> list[Section]:
    """Return a section for each campaign."""
    return [build_campaign_section(str(c), context) for c in context.tables["screening_runs"]["campaign"].unique()]


def build_campaign_section(campaign: str, context: PageContext) -> Section:
    """Return the section on the screenings of one campaign."""
    runs, times, best, assessment, labels, risk, relaxed, embedding, drawings = (
        select_campaign(context.tables[f"screening_{name}"], campaign)
        for name in ("runs", "times", "best", "assessment", "labels", "risk", "relaxed", "embedding", "drawings")
    )
    figures = [
        draw_crystals(group, relaxed[relaxed["case"] == case], context.figures, f"{campaign}-{case}-crystals")
        for case, group in drawings.groupby("case", sort=False)
    ]
    figures += [
        draw_embedding(group, str(case), context.figures, f"{campaign}-{case}-embedding")
        for case, group in embedding.groupby("case", sort=False)
    ]
    for case, group in risk.groupby("case", sort=False):
        figures += draw_risk_figures(group, str(case), context.figures, f"{campaign}-{case}-risk")
    blocks = [build_runs_block(runs), build_times_block(times), build_assessment_block(assessment)]
    optional = (build_relaxed_block(relaxed), build_best_block(best), build_labels_block(labels))
    blocks += [block for block in optional if block.rows]
    paragraphs, finding = describe_screenings(runs), summarize_screenings(runs)
    return Section("Screening", f"screening-{campaign}", paragraphs, figures, blocks, finding=finding)


def summarize_screenings(runs: pd.DataFrame) -> str:
    """Return the number of candidates, whether each was evaluated exactly once, and the highest rate."""
    n_verified = int(runs["is_verified"].sum())
    proof = "each exactly once" if n_verified == len(runs) else f"proven for {n_verified} of {len(runs)} screenings"
    text = f"{pluralize(runs['candidates'].sum(), 'candidate')} processed, {proof}"
    rates = runs["end_to_end_candidates_per_s"]
    if rates.isna().all():
        return text
    fastest = runs.sort_values("end_to_end_candidates_per_s", na_position="first").iloc[-1]
    rate = format_number(fastest["end_to_end_candidates_per_s"])
    return f"{text}; up to {rate} candidates/s end to end on {pluralize(fastest['ranks'], 'rank')}"


def describe_screenings(runs: pd.DataFrame) -> list[str]:
    """Return paragraphs on the number of candidates, on the proof that each was processed once, and on weak scaling."""
    n_verified = int(runs["is_verified"].sum())
    text = [
        f"{pluralize(len(runs), 'screening')} processed {pluralize(runs['candidates'].sum(), 'candidate')}, of which"
        f" {runs['evaluated'].sum():,.0f} were evaluated; the table of rates says why the others were left out. For"
        f" {n_verified} of {len(runs)}, a checksum over the indices proves that every candidate was processed once. The"
        " device rate counts the time of evaluation, as the paper does; the end-to-end rate includes the generation of"
        " candidates and neighbour lists, transfers, and the writing of results."
    ]
    weak = []
    for workload, group in runs.groupby("workload", sort=False):
        smallest, largest = group.iloc[group["ranks"].argmin()], group.iloc[group["ranks"].argmax()]
        if largest["ranks"] > smallest["ranks"]:
            share = largest["candidates_per_s_per_rank"] / smallest["candidates_per_s_per_rank"]
            weak.append(
                f"{workload}: the rate per rank with {largest['ranks']} ranks is {share:.0%} of that with"
                f" {smallest['ranks']}"
            )
    if weak:
        text.append("Weak scaling, " + "; ".join(weak) + ".")
    hulls = runs.dropna(subset="hull_head").drop_duplicates(["hull_head", "reference_phases"])
    for row in list_rows(hulls):
        text.append(
            f"The energy above the hull of a crystal is that of the head {row['hull_head']}, compared with mixtures of"
            f" {pluralize(row['n_reference_phases'], 'reference phase')} ({row['reference_phases']}) and of simple"
            " crystals of each element. It can be no better than this head and these phases: known compounds that are"
            " missing among them would raise it."
        )
    return [
        *text,
        *describe_reasons(runs, "eager_reason", "Not compiled", "screening"),
        *describe_reasons(runs, "unfused_reason", "Messages not fused", "screening"),
        *describe_reasons(runs, "default_sums_reason", "Sums over neighbours without the C++ operators", "screening"),
    ]


def build_runs_block(runs: pd.DataFrame) -> TableBlock:
    """Return the table of screenings and their rates."""
    columns: list[Column] = [
        ("workload", lambda r: f"{r['workload']}, {r['precision']}"),
        ("computation of messages", text_cell("message_backend")),
        ("ranks", "ranks"),
        ("candidates", number_cell("candidates", ",")),
        ("candidates left out", text_cell("excluded")),
        ("candidates not ranked", text_cell("outside_training_sets")),
        ("atoms per candidate", number_cell("atoms")),
        ("edges per candidate", number_cell("edges")),
        ("device (candidates/s)", number_cell("device_candidates_per_s")),
        ("end to end (candidates/s)", number_cell("end_to_end_candidates_per_s")),
        ("end to end / device", number_cell("end_to_end_fraction", ".0%")),
        ("time of generation / time of evaluation", number_cell("generation_fraction", ".0%")),
        ("memory at the end / median", number_cell("memory_growth")),
        ("processed once", lambda r: "proven" if r["is_verified"] else "NOT PROVEN"),
        ("raw records", lambda r: link_run_folder(r["folder"])),
    ]
    note = (
        "Rates are totals over all ranks, without the first batch, which includes compilation. Atoms and edges are"
        " means. Candidates are left out if a filter of the workload removes them, if atoms coincide, or if the"
        " prediction is not finite. Candidates are not ranked if no single head was trained on all of their elements,"
        " or if atoms are closer than in any training structure, so that predictions for them are meaningless, or if"
        " their risk is above the threshold; they are in no table of results. The memory of a rank at the end is"
        " divided by the median of the values after each of its parts; it rises with the size of the largest batch, not"
        " with the number of candidates."
    )
    return add_cost_columns(build_block("Rates", list_rows(runs), columns, note), runs)


def build_times_block(times: pd.DataFrame) -> TableBlock:
    """Return the table of times for the paper's number of candidates."""
    columns: list[Column] = [
        ("case", "case"),
        ("machine", "machine"),
        ("ranks", number_cell("ranks", ",")),
        ("time for 1.129e9 candidates", lambda r: format_duration(r["seconds"])),
        ("basis", "basis"),
    ]
    note = (
        "The paper needed 50 s of device time on 9,408 nodes of Frontier. Extrapolated times assume one rank per"
        " accelerator or tile of the machine, each as fast as a rank of this run. Real accelerators have other rates."
    )
    return build_block("Time for the paper's number of candidates", list_rows(times), columns, note)


def format_duration(seconds: float) -> str:
    """Return a duration as text: `50 s`, `3.2 h` or `41 days`."""
    for below, unit, name in DURATION_UNITS:
        if seconds < below:
            return f"{format_number(seconds / unit)} {name}"
    return f"{format_number(seconds / 3.156e7)} years"


def build_assessment_block(assessment: pd.DataFrame) -> TableBlock:
    """Return the table of the quantities that tell how reliable the results are."""
    columns: list[Column] = [
        ("case", "case"),
        ("quantity", "quantity"),
        ("structures, or what is counted", "kind"),
        ("value", number_cell("value")),
        ("unit", "unit"),
        ("number of structures", lambda r: format_number(r["n"] or None, ".0f")),
    ]
    note = (
        "The numbers are for a random sample of the candidates. A structure is flagged if its embedding is further"
        " from the training sets than the threshold. The threshold is set on held-out structures; the rate of false"
        " alarms is measured on other held-out structures. Dropout is applied to the input of the heads; the shipped"
        " model was trained without dropout. The risk of a labelled candidate is that of the labelled head; it was"
        " fitted and calibrated with other labels."
    )
    rows = [row for row in list_rows(assessment) if row["value"] is not None]
    return build_block("Reliability", rows, columns, note)


def build_labels_block(labels: pd.DataFrame) -> TableBlock:
    """Return the table of errors of the candidates with reference calculations."""
    columns: list[Column] = [
        ("case", "case"),
        ("kind of candidates", lambda r: "flagged" if r["flagged"] else "not flagged"),
        ("candidates", "candidates"),
        ("MAE (eV/atom)", number_cell("mae_ev_per_atom")),
        ("median error (eV/atom)", number_cell("median_ev_per_atom")),
        ("largest error (eV/atom)", number_cell("max_error_ev_per_atom")),
        ("force MAE (eV/\N{ANGSTROM SIGN})", number_cell("force_mae_ev_per_angstrom")),
        ("median force error (eV/\N{ANGSTROM SIGN})", number_cell("force_median_ev_per_angstrom")),
        ("head", "head"),
        ("level of theory", "level_of_theory"),
    ]
    note = (
        "The candidates are a random subset of those with elements that this head was trained on, calculated at the"
        " level of theory of the head."
    )
    return build_block("Errors against reference calculations", list_rows(labels), columns, note)


def build_best_block(best: pd.DataFrame) -> TableBlock:
    """Return the table of the MAX_POSITION best candidates of each case."""
    columns: list[Column] = [
        ("case", "case"),
        ("position", "position"),
        ("candidate", "candidate"),
        ("formula", text_cell("formula")),
        ("chemistry", text_cell("chemistry")),
        ("prototype", text_cell("prototype")),
        ("energy above the hull (meV/atom)", number_cell("energy_above_hull_mev_per_atom", ".1f")),
        ("suspicious", lambda r: "yes" if r["suspicious"] else ""),
        ("energy relative to elements (eV/atom)", number_cell("residual_energy_ev_per_atom")),
        ("spread of the heads (eV/atom)", number_cell("spread_ev_per_atom")),
        ("risk (eV/atom)", number_cell("risk_ev_per_atom")),
        ("distance from the training sets", number_cell("distance")),
    ]
    note = (
        "Crystals are ordered by their energy above the convex hull of the reference phases, before relaxation; those"
        " that are suspicious, since they are more than 500 meV/atom below the hull, come after the others. Structures"
        " on the hull and candidates are evaluated by the same head. The risk is half the width of an interval around"
        " the energy that contains 90% of labels like those to which it was calibrated; candidates with a risk above"
        " the threshold are in no table of results. More candidates are in best.csv of each case, and all stored"
        " ones are in its results-*.bp."
    )
    return build_block(
        "Best candidates, before relaxation", list_rows(best[best["position"] <= MAX_POSITION]), columns, note
    )


def build_relaxed_block(relaxed: pd.DataFrame) -> TableBlock:
    """Return the table of the best candidates after relaxation, without those that became the same crystal."""
    columns: list[Column] = [
        ("case", "case"),
        ("candidate", "candidate"),
        ("formula", text_cell("formula")),
        ("chemistry", text_cell("chemistry")),
        ("energy above the hull (meV/atom)", number_cell("energy_above_hull_mev_per_atom", ".1f")),
        ("space group", text_cell("spacegroup")),
        ("prototype", text_cell("prototype")),
        ("also reached from", text_cell("also_reached_from")),
        ("converged", lambda r: "yes" if r["converged"] else "no"),
        ("steps", "steps"),
        (
            "energy before, after (eV/atom)",
            lambda r: f"{r['initial_energy_ev_per_atom']:.4f}, {r['final_energy_ev_per_atom']:.4f}",
        ),
        (
            "volume before, after (\N{ANGSTROM SIGN}\N{SUPERSCRIPT THREE}/atom)",
            lambda r: f"{r['initial_volume_angstrom3_per_atom']:.2f}, {r['final_volume_angstrom3_per_atom']:.2f}",
        ),
        ("file", "file"),
    ]
    note = (
        "Candidates of one composition that have the same space group after relaxation, and energies and volumes within"
        " 5 meV/atom and 2%, are one crystal."
    )
    rows = [row for row in list_rows(relaxed) if row["duplicate_of"] is None]
    return build_block("Best candidates, relaxed with the model", rows, columns, note)


def draw_crystals(parts: pd.DataFrame, relaxed: pd.DataFrame, folder: Path, name: str) -> Figure:
    """Draw relaxed crystals in a grid, with formula, space group and energy above the hull, best first."""
    crystals = {row["candidate"]: row for row in list_rows(relaxed)}
    groups = list(parts.groupby("candidate", sort=False))
    columns = min(4, len(groups))
    rows = -(-len(groups) // columns)
    with mpl.rc_context(STYLE):
        figure, panels = plt.subplots(
            rows, columns, figsize=(2.1 * columns, 2.5 * rows), layout="constrained", squeeze=False
        )
        for axes in panels.flat[len(groups) :]:
            axes.set_visible(False)
        titles = []
        for axes, (candidate, group) in zip(panels.flat, groups, strict=False):
            _draw_crystal(axes, group)
            crystal = crystals[candidate]
            titles.append(f"{crystal['formula']}, {crystal['spacegroup'] or 'no space group'}")
            axes.set_title(f"{titles[-1]}\n{_describe_energy(crystal['energy_above_hull_mev_per_atom'])}", fontsize=8)
        caption = (
            "The best candidates after relaxation with the model, without repetitions, by energy above the hull:"
            f" {'; '.join(titles)}. Each conventional cell is drawn in a parallel projection with atoms in the colours"
            " of Jmol."
        )
        return save_figure(figure, folder, name, caption)


def _describe_energy(above_hull_mev_per_atom: float | None) -> str:
    if above_hull_mev_per_atom is None:
        return ""
    return (
        f"{abs(above_hull_mev_per_atom):.0f} meV/atom {'above' if above_hull_mev_per_atom >= 0 else 'below'} the hull"
    )


def _draw_crystal(axes: Any, parts: pd.DataFrame) -> None:
    atoms, corners = parts[parts["part"] == "atom"], parts[parts["part"] == "corner"]
    x, y = corners["x"].to_numpy(), corners["y"].to_numpy()
    for a, b in CELL_EDGES:
        axes.plot(x[[a, b]], y[[a, b]], color="#888888", lw=0.7, zorder=0)
    for depth, row in enumerate(list_rows(atoms), start=1):
        disc = Circle((row["x"], row["y"]), row["radius"], fc=row["colour"], ec="#333333", lw=0.5, zorder=depth)
        axes.add_patch(disc)
    elements = atoms.drop_duplicates("element")
    for row in list_rows(elements):
        axes.plot([], [], "o", ms=6, color=row["colour"], mec="#333333", mew=0.5, label=row["element"])
    axes.legend()
    axes.set_aspect("equal")
    axes.axis("off")


def draw_embedding(points: pd.DataFrame, case: str, folder: Path, name: str) -> Figure:
    """Draw the embeddings of structures in the plane of the first two principal components of the training sets."""
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(5.4, 4.0), layout="constrained")
        for kind, group in points.groupby("kind", sort=False):
            style: Any = {"color": KIND_COLOURS.get(str(kind), "#cc79a7"), "ms": 3.2, "ls": "", "alpha": 0.75}
            axes.plot(group["x"], group["y"], "o", label=f"{kind} ({len(group)})", **style)
        axes.set_xlabel("first component / standard deviation")
        axes.set_ylabel("second component / standard deviation")
        axes.legend(frameon=False, fontsize=7.5)
        caption = (
            f"{case}: embeddings per atom along the first two principal components of the training sets. Points beyond"
            " ten standard deviations are drawn at the edge. The numbers of structures are in brackets."
        )
        return save_figure(figure, folder, name, caption)
