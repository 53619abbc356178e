"""Tables on training with structures held out: errors inside and outside the training sets, and their ratios.

A run logs the event `structure_errors` for each test structure of each head, and the fact `holdout`. The training of a
head is `present` if its set and all others have the structures of the rule, `absent` if none has, and `elsewhere` if
only the sets of other heads have. Structures of files are new: they are outside for every training. The training of a
run without a rule, which holds out nothing but them, is `absent`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import PurePath
from typing import Any

import numpy as np
import pandas as pd

from harness.experiments.generalisation.estimates import estimate_ratio, pivot_errors, remove_offset
from harness.experiments.training.metrics import BUDGET_PARAMETERS
from harness.protocol.programs.holdout import Holdout
from harness.results.runs import RunRecord
from harness.results.tables import Columns, Table, interval_columns
from harness.stats.intervals import compute_geometric_mean_interval, compute_mean_interval

RUNS = Columns(
    "generalisation_runs",
    case="campaign case recipe rule task",
    run="left_out_of seed datasets stand_ins train_structures budget steps train_s",
    folder="folder",
)
ERRORS = Columns(
    "generalisation_errors",
    setup="recipe rule file task training head dataset data_origin quantity",
    counts="seeds structures_inside structures_outside",
    errors="inside outside outside_without_offset baseline_inside baseline_outside",
    ratio="ratio ratio_low ratio_high",
    offset="ratio_without_offset ratio_without_offset_low ratio_without_offset_high",
)
GAINS = Columns(
    "generalisation_gains",
    setup="recipe rule file head quantity comparison",
    ratio="seeds ratio ratio_low ratio_high",
)
OVERALL = Columns(
    "generalisation_overall",
    setup="recipe quantity comparison",
    ratio="pairs rules heads ratio ratio_low ratio_high",
    accuracy="inside_over_baseline",
    evidence="stand_ins folder",
)
DISTANCE = Columns(
    "generalisation_distance",
    setup="recipe quantity bin distance_low distance_high",
    errors="heads structures share_outside relative_error relative_error_low relative_error_high",
)
# The columns of the events with the error and the error of the baseline, by quantity.
QUANTITIES = {
    "energy": ("energy_mae", "composition_error_ev_per_atom"),
    "forces": ("force_mae_ev_per_angstrom", "zero_force_mae_ev_per_angstrom"),
}
NO_RULE = "nothing"
OUTSIDE_OVER_INSIDE = "outside / inside"
# Comparisons of errors outside: the task and training of the numerator, and those of the denominator.
COMPARISONS = {
    "absent / present": (("multi-task", "absent"), ("multi-task", "present")),
    "elsewhere / absent": (("multi-task", "elsewhere"), ("multi-task", "absent")),
    "multi-task / single-task, absent": (("multi-task", "absent"), ("single-task", "absent")),
    "multi-task / single-task, present": (("multi-task", "present"), ("single-task", "present")),
}
N_BINS = 6  # of the distance


def build_tables(records: Sequence[RunRecord]) -> dict[str, pd.DataFrame]:
    """Return the tables on finished training runs with a holdout.

    `generalisation_runs` has a row per run. `generalisation_errors` has a row per rule, task, training, head and
    quantity, with the ratio of the error outside to that inside. `generalisation_gains` compares errors outside between
    kinds of training. `generalisation_overall` has geometric means over rules and heads, with Student's interval over
    these pairs. `generalisation_distance` has errors relative to the baseline, by distance from the training sets.
    """
    runs = [r for r in records if r.program == "train" and r.state == "done" and r.facts.get("holdout")]
    described = [(r, _describe_run(r)) for r in runs]
    run_table = RUNS.build(columns for _, columns in described)
    structures = pd.DataFrame([row for r, columns in described for row in _list_structures(r, columns)])
    if structures.empty:
        return {t.table: t.build([]) for t in (RUNS, ERRORS, GAINS, OVERALL, DISTANCE)}
    structures["energy_mae"] = structures["energy_error_ev_per_atom"].abs()
    errors, gains = ERRORS.build(_build_errors(structures)), GAINS.build(_build_gains(structures))
    return {
        "generalisation_runs": run_table,
        "generalisation_errors": errors,
        "generalisation_gains": gains,
        "generalisation_overall": OVERALL.build(_build_overall(errors, gains, run_table)),
        "generalisation_distance": DISTANCE.build(_build_distance(structures)),
    }


def name_outside(rule: str, file: str) -> str:
    """Return a name of the structures outside: the rule, or the file and the rule of its training."""
    if not file:
        return rule
    name = PurePath(file).name
    return name if rule == NO_RULE else f"{name} (held out: {rule})"


def _describe_run(record: RunRecord) -> dict[str, Any]:
    workload, parameters = record.facts["workload"], record.case["parameters"]
    rule, sets, epochs = Holdout(**parameters["holdout"]), workload["datasets"], record.events("epoch")
    names = [s["dataset"] for s in sets]
    left_out = names if rule.datasets is None else [name for name in names if name in rule.datasets]
    left_out = left_out if rule.has_rule else []
    steps = epochs[-1]["step"] if epochs else 0
    return {
        "campaign": record.campaign,
        "case": record.case.get("name"),
        "recipe": _digest_recipe(record),
        "rule": rule.describe() or NO_RULE,
        "task": "single-task" if len(sets) == 1 else "multi-task",
        "left_out_of": ", ".join(left_out),
        "seed": workload.get("seed"),
        "datasets": len(sets),
        "stand_ins": sum(s["data_origin"].startswith("stand-in") for s in sets),
        "train_structures": sum(s.get("train") or 0 for s in sets),
        "budget": steps * workload["global_batch_size"],
        "steps": steps,
        "train_s": record.facts.get("train_s", sum(e["duration_s"] for e in epochs)),
        "folder": record.location,
    }


def _digest_recipe(record: RunRecord) -> str:
    """Return a digest of everything in which runs that are compared must agree."""
    ignored = BUDGET_PARAMETERS | {"seed", "holdout"}
    parameters = {k: v for k, v in record.case["parameters"].items() if k not in ignored}
    content = json.dumps([record.campaign, record.case.get("settings"), parameters], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:10]


def _list_structures(record: RunRecord, run: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the errors of each structure with the run and the training of its head.

    Heads whose sets have the structures of the rule, which other sets lack, are omitted: their training is none of the
    three. Structures inside are yielded for the rule, and once more for each file of their head.
    """
    files = {part["head"]: part["file"] for part in record.facts["holdout"] if part.get("file")}
    left_out = set(filter(None, run["left_out_of"].split(", ")))
    origins = {s["dataset"]: s["data_origin"] for s in record.facts["workload"]["datasets"]}
    for event in record.events("structure_errors"):
        if run["rule"] == NO_RULE:
            training = "absent"
        elif not left_out:
            training = "present"
        elif len(left_out) == run["datasets"]:
            training = "absent"
        elif event["dataset"] in left_out:
            training = "elsewhere"
        else:
            continue
        file = event.get("file") or ""
        columns = {
            **{k: run[k] for k in ("recipe", "rule", "task", "seed")},
            **{name: None for pair in QUANTITIES.values() for name in pair},
            **event,
            "training": training,
            "data_origin": origins[event["dataset"]],
        }
        yield columns | {"file": file}
        if event["split"] == "inside" and event["head"] in files:
            yield columns | {"file": files[event["head"]]}


