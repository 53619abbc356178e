"""The page on training: errors on held-out structures, learning curves, and the runs."""

from __future__ import annotations

import pandas as pd

from harness.document.blocks import (
    Column,
    Section,
    TableBlock,
    build_block,
    duration_cell,
    format_number,
    format_threads,
    list_rows,
    number_cell,
    text_cell,
)
from harness.document.figures import Figure
from harness.experiments.cost.page import add_cost_columns
from harness.experiments.experiment import PageContext
from harness.experiments.implementations import describe_implementations
from harness.experiments.physics import build_physics_block
from harness.experiments.training.descriptions import (
    MEV,
    QUANTITY_TITLES,
    UNITS,
    describe_dataset,
    describe_model,
    describe_runs,
    describe_setup,
    estimate_cell,
    join_unique,
)
from harness.experiments.training.figures import (
    FRACTIONS,
    VERDICT_TEXTS,
    draw_error_ratios,
    draw_head_curves,
    draw_loss_curves,
)
from harness.experiments.training.imbalance_page import build_imbalance_sections
from harness.experiments.training.multitask_page import build_ablation_sections
from harness.experiments.training.quantities import ENERGY, FORCES, QUANTITIES, Quantity

BASELINES = {"energy": "composition only", "forces": "zero forces"}


def build_sections(context: PageContext) -> list[Section]:
    """Return a section for each setup, those on multi-task against single-task training, and those on imbalance."""
    runs, ablation = context.tables["training_runs"], context.tables["ablation_heads"]
    is_baseline = runs["recipe"].isin(ablation["recipe"]) & (runs["regime"] == "single-task")
    is_treated = runs["setup"].isin(context.tables["imbalance_heads"]["setup"])
    others = runs[~is_baseline & ~is_treated & ~runs["setup"].isin(ablation["setup"])]
    sections = [build_setup_section(setup, context) for setup in others["setup"].unique()]
    return [*sections, *build_ablation_sections(context), *build_imbalance_sections(context)]


def build_setup_section(setup: str, context: PageContext) -> Section:
    """Return the section on one setup, whose runs differ in the seed and, in single-task training, in the dataset."""
    runs, errors, epochs, heads, physics = (
        table[table["setup"] == setup]
        for table in (context.tables[f"training_{name}"] for name in ("runs", "errors", "epochs", "heads", "physics"))
    )
    is_single = runs["regime"].iloc[0] == "single-task"
    targets = [describe_target(errors, quantity) for quantity in (FORCES, ENERGY)]
    name = f"training-{setup}"
    figures: list[Figure] = [draw_error_ratios(errors, context.figures, f"{name}-errors")]
    if len(epochs) and not is_single:
        figures.append(draw_loss_curves(epochs, context.figures, f"{name}-loss"))
    if len(heads):
        figures.append(draw_head_curves(heads, errors, context.figures, f"{name}-heads"))
    blocks = [*(build_errors_block(errors, quantity) for quantity in QUANTITIES), build_runs_block(runs)]
    if len(physics):
        blocks.append(build_physics_block("Physics of the checkpoint", physics, "case"))
    task = "Single-task training" if is_single else "Multi-task training"
    measured = [record for record in context.records if record.location in set(runs["folder"])]
    paragraphs = [describe_setup(runs, errors), *targets, *describe_runs(runs), *describe_implementations(measured)]
    title = f"{task}: {describe_model(runs)}"
    return Section(title, name, paragraphs, figures, blocks, finding=summarize_targets(errors))


def summarize_targets(errors: pd.DataFrame) -> str:
    """Return for how many heads the error meets the target, for forces and energies; empty without labels."""
    texts = []
    for quantity in (FORCES, ENERGY):
        judged = errors[(errors["quantity"] == quantity.name) & ~errors["verdict"].isin(["no labels", "no structures"])]
        if len(judged):
            n_met, noun = int((judged["verdict"] == "met").sum()), "force" if quantity is FORCES else "energy"
            texts.append(
                f"{noun} errors are at most {FRACTIONS[quantity.target]} of those of {BASELINES[quantity.name]} for"
                f" {n_met} of {len(judged)} heads"
            )
    return "; ".join(texts)


