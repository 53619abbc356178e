"""Result tables -> what the report says, as plain tables and sentences; HTML and Markdown are two prints of it."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import get_args

import pandas as pd

from harness.analysis.ladder import APPROXIMATE, TOLERANCE
from harness.analysis.results import Results
from harness.collect.runs import Record
from harness.programs import StageName
from harness.report.ablation import ablation_sections
from harness.report.blocks import DASH, Section, View, interval, number
from harness.report.data import data_section
from harness.report.figures import ladder_bars
from harness.report.hpo import search_sections
from harness.report.paper import Paper
from harness.report.precision import precision_sections
from harness.report.scaling import scaling_section
from harness.report.scorecard import Score
from harness.report.training import training_sections

STAGES = list(get_args(StageName))
# What the load average may exceed the threads by before the report speaks of it.
BUSY = 0.7


def build(found: Results, scores: list[Score], paper: Paper, figures: Path) -> list[Section]:
    """All sections of the report, in reading order; draws the figures into the folder."""
    records = found.records
    sections = [scorecard_section(scores, paper), *data_section(found.data, figures)]
    sections += training_sections(found.training, found.ablation, figures)
    sections += ablation_sections(found.training, found.ablation, figures)
    sections += search_sections(found.searches, figures)
    sections += precision_sections(found.precision, figures)
    for _, rows in found.ladder.groupby("experiment", sort=False):
        own = [r for r in records if str(r.folder) in set(rows["folder"])]
        sections.append(ladder_section(rows, own, paper, figures))
    for _, rows in found.scaling.groupby("campaign", sort=False):
        sections.append(scaling_section(rows, found.projection, figures))
    for maker in (model_section, merits_section, unfinished_section):
        sections += [s for s in [maker(records)] if s is not None]
    return [*sections, provenance_section(records)]


def scorecard_section(scores: list[Score], paper: Paper) -> Section:
    """The paper's claims, our values, the verdicts and why."""
    rows = [
        [
            s.statement,
            f"{s.paper_value:g} {s.unit}",
            measured(s),
            s.verdict,
            s.basis or DASH,
            s.reason,
            s.how,
            ", ".join(s.evidence[:3]) + (f" and {len(s.evidence) - 3} more" if len(s.evidence) > 3 else "") or DASH,
        ]
        for s in scores
    ]
    columns = ["claim", "paper", "here [95%]", "verdict", "basis", "why", "how it is measured", "raw samples"]
    said = [
        f"Claims of {paper.source}. Basis: what the value rests on. Stand-in: data or sizes that stand for the paper's;"
        " emulated: nodes that share a machine. Neither reproduces a claim about a supercomputer.",
    ]
    return Section("Scorecard", "scorecard", said, views=[View("Claims", columns, rows)])


def measured(score: Score) -> str:
    """`26.5 [25.7, 28.9] x`; what was counted has no interval."""
    if score.measured_value is None:
        return DASH
    counted = score.ci_low is None
    found = number(score.measured_value) if counted else interval(score.measured_value, score.ci_low, score.ci_high)
    return f"{found} {score.unit}"


def ladder_section(rows: pd.DataFrame, records: list[Record], paper: Paper, figures: Path) -> Section:
    """One model on one workload: paper beside ours, the figure, and the details of each precision."""
    first = rows.iloc[0]
    slug = f"{first['suite']}-{first['workload']}-{first['experiment']}"
    views = [beside_paper(rows, paper)]
    for precision, own in rows.groupby("precision", sort=False):
        views.append(details(str(precision), own))
    views += [v for r in records for v in [profile_view(r)] if v is not None]
    drawn = [ladder_bars(rows, paper.table_xv, STAGES, figures, slug)] if rows["speedup"].notna().any() else []
    return Section(f"Ladder: {first['model']}, {first['workload']} workload", slug, notes(records), drawn, views)


def beside_paper(rows: pd.DataFrame, paper: Paper) -> View:
    """Table XV's four columns and ours; each cell a rate and the speed-up over its own baseline."""
    table = paper.table_xv
    precisions = list(dict.fromkeys(rows["precision"]))
    first = rows.iloc[0]
    columns = ["stage", *(f"paper, {c}" for c in table.columns), *(f"here, {p.upper()}" for p in precisions)]
    body = []
    for stage in STAGES:
        line = [stage.replace("_", " ")]
        for k in range(len(table.columns)):
            value = table.rows.get(stage)
            line.append(f"{value[k]:g} ({value[k] / table.rows['baseline'][k]:.1f}x)" if value else "not printed")
        for precision in precisions:
            line.append(our_cell(rows[(rows["precision"] == precision) & (rows["stage"] == stage)]))
        body.append(line)
    note = (
        f"Structures/s (speed-up over the column's own baseline). Paper: {table.source}, one GPU. Here:"
        f" {first['device']}, {number(first['threads'], '.0f')} thread(s), device work only. * differs from the"
        " baseline on purpose."
    )
    return View("The paper's Table XV beside this machine", columns, body, note)


