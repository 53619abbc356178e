"""The sections of the report on the inference ladder, and on the trained model that climbs it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import get_args

import pandas as pd

from harness.document.blocks import Section, View, interval, number, threads_of
from harness.document.figures import ladder_bars
from harness.document.paper import Paper
from harness.experiments.cost.page import with_costs
from harness.experiments.ladder.metrics import APPROXIMATE, TOLERANCE
from harness.experiments.ladder.roofline import roofline
from harness.experiments.ladder.work import profile_views, work_view
from harness.protocol.parameters import StageName
from harness.protocol.text import count
from harness.results.runs import Record

STAGES = list(get_args(StageName))
# What the load average may exceed the threads by before the report speaks of it.
BUSY = 0.7


def ladder_section(rows: pd.DataFrame, records: list[Record], paper: Paper, figures: Path) -> Section:
    """One model on one workload: paper beside ours, the figure, and the details of each precision."""
    first = rows.iloc[0]
    slug = f"{first['suite']}-{first['workload']}-{first['experiment']}"
    views = [beside_paper(rows, paper)]
    for precision, own in rows.groupby("precision", sort=False):
        views += [details(str(precision), own), work_view(str(precision), own)]
    views += [v for r in records for v in profile_views(r)]
    drawn = [ladder_bars(rows, paper.table_xv, STAGES, figures, slug)] if rows["speedup"].notna().any() else []
    if rows["share_of_attainable"].notna().any():
        drawn.append(roofline(rows, records, figures, f"{slug}-roofline"))
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
        f" {first['device']}, {threads_of(first['threads'])}, device work only. * differs from the"
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
        "max |dE| (eV/atom)", "max |dF| (eV/\N{ANGSTROM SIGN})", "max |dF| / largest force", "first call (s)", "n",
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
        f" end adds neighbour lists, collation and transfer.{state}"
    )
    return with_costs(View(f"{precision.upper()} in detail", columns, body, note), rows)


def notes(records: list[Record]) -> list[str]:
    """What must be known to read a ladder: what kind of model, what the gate leaves live, what is untrained."""
    for record in records:
        about, workload, gate, observed = (record.facts.get(k) for k in ("model", "workload", "gate", "observed"))
        if not about or not workload or not gate or not observed:
            continue
        live = sorted({h for batch in gate["live_heads"] for h in batch})
        counts = sorted({len(batch) for batch in gate["live_heads"]})
        said = [
            f"{count(workload['structures'], 'structure')} in {count(workload['batches'], 'batch', 'batches')} of"
            f" {workload['batch_size']}."
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
        if record.stages.get("tuned_allocator", {}).get("event") == "warm_up":
            said.append(
                "Stages up to torch compile have glibc's allocator as it is by itself, which gives large tensors back"
                " to the kernel and has their pages cleared anew each time; those after it have it keep them."
            )
        busy = max((s.get("load_1min", 0.0) for r in records for s in r.samples), default=0.0)
        threads = observed["threads"]
        if busy > threads + BUSY:
            said.append(
                f"Other work was running beside this (load {busy:.1f} for {count(threads, 'thread')}):"
                " read the intervals."
            )
        return said
    return ["No complete case."]


def model_section(records: list[Record]) -> Section | None:
    """What the trained model has learnt, and from which data."""
    about = next((r.facts["model"] for r in records if r.facts.get("model", {}).get("held_out")), None)
    if about is None:
        return None
    rows = [
        [
            r["head"], r["role"], r["level"], str(r["structures"]),
            number(r.get("energy_mae_ev_per_atom"), ".3f"), number(r.get("composition_mae_ev_per_atom"), ".3f"),
            number(r.get("force_mae_ev_per_a"), ".3f"), number(r.get("zero_force_mae_ev_per_a"), ".3f"),
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
        " harness/reference/datasets/shipped/sets.yaml.",
        f"Untrained heads (no data yet): {', '.join(about.get('untrained_heads', ())) or 'none'}.",
    ]
    note = (
        "Held-out structures of the shipped sets; of their molecules, materials, reactions and trajectories none is in"
        " training. Left out are those with elements that the head was not trained on. A dash: no force labels."
    )
    return Section("The trained model", "model", paragraphs, views=[View("Held-out errors", columns, rows, note)])