def _build_errors(structures: pd.DataFrame) -> Iterator[dict[str, Any]]:
    for _, rows in structures.groupby(["recipe", "rule", "file", "task", "training", "head"], sort=False):
        sides = {side: rows[rows["split"] == side] for side in ("inside", "outside")}
        for quantity, (column, baseline) in QUANTITIES.items():
            tables = {side: pivot_errors(part, column) for side, part in sides.items()}
            if any(table.empty for table in tables.values()):
                continue
            columns: dict[str, Any] = {
                **{k: rows.iloc[0][k] for k in ERRORS["setup"] if k in rows},
                "quantity": quantity,
                "seeds": rows["seed"].nunique(),
                **{f"structures_{side}": table.shape[1] for side, table in tables.items()},
                **{side: float(table.to_numpy().mean()) for side, table in tables.items()},
                **{f"baseline_{side}": part[baseline].astype(float).mean() for side, part in sides.items()},
                **interval_columns("ratio", estimate_ratio(tables["outside"], tables["inside"])),
            }
            if quantity == "energy":
                without = pivot_errors(_remove_offsets(sides["outside"]), "without_offset")
                columns["outside_without_offset"] = float(without.to_numpy().mean()) if without.size else None
                columns |= interval_columns("ratio_without_offset", estimate_ratio(without, tables["inside"]))
            yield columns


def _remove_offsets(outside: pd.DataFrame) -> pd.DataFrame:
    """Return the rows with the column `without_offset`: absolute energy errors without the offset of their run."""
    parts = [
        run.assign(
            without_offset=np.abs(
                remove_offset(
                    run["energy_error_ev_per_atom"].to_numpy(dtype=float), run["held_out_share"].to_numpy(dtype=float)
                )
            )
        )
        for _, run in outside.fillna({"held_out_share": 0.0}).groupby("seed")
    ]
    return pd.concat(parts)