def describe_target(errors: pd.DataFrame, quantity: Quantity) -> str:
    """Return a paragraph on the heads that meet the target and the heads that miss it."""
    judged = errors[(errors["quantity"] == quantity.name) & ~errors["verdict"].isin(["no labels", "no structures"])]
    if judged.empty:
        return f"{QUANTITY_TITLES[quantity.name]}: no head has labels."
    met = judged[judged["verdict"] == "met"]
    n_whole = int((met["ratio_high"] <= quantity.target).sum())
    suffix = f" (for {n_whole} with the whole interval)" if met["ratio_high"].notna().any() else ""
    others = list_rows(judged[judged["verdict"] != "met"])
    missed = [f"{r['head']} ({format_number(r['ratio'], '.3f')})" for r in others]
    return (
        f"{QUANTITY_TITLES[quantity.name]}: the MAE is at most {FRACTIONS[quantity.target]} of that of"
        f" {'the composition alone' if quantity is ENERGY else 'zero forces'} for {len(met)} of {len(judged)}"
        f" heads{suffix}." + (f" It is larger for {', '.join(missed)}." if missed else "")
    )


def build_errors_block(errors: pd.DataFrame, quantity: Quantity) -> TableBlock:
    """Return the table of the errors of each head on test structures, and of the errors of the baselines."""
    unit, baseline = UNITS[quantity.name], BASELINES[quantity.name]
    mean: list[Column] = [("mean energy, MAE", number_cell("mean_mae", scale=MEV))] if quantity.mean_mae else []
    columns: list[Column] = [
        ("data", describe_dataset),
        ("level of theory", text_cell("level_of_theory")),
        ("test structures", number_cell("structures", ",.0f")),
        (f"MAE ({unit}) [95%]", estimate_cell("mae", MEV)),
        (f"RMSE ({unit}) [95%]", estimate_cell("rmse", MEV)),
        (f"{baseline}, MAE", number_cell("baseline_mae", scale=MEV)),
        (f"{baseline}, RMSE", number_cell("baseline_rmse", scale=MEV)),
        *mean,
        (f"MAE / {baseline} [95%]", estimate_cell("ratio", spec=".3f")),
        (
            f"target: ratio of at most {FRACTIONS[quantity.target]}",
            lambda r: VERDICT_TEXTS.get(r["verdict"], r["verdict"]),
        ),
        ("seeds", "seeds"),
    ]
    rows = list_rows(errors[errors["quantity"] == quantity.name])
    unseen = [
        f"{r['structures_with_unseen_elements']} of {r['head']}" for r in rows if r["structures_with_unseen_elements"]
    ]
    note = (
        "Errors are means over seeds with Student's 95% interval, which does not include the choice of test"
        " structures. No molecule, material, reaction or trajectory of the test set is in the training set."
        + (" A dash means that there are no force labels." if quantity is FORCES else "")
        + (
            f" Structures with elements that the training set lacks are left out: {', '.join(unseen)}."
            if unseen
            else ""
        )
    )
    return build_block(f"{QUANTITY_TITLES[quantity.name]}: errors on held-out structures", rows, columns, note)


def build_runs_block(runs: pd.DataFrame) -> TableBlock:
    """Return the table of runs, with configuration, length and speed."""
    columns: list[Column] = [
        ("case", "case"),
        ("seed", lambda r: str(r["seed"])),
        ("requested precision", lambda r: str(r["precision"]).upper()),
        ("observed types", text_cell("observed_dtypes")),
        ("compiled", lambda r: "yes" if r["compiled"] else "no, eager"),
        ("computation of messages", "message_backend"),
        ("ranks", number_cell("world_size", ".0f")),
        ("device", lambda r: f"{r['device']}, {format_threads(r['threads'])}"),
        ("batch, all ranks", number_cell("global_batch_size", ",.0f")),
        ("epochs", lambda r: f"{r['epochs_done']} of {format_number(r['epochs'], '.0f')}"),
        ("steps", number_cell("steps", ",.0f")),
        ("best epoch", number_cell("best_epoch", ".0f")),
        ("validation loss", number_cell("validation_loss")),
        ("physics of the checkpoint", text_cell("physics")),
        ("time", duration_cell("train_s")),
        ("structures/s", number_cell("structures_per_s")),
        ("waiting for data, share of the time", number_cell("data_wait_fraction", ".1%")),
    ]
    note = "Structures/s is the median over epochs. Waiting for data is compared with the time of the epochs."
    if runs["skipped_steps"].sum():
        note += f" Numbers of steps skipped because the gradient was not finite: {join_unique(runs['skipped_steps'])}."
    return add_cost_columns(build_block("Runs", list_rows(runs), columns, note), runs)
