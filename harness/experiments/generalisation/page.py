"""The page on generalisation: errors on kinds of structures that training lacks."""

from __future__ import annotations

import pandas as pd

from harness.document.blocks import (
    Column,
    Section,
    TableBlock,
    build_block,
    format_number,
    format_range,
    interval_cell,
    list_rows,
    number_cell,
)
from harness.experiments.experiment import PageContext
from harness.experiments.generalisation.estimates import MIN_STRUCTURES
from harness.experiments.generalisation.figures import draw_distance, draw_ratios
from harness.experiments.generalisation.metrics import name_outside
from harness.experiments.training.descriptions import (
    MEV,
    QUANTITY_TITLES,
    UNITS,
    describe_dataset,
    format_estimate,
    list_seeds,
)
from harness.protocol.text import pluralize
from harness.results.tables import Row

BASELINES = {"energy": "composition alone", "forces": "zero forces"}
NAMES = {
    "outside / inside, present": "outside / inside, structures present in training",
    "outside / inside, absent": "outside / inside, structures absent from all sets",
    "outside / inside, elsewhere": "outside / inside, structures only in the sets of other heads",
    "absent / present": "outside: trained without / trained with the structures",
    "elsewhere / absent": "outside: structures only in other sets / in no set",
    "multi-task / single-task, absent": "outside, multi-task / single-task, both absent",
    "multi-task / single-task, present": "outside, multi-task / single-task, both present",
}


def build_sections(context: PageContext) -> list[Section]:
    """Return a section for each recipe of training."""
    recipes = context.tables["generalisation_errors"]["recipe"].unique()
    return [_build_section(recipe, context) for recipe in recipes]


def _build_section(recipe: str, context: PageContext) -> Section:
    runs, errors, gains, overall, distance = (
        table[table["recipe"] == recipe]
        for table in (
            context.tables[f"generalisation_{name}"] for name in ("runs", "errors", "gains", "overall", "distance")
        )
    )
    name = f"generalisation-{recipe}"
    figures = []
    if (errors["task"].eq("multi-task") & errors["ratio"].notna()).any():
        figures.append(draw_ratios(errors, context.figures, f"{name}-ratios"))
    if len(distance):
        figures.append(draw_distance(distance, context.figures, f"{name}-distance"))
    blocks = [_build_overall_block(overall), *(_build_errors_block(errors, quantity) for quantity in UNITS)]
    return Section(
        _describe_finding(overall, errors),
        name,
        [_describe_runs(runs), _describe_budget(runs), *_describe_result(overall), _describe_references()],
        figures,
        [*blocks, _build_gains_block(gains), _build_distance_block(distance), _build_runs_block(runs)],
    )


def _describe_finding(overall: pd.DataFrame, errors: pd.DataFrame) -> str:
    """Return the heading: the ratio of energy errors, or only what was held out if there is no ratio."""
    kinds = _count_kinds(errors)
    is_ratio = (overall["quantity"] == "energy") & (overall["comparison"] == "outside / inside, absent")
    rows = list_rows(overall[is_ratio])
    if not rows:
        return f"Errors on held-out kinds of structures: {kinds}"
    ratio = format_estimate(rows[0], "ratio", 1.0, ".2f")
    return f"Energy errors outside the training sets are {ratio} times those inside ({kinds})"


def _count_kinds(errors: pd.DataFrame) -> str:
    """Return the numbers of rules and files of which there are errors."""
    kinds = errors.drop_duplicates(["rule", "file"])
    counts = {"rule": int(kinds["file"].eq("").sum()), "file": kinds.loc[kinds["file"].ne(""), "file"].nunique()}
    return " and ".join(pluralize(count, noun) for noun, count in counts.items() if count)


def _describe_runs(runs: pd.DataFrame) -> str:
    joint = runs[runs["task"] == "multi-task"]
    stand_ins = f" ({joint['stand_ins'].max()} of them stand-ins)" if len(joint) and joint["stand_ins"].max() else ""
    return (
        f"Held out: {'; '.join(sorted(runs['rule'].unique()))}. Joint training is on {runs['datasets'].max()}"
        f" datasets{stand_ins}, {list_seeds(runs)}. Outside are the test structures that satisfy the rule, and those of"
        " files; inside are the other test structures. All runs of a rule are evaluated on the same structures."
    )


def _describe_budget(runs: pd.DataFrame) -> str:
    """Return a paragraph on the budgets, which says if the runs of a task sample different numbers of structures."""
    parts = []
    for task, rows in runs.groupby("task"):
        is_equal = rows["budget"].nunique() == 1 and rows["steps"].nunique() == 1
        budget, steps = format_range(rows["budget"], ",.0f"), format_range(rows["steps"], ",.0f")
        problem = "" if is_equal else " (incorrect: the runs differ)"
        parts.append(f"{task}, {budget} structures in {steps} steps{problem}")
    note = "Multi-task and single-task training should sample equal numbers of structures of a dataset."
    return f"Budgets: {'; '.join(parts)}. {note}"


