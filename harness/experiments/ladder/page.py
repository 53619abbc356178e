"""The page on the inference ladder, on training steps, and on the trained model that the ladder runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, get_args

import pandas as pd

from harness.document.blocks import (
    EN_DASH,
    Column,
    PrintedPaper,
    Section,
    TableBlock,
    build_block,
    format_number,
    format_threads,
    interval_cell,
    list_rows,
    number_cell,
    text_cell,
)
from harness.experiments.cost.page import add_cost_columns
from harness.experiments.experiment import PageContext
from harness.experiments.implementations import describe_implementations
from harness.experiments.ladder.figures import draw_ladder, draw_roofline
from harness.experiments.ladder.metrics import TOLERANCE
from harness.experiments.ladder.stages import LOAD_MARGIN
from harness.experiments.ladder.training_steps_page import build_steps_sections
from harness.experiments.rounds import describe_rounds
from harness.protocol.programs.ladder import APPROXIMATE, StageName
from harness.protocol.text import pluralize
from harness.results.runs import RunRecord
from harness.results.tables import Row

MIB = 2**20
STAGES = list(get_args(StageName))
# The last stage that the paper prints.
PAPER_STAGE = "torch_compile"
# A page with more ladders is too long to read.
MAX_LADDERS = 200


def build_sections(context: PageContext) -> list[Section]:
    """Return the sections on the ladders, on training steps, and on the trained model."""
    sections = []
    ladders = context.tables["ladder"].groupby("setup", sort=False)
    records = {record.location: record for record in context.records}
    for _, rows in islice(ladders, MAX_LADDERS):
        runs = [records[folder] for folder in dict.fromkeys(rows["folder"])]
        sections.append(build_ladder_section(rows, runs, context.paper, context.figures))
    if len(ladders) > MAX_LADDERS:
        rest = f"tables/ladder.csv contains {pluralize(len(ladders) - MAX_LADDERS, 'ladder')} more."
        sections.append(Section("Further ladders", "further-ladders", [rest]))
    return [
        *sections,
        *build_steps_sections(context.tables["training_steps"], context.records),
        *build_model_section(context.records),
    ]


def build_ladder_section(rows: pd.DataFrame, records: list[RunRecord], paper: PrintedPaper, figures: Path) -> Section:
    """Return the section on one model and workload: the paper's rates, the figures, and the details per precision."""
    first = rows.iloc[0]
    slug = f"{first['suite']}-{first['workload']}-{first['setup']}"
    blocks = [build_paper_block(rows, paper)]
    for precision, group in rows.groupby("precision", sort=False):
        blocks += [build_details_block(str(precision), group), build_work_block(str(precision), group)]
    blocks += [block for record in records for block in build_profile_blocks(record)]
    drawings = [draw_ladder(rows, paper.table_xv, STAGES, figures, slug)] if rows["speedup"].notna().any() else []
    if rows["attainable_fraction"].notna().any():
        drawings.append(draw_roofline(rows, records, figures, f"{slug}-roofline"))
    title = f"Ladder: {first['architecture']}, {first['model']}, {first['workload']} workload"
    if repeat := records[0].case.get("repeat"):
        title += f", repeat {repeat}"
    return Section(
        title,
        slug,
        [*describe_ladder(records), *describe_rounds(records, rows["folder"])],
        drawings,
        blocks,
        finding=summarize_speedups(rows),
    )


def summarize_speedups(rows: pd.DataFrame) -> str:
    """Return the speed-up of the paper's stages and the largest one in each precision; empty without speed-ups."""
    texts = []
    for precision, group in rows[rows["speedup"].notna()].groupby("precision", sort=False):
        best = list_rows(group.loc[[group["speedup"].idxmax()]])[0]
        printed = group[group["stage"] == PAPER_STAGE]
        stage = format_stage(best) + (", approximate" if best["stage"] in APPROXIMATE else "")
        text = f"{best['speedup']:.1f} times faster in {str(precision).upper()} with {stage}"
        if len(printed) and best["stage"] != PAPER_STAGE:
            value = f"{printed['speedup'].iloc[0]:.1f} times faster in {str(precision).upper()} with the paper's stages"
            text = f"{value} ({best['speedup']:.1f} with {stage})"
        texts.append(text)
    return "; ".join(texts)