def our_cell(row: pd.DataFrame) -> str:
    """`12.3 (4.5x)`, or why there is no number."""
    if row.empty:
        return "not run"
    r = row.iloc[0]
    if math.isnan(r["structures_per_s"]):
        return str(r["verdict"])
    star = "*" if r["stage"] in APPROXIMATE else ""
    speedup = f"{r['speedup']:.1f}x{star}" if not math.isnan(r["speedup"]) else str(r["verdict"])
    return f"{number(r['structures_per_s'])} ({speedup})"


def details(precision: str, rows: pd.DataFrame) -> View:
    """Everything measured of one case, with intervals and errors."""
    columns = [
        "stage", "verdict", "structures/s [interval]", "speed-up [interval]", "end to end, structures/s [interval]",
        "max |dE| (eV/atom)", "max |dF| (eV/\N{ANGSTROM SIGN})", "max |dF| / largest force", "peak memory (MiB)",
        "matrix GFLOP/batch", "matrix GFLOP/s", "of matrix peak", "first call (s)", "n",
    ]  # fmt: skip
    body = [
        [
            r["stage"].replace("_", " "),
            r["verdict"],
            interval(r["structures_per_s"], r["ci_low"], r["ci_high"]),
            interval(r["speedup"], r["speedup_low"], r["speedup_high"]),
            interval(r["end_to_end_structures_per_s"], r["end_to_end_low"], r["end_to_end_high"]),
            number(r["max_energy_error_ev_per_atom"], ".1e"),
            number(r["max_force_error_ev_per_a"], ".1e"),
            number(r["force_error_relative"], ".1e"),
            number(r["peak_bytes"] / 2**20, ".0f"),
            number(r["matrix_gflop"]),
            number(r["matrix_gflop_per_s"]),
            number(100 * r["share_of_matrix_peak"], ".0f") + ("%" if r["share_of_matrix_peak"] > 0 else ""),
            number(r["first_call_s"], ".1f"),
            str(r["samples"]),
        ]
        for _, r in rows.iterrows()
    ]
    first = rows.iloc[0]
    state = (
        "" if first["case_state"] == "done" else f" The case is not complete ({first['case_state']}): what there is."
    )
    note = (
        f"{number(first['structures'], '.0f')} structures, {number(first['atoms'], '.0f')} atoms,"
        f" {number(first['edges'], '.0f')} edges. Medians over rounds of all batches with order-statistic"
        f" intervals ({number(100 * rows['coverage'].max(), '.1f')}% coverage); speed-ups from pairs of"
        f" the same round. An exact stage is ok within {TOLERANCE[precision]:g} of the largest force and energy. End to"
        f" end adds neighbour lists, collation and transfer. Matrix products only are counted as arithmetic.{state}"
    )
    return View(f"{precision.upper()} in detail", columns, body, note)


def notes(records: list[Record]) -> list[str]:
    """What must be known to read a ladder: what kind of model, what the gate leaves live, what is untrained."""
    for record in records:
        about, workload, gate = (record.facts.get(k) for k in ("model", "workload", "gate"))
        if not about or not workload or not gate:
            continue
        live = sorted({h for batch in gate["live_heads"] for h in batch})
        counts = sorted({len(batch) for batch in gate["live_heads"]})
        said = [
            f"{workload['structures']} structures in {workload['batches']} batches of {workload['batch_size']}."
            f" {about['parameters']:,} parameters, readout: {about['config']['readout']}; at most"
            f" {workload['max_neighbours'] or 'any number of'} neighbours within {about['config']['cutoff']:g}"
            " angstrom.",
            f"Branches with a mean weight of at least {gate['threshold']:g}: {' or '.join(map(str, counts))} of"
            f" {len(gate['mean_weight'])} per batch ({', '.join(live)}).",
        ]
        if not about["trained"]:
            said.append(
                "The weights are untrained and the gate is fixed by hand: rates and rounding errors are real, what"
                " branch skip costs in accuracy is not."
            )
        if workload["elements_not_trained"]:
            said.append(
                "Atomic numbers in this workload that no training set holds:"
                f" {', '.join(map(str, workload['elements_not_trained']))}. The random workload tests arithmetic, not"
                " chemistry: its atoms overlap, and a trained model answers with forces without meaning or bound."
            )
        busy = max((s["load_1min"] for r in records for s in r.samples), default=0.0)
        threads = record.facts["observed"]["threads"]
        if busy > threads + BUSY:
            said.append(
                f"Other work was running beside this (load {busy:.1f} for {threads} thread(s)): read the intervals."
            )
        return said
    return ["No complete case."]


