"""The sections of the report on training: errors on held-out structures, learning curves, and how the runs went."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from harness.document.blocks import DASH, Section, View, lines, number, threads_of
from harness.document.figures import Figure
from harness.experiments.cost.page import with_costs
from harness.experiments.data.page import MEANING, role
from harness.experiments.training.figures import FRACTIONS, WORDS, error_ratios, head_curves, kind_of, loss_curves
from harness.experiments.training.metrics import ENERGY, FORCES, QUANTITIES, Quantity, TrainingTables
from harness.experiments.training.multitask import AblationTables
from harness.protocol.text import count

MEV = 1000.0
NAMES = {"painn": "PaiNN", "pnaeq": "PNAEq", "egnn": "EGNN", "schnet": "SchNet", "dimenet": "DimeNet++", "mace": "MACE"}
UNITS = {"energy": "meV/atom", "forces": "meV/\N{ANGSTROM SIGN}"}
TITLES = {"energy": "Energy per atom", "forces": "Forces"}
BASELINES = {"energy": "composition only", "forces": "zero forces"}


def training_sections(training: TrainingTables, ablation: AblationTables, figures: Path) -> list[Section]:
    """A section for each experiment but those of an ablation, which have one of their own; draws the figures."""
    runs = training.runs
    twins = runs["recipe"].isin(ablation.heads["recipe"]) & (runs["task"] == "single-task")
    left = runs[~twins & ~runs["experiment"].isin(ablation.heads["experiment"])]
    return [experiment_section(experiment, training, figures) for experiment in left["experiment"].unique()]


def experiment_section(experiment: str, training: TrainingTables, figures: Path) -> Section:
    """What one experiment has learnt, over its seeds."""
    runs, errors, epochs, heads = (
        t[t["experiment"] == experiment] for t in (training.runs, training.errors, training.epochs, training.heads)
    )
    alone = runs["task"].iloc[0] == "single-task"
    paragraphs = [setting(runs, errors), *(target(errors, q) for q in (FORCES, ENERGY)), *remarks(runs)]
    name = f"training-{experiment}"
    drawn: list[Figure] = [error_ratios(errors, figures, f"{name}-errors")]
    if len(epochs) and not alone:
        drawn.append(loss_curves(epochs, figures, f"{name}-loss"))
    if len(heads):
        drawn.append(head_curves(heads, errors, figures, f"{name}-heads"))
    views = [*(errors_view(errors, q) for q in QUANTITIES), runs_view(runs)]
    what = "Single-task training" if alone else "Multi-task training"
    return Section(f"{what}: {model(runs)}", name, paragraphs, drawn, views)


def model(runs: pd.DataFrame) -> str:
    """`PaiNN, width 64, 3 layers`."""
    first = runs.iloc[0]
    name = NAMES.get(first["backbone"], first["backbone"])
    return f"{name}, width {first['hidden_dim']}, {count(first['num_conv_layers'], 'layer')}"


def setting(runs: pd.DataFrame, errors: pd.DataFrame) -> str:
    """Which data, how many parameters, which seeds."""
    about = errors.drop_duplicates("head")
    counts = about["role"].map(kind_of).value_counts(sort=False)
    kinds = [f"{n} {kind}{'s' if n > 1 and kind != 'official' else ''}" for kind, n in counts.items()]
    first = runs.iloc[0]
    joint = first["task"] == "multi-task"
    how = "trained jointly, one head each" if joint else "trained each on its own"
    return " ".join(
        [
            f"{count(len(about), 'dataset')}, {how}: {', '.join(kinds)};"
            f" {'' if joint else 'at most '}{runs['elements'].max()} elements,"
            f" {number(first['parameters'], ',.0f')} parameters, {seeds(runs)}.",
            *(text for kind, text in MEANING.items() if kind in counts),
        ]
    )


def seeds(runs: pd.DataFrame) -> str:
    """`seeds 0, 1, 2`, or that there is but one."""
    found = listed(runs["seed"])
    return f"seeds {found}" if runs["seed"].nunique() > 1 else f"one seed ({found}), hence no intervals"


def listed(values: pd.Series[Any]) -> str:
    """The distinct values in order, with commas."""
    return ", ".join(map(str, sorted(set(values.dropna())))) or DASH


def target(errors: pd.DataFrame, quantity: Quantity) -> str:
    """How many heads meet the target, and which do not."""
    own = errors[(errors["quantity"] == quantity.name) & ~errors["verdict"].isin(["no labels", "no structures"])]
    if own.empty:
        return f"{TITLES[quantity.name]}: no head has labels to be judged by."
    met = own[own["verdict"] == "met"]
    whole = int((met["ratio_high"] <= quantity.target).sum())
    sure = f" (on {whole} with the whole interval)" if met["ratio_high"].notna().any() else ""
    short = own[own["verdict"] != "met"]
    rest = [f"{r['head']} ({number(r['ratio'], '.3f')})" for r in lines(short)]
    return (
        f"{TITLES[quantity.name]}: MAE at most {FRACTIONS[quantity.target]} of that of"
        f" {'the composition alone' if quantity is ENERGY else 'zero forces'} on {len(met)} of {len(own)} heads{sure}."
        + (f" Not on {', '.join(rest)}." if rest else "")
    )


def remarks(runs: pd.DataFrame) -> list[str]:
    """What must be known of how the runs went: precision, compilation, early stops, resumption, the gate."""
    said = []
    for r in lines(runs[~runs["as_asked"].astype(bool)]):
        said.append(f"WRONG: {r['case']} was asked for {r['precision']} and ran with {r['found']}.")
    for why, own in runs[runs["why_eager"].notna()].groupby("why_eager"):
        said.append(f"Not compiled, {count(len(own), 'run')}: {why}.")
    for why, own in runs[runs["why_plain"].notna()].groupby("why_plain"):
        said.append(f"Plain messages in place of fused ones, {count(len(own), 'run')}: {why}.")
    for why, own in runs[runs["stopped"].notna()].groupby("stopped"):
        said.append(f"Ended early, {count(len(own), 'run')}: {why}.")
    resumed = int((runs["resumed"] > 0).sum())
    if resumed:
        said.append(f"Broken off and resumed from a checkpoint: {count(resumed, 'run')}.")
    gate = runs[runs["gate_right_branch"].notna()]
    if len(gate):
        said.append(
            "The gate gives more than half of the weight to the right branch for"
            f" {span(gate['gate_right_branch'], '.0%')} of training structures; the mixed energy is"
            f" {span(MEV * gate['gate_energy_error_ev_per_atom'])} meV/atom from that of the right branch."
        )
    return said


def span(values: pd.Series[float], spec: str = ".3g") -> str:
    """`0.91 to 0.94`, or the one number that there is."""
    low, high = number(float(values.min()), spec), number(float(values.max()), spec)
    return low if low == high else f"{low} to {high}"


def spread(row: Mapping[Any, Any], name: str, scale: float = 1.0, spec: str = ".3g") -> str:
    """`12.3 [11.9, 12.8]`; of one seed without an interval."""
    value, low, high = (scaled(row[f"{name}{end}"], scale, spec) for end in ("", "_low", "_high"))
    return value if low == DASH else f"{value} [{low}, {high}]"


def scaled(value: float | None, scale: float, spec: str = ".3g") -> str:
    """The value times the scale as text, a dash for none."""
    return number(None if value is None else scale * value, spec)


def dataset(row: Mapping[Any, Any]) -> str:
    """`stand-in for OC2020`."""
    return role({"role": kind_of(row["role"]), "head": row["head"]})


def errors_view(errors: pd.DataFrame, quantity: Quantity) -> View:
    """Errors of each head on its test set beside the baselines."""
    unit, baseline = UNITS[quantity.name], BASELINES[quantity.name]
    mean = ["predict the mean, MAE"] if quantity.mean_mae else []
    columns = [
        "data", "level of theory", "test structures", f"MAE ({unit}) [95%]", f"RMSE ({unit}) [95%]",
        f"{baseline}, MAE", f"{baseline}, RMSE", *mean, f"MAE / {baseline} [95%]",
        f"at most {FRACTIONS[quantity.target]}", "seeds",
    ]  # fmt: skip
    rows = lines(errors[errors["quantity"] == quantity.name])
    body = [
        [
            dataset(r), r["level"] or DASH, number(r["structures"], ",.0f"), spread(r, "mae", MEV),
            spread(r, "rmse", MEV), scaled(r["baseline_mae"], MEV), scaled(r["baseline_rmse"], MEV),
            *([scaled(r["mean_mae"], MEV)] if mean else []), spread(r, "ratio", 1.0, ".3f"),
            WORDS.get(r["verdict"], r["verdict"]), str(r["seeds"]),
        ]
        for r in rows
    ]  # fmt: skip
    unseen = [f"{r['unseen_elements']} of {r['head']}" for r in rows if r["unseen_elements"]]
    note = (
        "Means over seeds with Student's 95% interval over them, which says nothing of the choice of test structures."
        " No molecule, material, reaction or trajectory of the test set is in training."
        + (" A dash: no force labels." if quantity is FORCES else "")
        + (f" Left out for elements that the head's training set lacks: {', '.join(unseen)}." if unseen else "")
    )
    return View(f"{TITLES[quantity.name]}: errors on held-out structures", columns, body, note)


def runs_view(runs: pd.DataFrame) -> View:
    """How each run was made and how fast it went."""
    columns = [
        "case", "seed", "asked for", "found", "compiled", "messages", "ranks", "device", "batch, all ranks", "epochs",
        "steps", "best epoch", "validation loss", "time (s)", "graphs/s", "waiting for data",
    ]  # fmt: skip
    body = [
        [
            r["case"], str(r["seed"]), str(r["precision"]).upper(), r["found"] or DASH,
            "yes" if r["compiled"] else "no, eager", r["messages"], number(r["world_size"], ".0f"),
            f"{r['device']}, {threads_of(r['threads'])}",
            number(r["global_batch"], ",.0f"), f"{r['epochs_done']} of {number(r['epochs'], '.0f')}",
            number(r["steps"], ",.0f"), number(r["best_epoch"], ".0f"), number(r["validation_loss"]),
            number(r["train_s"]), number(r["graphs_per_s"]), number(r["waiting"], ".1%"),
        ]
        for r in lines(runs)
    ]  # fmt: skip
    note = "Graphs/s: median over epochs. Waiting for data: share of the time of the epochs."
    if runs["skipped"].sum():
        note += f" Steps left out, since their gradient was no number: {listed(runs['skipped'])}."
    return with_costs(View("Runs", columns, body, note), runs)
