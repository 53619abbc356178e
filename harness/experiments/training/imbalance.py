"""Tables on treatments of imbalanced datasets: the ratios of the errors of each head to those of the plain treatment.

Runs are compared if they differ only in the treatment and in the seed, and take the same numbers of steps and samples.
Runs whose treatments have the same description are averaged. The plain treatment samples all structures equally often,
and weights the errors of all heads equally, in eV and eV/angstrom.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import pandas as pd

from harness.experiments.training.pairs import average_over_heads, pair_seeds
from harness.experiments.training.quantities import HEAD, QUANTITIES
from harness.results.runs import RunRecord
from harness.results.tables import Columns, Table, interval_columns
from harness.stats.intervals import compute_geometric_mean_interval

IDENTITY = "comparison campaign setup treatment"
PAIRS = Columns(
    "imbalance_pairs",
    identity=IDENTITY,
    head=HEAD,
    size="train draws size",
    errors="quantity seed treated plain ratio",
)
HEADS = Columns(
    "imbalance_heads",
    identity=IDENTITY,
    head=HEAD,
    size="train draws size",
    errors="quantity seeds treated plain ratio ratio_low ratio_high",
)
SIZES = Columns("imbalance_sizes", columns=f"{IDENTITY} quantity size heads seeds ratio ratio_low ratio_high")
PLAIN = "plain"
TREATMENT_PARAMETERS = ("sampling", "sampling_temperature", "loss_temperature", "loss_units")
# Parameters in which runs with equal budgets may differ; the budget itself is compared.
OTHER_PARAMETERS = {*TREATMENT_PARAMETERS, "seed", "batch_size", "epochs", "samples_per_epoch"}
EQUAL_TEMPERATURE = 1e3  # from this temperature on, the weights of all datasets are described as equal


def build_imbalance_tables(
    runs: Sequence[tuple[RunRecord, dict[str, Any]]], test_errors: pd.DataFrame
) -> dict[str, Table]:
    """Return the tables on treatments.

    `imbalance_pairs` has a row per comparison, treatment, head, quantity and seed. `imbalance_heads` has averages over
    seeds, and `imbalance_sizes` has averages over seeds and over the small or the large datasets.

    Args:
        runs: The multi-task and single-task runs, with the columns that identify each.
        test_errors: The errors of every run and head on the test sets.
    """
    identities = pd.DataFrame(
        [row for record, names in runs for row in _list_heads(record, names)],
        columns=[*IDENTITY.split(), "head", "train", "draws", "size", "folder"],
    )
    errors = test_errors.merge(identities.drop(columns="setup"), on=["folder", "head"])
    pairs = PAIRS.build(row for _, group in errors.groupby("comparison", sort=False) for row in _pair(group))
    heads = [
        {
            **{name: rows.iloc[0][name] for name in (*HEADS["identity"], *HEAD, *HEADS["size"], "quantity")},
            "seeds": len(rows),
            "treated": rows["treated"].mean(skipna=False),
            "plain": rows["plain"].mean(skipna=False),
            **interval_columns("ratio", compute_geometric_mean_interval(rows["ratio"].astype(float))),
        }
        for _, rows in pairs.groupby(["comparison", "treatment", "head", "quantity"], sort=False)
    ]
    sizes = [
        {**{name: rows.iloc[0][name] for name in (*IDENTITY.split(), "quantity", "size")}, **average_over_heads(rows)}
        for _, rows in pairs.groupby(["comparison", "treatment", "quantity", "size"], sort=False)
    ]
    return {"imbalance_pairs": pairs, "imbalance_heads": HEADS.build(heads), "imbalance_sizes": SIZES.build(sizes)}


def _list_heads(record: RunRecord, names: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a row per head of a multi-task run: its comparison, its treatment, and the size of its dataset."""
    workload, sets = record.facts["workload"], record.facts["workload"]["datasets"]
    counts = [s.get("train") or 0 for s in sets]
    if len(sets) < 2 or not sum(counts):
        return []
    parameters = {k: v for k, v in record.case.get("parameters", {}).items() if k not in OTHER_PARAMETERS}
    budget = [workload.get(k) for k in ("epochs", "steps_per_epoch", "global_batch_size", "split_seed")]
    config = record.facts.get("model", {}).get("config", {})
    key = [record.campaign, record.case.get("settings"), parameters, config, sorted(s["dataset"] for s in sets), budget]
    return [
        {
            "comparison": hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:10],
            "campaign": record.campaign,
            "setup": names["setup"],
            "treatment": describe_treatment(workload),
            "head": s.get("head"),
            "train": count,
            "draws": workload.get("epochs", 0) * (s.get("samples_per_epoch") or 0),
            "size": "small" if count * len(sets) < sum(counts) else "large",
            "folder": record.location,
        }
        for s, count in zip(sets, counts, strict=True)
    ]


def describe_treatment(workload: dict[str, Any]) -> str:
    """Return the treatment of a run as text: `plain`, or what differs from the plain treatment."""
    parts = ["ranks assigned to datasets"] if workload.get("sampling") == "assigned" else []
    for key, text in (("sampling_temperature", "sampling"), ("loss_temperature", "loss weights")):
        temperature = workload.get(key) or 1.0
        if temperature != 1.0:
            parts.append(f"equal {text}" if temperature >= EQUAL_TEMPERATURE else f"{text} at T = {temperature:g}")
    parts += ["loss units by head"] if workload.get("loss_units") == "per_head" else []
    return ", ".join(parts) or PLAIN


def _pair(errors: pd.DataFrame) -> list[dict[str, Any]]:
    """Return a row per treatment, head, quantity and seed, from the errors of runs of one comparison."""
    plain = errors[errors["treatment"] == PLAIN]
    rows = []
    for (_, head), group in errors[errors["treatment"] != PLAIN].groupby(["treatment", "head"], sort=False):
        identity = {name: group.iloc[0][name] for name in (*PAIRS["identity"], *HEAD, *PAIRS["size"])}
        sides = {"treated": group, "plain": plain[plain["head"] == head]}
        rows += [identity | row for quantity in QUANTITIES for row in pair_seeds(sides, quantity)]
    return rows