def profile_view(record: Record) -> View | None:
    """Where the last stage spends its time."""
    if record.profile is None:
        return None
    rows = [
        [r["operation"], str(r["calls"]), f"{r['ms']:.2f}", f"{100 * r['share']:.1f}%"] for r in record.profile["rows"]
    ]
    precision = record.case["parameters"]["precision"].upper()
    title = f"Where the time of {record.profile['stage'].replace('_', ' ')} goes, {precision}"
    note = "One profiled call; own time. Compiled element-wise and gather/scatter kernels show as CompiledFxGraph."
    return View(title, ["operation", "calls", "ms", "share"], rows, note)


def model_section(records: list[Record]) -> Section | None:
    """What the trained model has learnt, and from which data."""
    about = next((r.facts["model"] for r in records if r.facts.get("model", {}).get("held_out")), None)
    if about is None:
        return None
    rows = [
        [
            r["head"], r["role"], r["level"], str(r["structures"]),
            number(r["energy_mae_ev_per_atom"], ".3f"), number(r["composition_mae_ev_per_atom"], ".3f"),
            number(r["force_mae_ev_per_a"], ".3f"), number(r["zero_force_mae_ev_per_a"], ".3f"),
        ]
        for r in about["held_out"]
    ]  # fmt: skip
    columns = [
        "head", "data", "level of theory", "held-out structures", "MAE E (eV/atom)", "composition only",
        "MAE F (eV/\N{ANGSTROM SIGN})", "zero forces",
    ]  # fmt: skip
    paragraphs = [
        "Stand-ins are real labelled data of other chemistry or another level of theory than the dataset whose head"
        " they train; samples are drawn from the dataset itself. Sources and licences:"
        " harness/reference/datasets/mini/sets.yaml.",
        f"Untrained heads (no data yet): {', '.join(about['untrained_heads']) or 'none'}.",
    ]
    note = (
        "Held-out structures of the shipped sets; of their molecules, materials, reactions and trajectories none is in"
        " training. Left out are those with elements that the head was not trained on. A dash: no force labels."
    )
    return Section("The trained model", "model", paragraphs, views=[View("Held-out errors", columns, rows, note)])


def merits_section(records: list[Record]) -> Section | None:
    """Figures of merit beside the references that the suites give."""
    rows = [
        [
            *(r.case.get("name", ""), m.name, f"{number(m.measured)} {m.unit}"),
            *(f"{m.reference:g}", f"{m.tolerance:.0%}", m.verdict),
        ]
        for r in records
        for m in r.merits
    ]
    if not rows:
        return None
    columns = ["case", "figure", "measured", "reference", "tolerance", "verdict"]
    return Section("Figures of merit", "merits", views=[View("Beside their references", columns, rows)])


def unfinished_section(records: list[Record]) -> Section | None:
    """Cases that did not end well, with what is known of why."""
    rows = [
        [r.case.get("name", r.folder.name), r.state, r.error or "no message; see stderr", str(r.folder)]
        for r in records
        if r.state != "done"
    ]
    if not rows:
        return None
    return Section("Not complete", "unfinished", views=[View("Cases", ["case", "state", "message", "folder"], rows)])


def provenance_section(records: list[Record]) -> Section:
    """Code, environment and machine of every case."""
    rows = []
    for r in records:
        p, seen = r.provenance, r.facts.get("observed", {})
        changed = " + changes" if p.get("changed_since_commit") else ""
        when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(p["time_s"])) if "time_s" in p else DASH
        load = max((s["load_1min"] for s in r.samples if "load_1min" in s), default=math.nan)
        rows.append(
            [
                r.case.get("name", ""), when, (p.get("commit") or "not a clone")[:12] + changed,
                f"{p.get('cpu', DASH)}, {p.get('cores', DASH)} cores, {p.get('memory_bytes', 0) / 2**30:.0f} GiB",
                f"{seen.get('device', DASH)}, {seen.get('threads', DASH)} thread(s)", number(load, ".1f"),
                ", ".join(seen.get("parameters", [])) or DASH,
                ", ".join(f"{k} {v}" for k, v in p.get("packages", {}).items()),
            ]
        )  # fmt: skip
    columns = ["case", "submitted", "commit", "machine", "device", "highest load", "dtype of weights", "packages"]
    note = (
        "Load: the highest one-minute load average at the start of a round; well above the thread count, others were"
        " at work."
    )
    return Section("Provenance", "provenance", views=[View("Cases", columns, rows, note)])