def _build_gains(structures: pd.DataFrame) -> Iterator[dict[str, Any]]:
    outside = structures[structures["split"] == "outside"]
    for (recipe, rule, file, head), rows in outside.groupby(["recipe", "rule", "file", "head"], sort=False):
        by_kind = dict(iter(rows.groupby(["task", "training"])))
        for comparison, (above, below) in COMPARISONS.items():
            if above not in by_kind or below not in by_kind:
                continue
            for quantity, (column, _) in QUANTITIES.items():
                tables = [pivot_errors(by_kind[kind], column) for kind in (above, below)]
                if any(table.empty for table in tables):
                    continue
                ratio = estimate_ratio(*tables)
                identity = {"recipe": recipe, "rule": rule, "file": file, "head": head, "quantity": quantity}
                yield {
                    **identity,
                    "comparison": comparison,
                    "seeds": ratio.n,
                    **interval_columns("ratio", ratio),
                }


def _build_overall(errors: Table, gains: Table, runs: Table) -> Iterator[dict[str, Any]]:
    """Yield the geometric means over pairs of a rule and a head, without pairs of too few structures.

    A file counts as a rule of its own in runs without a rule; in the others, each rule would count it again.
    """
    errors, gains = (table[table["file"].eq("") | table["rule"].eq(NO_RULE)] for table in (errors, gains))
    joint = errors[errors["task"] == "multi-task"]
    joint = joint.assign(
        comparison=f"{OUTSIDE_OVER_INSIDE}, " + joint["training"],
        inside_over_baseline=joint["inside"] / joint["baseline_inside"],
    )
    ratios = [joint, gains.assign(inside_over_baseline=np.nan)]
    columns = ["recipe", "quantity", "comparison", "rule", "file", "head", "ratio", "inside_over_baseline"]
    pairs = pd.concat([pd.DataFrame(table)[columns] for table in ratios]).dropna(subset=["ratio"])
    for (recipe, quantity, comparison), rows in pairs.groupby(["recipe", "quantity", "comparison"], sort=False):
        evidence = runs[runs["recipe"] == recipe]
        yield {
            "recipe": recipe,
            "quantity": quantity,
            "comparison": comparison,
            "pairs": len(rows),
            "rules": len(rows.drop_duplicates(["rule", "file"])),
            "heads": rows["head"].nunique(),
            **interval_columns("ratio", compute_geometric_mean_interval(rows["ratio"])),
            "inside_over_baseline": compute_geometric_mean_interval(rows["inside_over_baseline"]).value,
            "stand_ins": evidence["stand_ins"].max(),
            "folder": evidence["folder"].iloc[0],
        }


def _build_distance(structures: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """Yield the errors of jointly trained models without the structures of the rule, in bins of equal counts.

    Errors are divided by the mean error of the baseline inside, of the same head, so that heads can be averaged. The
    interval is Student's over the means of the rules, files and heads in a bin.
    """
    absent = structures[(structures["task"] == "multi-task") & (structures["training"] == "absent")]
    absent = absent[absent["split"].eq("outside") | absent["file"].eq("")]  # structures inside count once
    absent = absent.dropna(subset=["distance"]) if "distance" in absent else absent.iloc[:0]
    for recipe, rows in absent.groupby("recipe", sort=False):
        edges = np.unique(np.quantile(rows["distance"], np.linspace(0, 1, N_BINS + 1)))
        numbers = np.clip(np.searchsorted(edges, rows["distance"], side="right") - 1, 0, max(len(edges) - 2, 0))
        for quantity, (column, baseline) in QUANTITIES.items():
            inside = rows[rows["split"] == "inside"].groupby("head")[baseline].agg(lambda x: x.astype(float).mean())
            relative = rows[column].astype(float) / rows["head"].map(inside)
            binned = rows.assign(relative=relative, bin=numbers).dropna(subset=["relative"])
            for number in range(len(edges) - 1):
                part = binned[binned["bin"] == number]
                if part.empty:
                    continue
                means = part.groupby(["rule", "file", "head"])["relative"].mean()
                yield {
                    "recipe": recipe,
                    "quantity": quantity,
                    "bin": number,
                    "distance_low": float(edges[number]),
                    "distance_high": float(edges[number + 1]),
                    "heads": part["head"].nunique(),
                    "structures": len(part.drop_duplicates(["rule", "file", "head", "split", "index"])),
                    "share_outside": float((part["split"] == "outside").mean()),
                    **interval_columns("relative_error", compute_mean_interval(means)),
                }