def build_paper_block(rows: pd.DataFrame, paper: PrintedPaper) -> TableBlock:
    """Return the table with the four columns of Table XV and a column per precision, with rates and speed-ups."""
    table = paper.table_xv
    precisions = list(dict.fromkeys(rows["precision"]))
    first = rows.iloc[0]
    columns = ["stage", *(f"paper, {c}" for c in table.columns), *(f"measured, {p.upper()}" for p in precisions)]
    body = []
    for stage in STAGES:
        line = [stage.replace("_", " ")]
        for k in range(len(table.columns)):
            value = table.rows.get(stage)
            line.append(f"{value[k]:g} ({value[k] / table.rows['baseline'][k]:.1f}x)" if value else "not printed")
        for precision in precisions:
            line.append(format_rate(rows[(rows["precision"] == precision) & (rows["stage"] == stage)]))
        body.append(line)
    note = (
        "The numbers are structures/s, with the speed-up over the baseline of the same column in brackets. Paper:"
        f" {table.source}, HydraGNN's PaiNN, one GPU. Measured: {first['architecture']}, {first['device']},"
        f" {format_threads(first['threads'])}, device time only."
        " A * marks stages that differ from the baseline by design."
    )
    return TableBlock("The paper's Table XV and this machine", columns, body, note)


def format_rate(row: pd.DataFrame) -> str:
    """Return rate and speed-up of a stage, `12.3 (4.5x)`, or the verdict if there is no number."""
    if row.empty:
        return "not run"
    r = row.iloc[0]
    if math.isnan(r["structures_per_s"]):
        return str(r["verdict"])
    star = "*" if r["stage"] in APPROXIMATE else ""
    speedup = f"{r['speedup']:.1f}x{star}" if not math.isnan(r["speedup"]) else str(r["verdict"])
    return f"{format_number(r['structures_per_s'])} ({speedup})"


def build_details_block(precision: str, rows: pd.DataFrame) -> TableBlock:
    """Return the table of the stages of one case, with rates, intervals and errors."""
    columns: list[Column] = [
        ("stage", format_stage),
        ("verdict", "verdict"),
        ("physics checks", text_cell("physics")),
        ("structures/s [interval]", interval_cell("structures_per_s", "structures_per_s_low", "structures_per_s_high")),
        ("speed-up [interval]", interval_cell("speedup")),
        (
            "end to end, structures/s [interval]",
            interval_cell(
                "end_to_end_structures_per_s", "end_to_end_structures_per_s_low", "end_to_end_structures_per_s_high"
            ),
        ),
        ("max |dE| (eV/atom)", number_cell("max_energy_error_ev_per_atom", ".1e")),
        ("max |dF| (eV/\N{ANGSTROM SIGN})", number_cell("max_force_error_ev_per_angstrom", ".1e")),
        ("max |dF| / largest force", number_cell("force_error_relative", ".1e")),
        ("first call (s)", number_cell("first_call_s", ".1f")),
        ("rounds", "samples"),
    ]
    first = rows.iloc[0]
    state = "" if first["state"] == "done" else f" The case is incomplete ({first['state']})."
    note = (
        f"{format_number(first['structures'], '.0f')} structures, {format_number(first['atoms'], '.0f')} atoms,"
        f" {format_number(first['edges'], '.0f')} edges. Medians over rounds of all batches with order-statistic"
        f" intervals ({format_number(100 * rows['coverage'].max(), '.1f')}% coverage). Speed-ups are ratios within a"
        f" round. An exact stage is ok if its errors are at most {TOLERANCE[precision]:g} of the largest force and"
        f" energy. End-to-end rates include neighbour lists, collation and transfer.{state}"
    )
    title = f"{precision.upper()} in detail"
    return add_cost_columns(build_block(title, list_rows(rows), columns, note), rows)