def _describe_result(overall: pd.DataFrame) -> list[str]:
    rows = {(r["quantity"], r["comparison"]): r for r in list_rows(overall)}
    text = []
    for quantity, title in QUANTITY_TITLES.items():
        absent = rows.get((quantity, "outside / inside, absent"))
        if absent is None:
            continue
        present = rows.get((quantity, "outside / inside, present"))
        control = f"; with them in training, it is {format_estimate(present, 'ratio', 1.0, '.2f')}" if present else ""
        text.append(
            f"{title}: for structures absent from all training sets, the error is"
            f" {format_estimate(absent, 'ratio', 1.0, '.2f')} times that inside, as a geometric mean over"
            f" {absent['pairs']} pairs of a rule and a head{control}. Inside, it is"
            f" {format_number(absent['inside_over_baseline'], '.2f')} times the error of {BASELINES[quantity]}; a model"
            " that is close to this baseline has learnt too little for the ratio to say how well it generalises."
        )
    return text


def _describe_references() -> str:
    return (
        "Reference energies: a fit cannot determine the energy of an element that its data lack. All runs therefore"
        " subtract the energies fitted to the whole training split, including held-out structures; models trained"
        " without these structures see neither these structures nor their labels. For the errors without offset, one"
        " energy is subtracted for each atom of the elements that the rule names, or for each atom if it names none; it"
        " is fitted to the other structures outside."
    )


def _build_overall_block(overall: pd.DataFrame) -> TableBlock:
    columns: list[Column] = [
        ("quantity", "quantity"),
        ("comparison", lambda r: NAMES[r["comparison"]]),
        ("ratio of errors [95%]", interval_cell("ratio")),
        ("pairs of rule and head", number_cell("pairs", ".0f")),
    ]
    note = "Geometric means over pairs of a rule and a head, with Student's 95% t interval over the pairs."
    return build_block("Overall", list_rows(overall), columns, note)


def _build_errors_block(errors: pd.DataFrame, quantity: str) -> TableBlock:
    unit = UNITS[quantity]
    columns: list[Column] = [
        ("outside", _name_outside),
        ("data", describe_dataset),
        ("task", "task"),
        ("held-out structures in training", "training"),
        ("structures outside, inside", _format_counts),
        (f"inside ({unit})", number_cell("inside", scale=MEV)),
        (f"outside ({unit})", number_cell("outside", scale=MEV)),
        (f"baseline outside ({unit})", number_cell("baseline_outside", scale=MEV)),
        ("outside / inside [95%]", interval_cell("ratio")),
    ]
    note = (
        "Means over structures and seeds; the interval is a bootstrap over both. A dash means that fewer than"
        f" {MIN_STRUCTURES} structures are outside or inside. The baseline is {BASELINES[quantity]}."
    )
    if quantity == "energy":
        columns += [
            (f"outside without offset ({unit})", number_cell("outside_without_offset", scale=MEV)),
            ("outside without offset / inside [95%]", interval_cell("ratio_without_offset")),
        ]
    rows = list_rows(errors[errors["quantity"] == quantity])
    return build_block(f"{QUANTITY_TITLES[quantity]}: errors by head", rows, columns, note)


def _name_outside(row: Row) -> str:
    return name_outside(row["rule"], row["file"])


def _format_counts(row: Row) -> str:
    counts = (format_number(row[f"structures_{side}"], ",.0f") for side in ("outside", "inside"))
    return ", ".join(counts)


def _build_gains_block(gains: pd.DataFrame) -> TableBlock:
    columns: list[Column] = [
        ("outside", _name_outside),
        ("head", "head"),
        ("quantity", "quantity"),
        ("comparison", lambda r: NAMES[r["comparison"]]),
        ("ratio of errors [95%]", interval_cell("ratio")),
        ("seeds", number_cell("seeds", ".0f")),
    ]
    note = "Errors of two kinds of training on the same structures outside, for seeds that both have."
    return build_block("Kinds of training compared", list_rows(gains.dropna(subset=["ratio"])), columns, note)


def _build_distance_block(distance: pd.DataFrame) -> TableBlock:
    columns: list[Column] = [
        ("quantity", "quantity"),
        ("distance", lambda r: f"{format_number(r['distance_low'])} to {format_number(r['distance_high'])}"),
        ("structures", number_cell("structures", ",.0f")),
        ("heads", number_cell("heads", ".0f")),
        ("share outside", number_cell("share_outside", ".0%")),
        ("error / mean baseline error inside [95%]", interval_cell("relative_error")),
    ]
    note = (
        "The Mahalanobis distance of the pooled features per atom from up to 200 training structures of each dataset."
        " Bins have equal numbers of evaluations."
    )
    return build_block("Errors by distance from the training sets", list_rows(distance), columns, note)


def _build_runs_block(runs: pd.DataFrame) -> TableBlock:
    columns: list[Column] = [
        ("case", "case"),
        ("held out", "rule"),
        ("task", "task"),
        ("left out of", lambda r: r["left_out_of"] or "none"),
        ("seed", number_cell("seed", ".0f")),
        ("training structures", number_cell("train_structures", ",.0f")),
        ("structures sampled", number_cell("budget", ",.0f")),
        ("steps", number_cell("steps", ",.0f")),
        ("time (s)", number_cell("train_s")),
    ]
    return build_block("Runs", list_rows(runs), columns)