def build_work_block(precision: str, rows: pd.DataFrame) -> TableBlock:
    """Return the table of arithmetic, traffic and memory of the stages of one case, and of the attainable rates."""
    columns: list[Column] = [
        ("stage", format_stage),
        ("GFLOP/batch", number_cell("gflop")),
        ("GB/batch", number_cell("memory_traffic_gb")),
        (
            "FLOP/byte",
            lambda r: (
                EN_DASH
                if r["gflop"] is None or r["memory_traffic_gb"] is None
                else format_number(r["gflop"] / r["memory_traffic_gb"])
            ),
        ),
        ("GFLOP/s", number_cell("gflop_per_s")),
        ("attainable GFLOP/s", number_cell("attainable_gflop_per_s")),
        ("share of attainable rate", number_cell("attainable_fraction", ".0%")),
        ("share of matrix peak", number_cell("matrix_peak_fraction", ".0%")),
        ("peak memory (MiB)", number_cell("peak_bytes", ".0f", 1 / MIB)),
        ("largest batch", number_cell("max_batch_size", ",.0f")),
        ("padding, share of atoms", number_cell("padding_atom_fraction", ".1%")),
        ("padding, share of edges", number_cell("padding_edge_fraction", ".1%")),
        ("static shapes", number_cell("shapes", ".0f")),
    ]
    note = (
        "All numbers are for the first batch. The arithmetic includes matrix products and, if one operator computes"
        " them, messages, but no element-wise operations. The traffic is that of the inputs and results of each"
        " operation or compiled kernel, without caches. The attainable rate follows from the arithmetic at the rate of"
        " a product of the same shape and type, or the traffic at the rate of a copy, whichever takes longer, all"
        " measured in this run; caches can raise a share above 100%. The share of matrix peak compares matrix products"
        " with square products of the same types. Peak memory is the largest total of the tensors of one call, without"
        " the weights. The largest batch is extrapolated from peak memory to free memory, and is not tested. Padding"
        " is what static shapes add."
    )
    return build_block(f"{precision.upper()}: arithmetic, traffic and memory", list_rows(rows), columns, note)


def build_profile_blocks(record: RunRecord) -> list[TableBlock]:
    """Return the tables of the time of the profiled stage, by kind of operation and by operation, if there is one."""
    if record.profile is None:
        return []
    stage, precision = format_stage(record.profile), record.case["parameters"]["precision"].upper()
    subject = f"{stage}, {precision}"
    note = "Times are self times in one profiled call."
    groups = [[g["group"], f"{g['ms']:.2f}", f"{g['fraction']:.1%}"] for g in record.profile.get("groups", [])]
    rows = [[r["operation"], str(r["calls"]), f"{r['ms']:.2f}", f"{r['fraction']:.1%}"] for r in record.profile["rows"]]
    by_group = TableBlock(f"Time by kind of operation: {subject}", ["kind", "ms", "share"], groups, note)
    note += " Names of compiled element-wise and gather/scatter kernels contain `_fused_`."
    by_operation = TableBlock(f"Time by operation: {subject}", ["operation", "calls", "ms", "share"], rows, note)
    return [by_group, by_operation] if groups else [by_operation]


def format_stage(row: Mapping[str, Any]) -> str:
    """Return the name of the stage of a row with spaces, such as `encoder reuse`."""
    return str(row["stage"]).replace("_", " ")


def describe_ladder(records: list[RunRecord]) -> list[str]:
    """Return paragraphs on the workload, the model, its active heads, and conditions that affect the numbers."""
    for record in records:
        model, workload, gate, observed = (record.facts.get(k) for k in ("model", "workload", "gate", "runtime"))
        if not model or not workload or not gate or not observed:
            continue
        active = sorted({h for batch in gate["active_heads"] for h in batch})
        counts = sorted({len(batch) for batch in gate["active_heads"]})
        limit = workload["max_neighbours"]
        neighbours = f"at most {limit}" if limit else "any number of"
        text = [
            f"The workload has {pluralize(workload['structures'], 'structure')} in"
            f" {pluralize(workload['batches'], 'batch', 'batches')} of {workload['batch_size']}. The model has"
            f" {model['parameters']:,} parameters and the {model['config']['readout']} readout; an atom has"
            f" {neighbours} neighbours within"
            f" {model['config']['cutoff']:g} angstrom.",
            f"Of {len(gate['mean_weight'])} heads, {' or '.join(map(str, counts))} per batch have a mean weight of at"
            f" least {gate['threshold']:g} ({', '.join(active)}).",
        ]
        if sentences := describe_implementations(records):
            text.append(
                f"{' '.join(sentences)} Structures and edges are those of the reference implementation; times of the"
                " device are those of the implementation's own timer, and the reference implementation builds the"
                " neighbour lists."
            )
        if not model["trained"]:
            text.append(
                "The weights are untrained and the gate is fixed by hand, so that rates and rounding errors are"
                " realistic, but the errors of branch skip are not."
            )
        if (model["config"].get("hydragnn") or {}).get("vector_bias"):
            text.append(
                "The model's layers for vector features have biases, as in the paper's weights, so that the forces of"
                " no stage rotate with the structure."
            )
        if workload["unseen_elements"]:
            text.append(
                "Atomic numbers in this workload that no training set contains:"
                f" {', '.join(map(str, workload['unseen_elements']))}. The random workload tests arithmetic, not"
                " chemistry: its atoms overlap, and a trained model predicts arbitrarily large forces for them."
            )
        if record.stages.get("tuned_allocator", {}).get("event") == "warm_up":
            text.append(
                "Stages up to torch compile use glibc's allocator with its defaults, which returns the memory of large"
                " tensors to the kernel, so that their pages are cleared at each allocation. Later stages keep this"
                " memory."
            )
        load = max((s.get("load_1min", 0.0) for r in records for s in r.samples), default=0.0)
        threads = observed["threads"]
        if load > threads + LOAD_MARGIN:
            text.append(
                f"Other processes were running at the same time (load {load:.1f} for {pluralize(threads, 'thread')}):"
                " the intervals show their effect."
            )
        return text
    return ["No complete case."]


def build_model_section(records: Sequence[RunRecord]) -> list[Section]:
    """Return the section on the errors and the data of the trained model, or none if no run used one."""
    model = next((r.facts["model"] for r in records if r.facts.get("model", {}).get("test_errors")), None)
    if model is None:
        return []
    columns: list[Column] = [
        ("head", "head"),
        ("data", "data_origin"),
        ("level of theory", "level_of_theory"),
        ("held-out structures", "structures"),
        ("MAE E (eV/atom)", lambda r: format_number(r.get("energy_mae_ev_per_atom"), ".3f")),
        ("MAE E, composition only (eV/atom)", lambda r: format_number(r.get("composition_mae_ev_per_atom"), ".3f")),
        ("MAE F (eV/\N{ANGSTROM SIGN})", lambda r: format_number(r.get("force_mae_ev_per_angstrom"), ".3f")),
        (
            "MAE F, zero forces (eV/\N{ANGSTROM SIGN})",
            lambda r: format_number(r.get("zero_force_mae_ev_per_angstrom"), ".3f"),
        ),
    ]
    paragraphs = [
        "Stand-ins are real labelled data that replace a dataset, and whose chemistry or level of theory differs from"
        " it; samples are random parts of the dataset itself. Sources and licences are in"
        " harness/reference/datasets/shipped/sets.yaml.",
        f"Heads without training data: {', '.join(model.get('untrained_heads', ())) or 'none'}.",
    ]
    note = (
        "The held-out structures are from the shipped datasets, and none of their molecules, materials, reactions or"
        " trajectories is in the training set. Structures with elements that the head was not trained on are left out."
        " A dash means that there are no force labels."
    )
    block = build_block("Held-out errors", map(Row, model["test_errors"]), columns, note)
    return [Section("The trained model", "model", paragraphs, tables=[block])]
