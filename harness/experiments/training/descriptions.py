"""Texts and table cells that the sections on training and on multi-task against single-task training share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd

from harness.document.blocks import EN_DASH, describe_reasons, format_number, format_range, list_rows, number_cell
from harness.experiments.data.page import ORIGIN_MEANINGS, describe_origin
from harness.experiments.training.figures import classify_origin
from harness.protocol.text import pluralize
from harness.results.tables import Row

MEV = 1000.0
UNITS = {"energy": "meV/atom", "forces": "meV/\N{ANGSTROM SIGN}"}
QUANTITY_TITLES = {"energy": "Energy per atom", "forces": "Forces"}


def describe_model(runs: pd.DataFrame) -> str:
    """Return the model as text, `PaiNN, width 64, 3 layers`, without values that the log does not contain."""
    first = runs.iloc[0].dropna()
    parts = [first["implementation"]] if "implementation" in first else []
    parts.append(first["architecture"] if "backbone" in first else "a model")
    if "hidden_dim" in first:
        parts.append(f"width {first['hidden_dim']}")
    if "num_conv_layers" in first:
        parts.append(pluralize(first["num_conv_layers"], "layer"))
    return ", ".join(parts)


def describe_setup(runs: pd.DataFrame, errors: pd.DataFrame) -> str:
    """Return a paragraph on datasets, parameters and seeds."""
    heads = errors.drop_duplicates("head")
    counts = heads["data_origin"].map(classify_origin).value_counts(sort=False)
    kinds = [f"{n} {kind}{'s' if n > 1 and kind != 'official' else ''}" for kind, n in counts.items()]
    first = runs.iloc[0]
    is_joint = first["regime"] == "multi-task"
    regime = "trained jointly with one head for each" if is_joint else "trained separately"
    return " ".join(
        [
            f"{pluralize(len(heads), 'dataset')}, {regime}: {', '.join(kinds)};"
            f" {'' if is_joint else 'at most '}{runs['elements'].max()} elements,"
            f" {format_number(first['parameters'], ',.0f')} parameters, {list_seeds(runs)}.",
            *(text for kind, text in ORIGIN_MEANINGS.items() if kind in counts),
        ]
    )


def list_seeds(runs: pd.DataFrame) -> str:
    """Return the seeds as text: `seeds 0, 1, 2`, or `one seed (0), hence no intervals`."""
    seeds = join_unique(runs["seed"])
    return f"seeds {seeds}" if runs["seed"].nunique() > 1 else f"one seed ({seeds}), hence no intervals"


def join_unique(values: pd.Series[Any]) -> str:
    """Return the distinct values in ascending order, separated by commas."""
    return ", ".join(map(str, sorted(set(values.dropna())))) or EN_DASH


def describe_runs(runs: pd.DataFrame) -> list[str]:
    """Return paragraphs on wrong precisions, compilation, messages, early ends, resumptions, physics and the gate."""
    text = [
        f"Incorrect: {r['case']} requested {r['precision']} and ran with {r['observed_dtypes']}."
        for r in list_rows(runs[~runs["dtypes_match_request"].astype(bool)])
    ]
    text += describe_reasons(runs, "eager_reason", "Not compiled", "run")
    text += describe_reasons(runs, "unfused_reason", "Messages not fused", "run")
    text += describe_reasons(runs, "default_sums_reason", "Sums over neighbours without the C++ operators", "run")
    text += describe_reasons(runs, "stop_reason", "Ended early", "run")
    resumed = int((runs["n_resumptions"] > 0).sum())
    if resumed:
        text.append(f"{pluralize(resumed, 'run')} resumed from a checkpoint after an interruption.")
    text += describe_reasons(
        runs,
        "shrunk_heads",
        "Heads whose learnt energies are multiplied by a factor, the best on validation",
        "run",
    )
    text += describe_reasons(runs, "physics_violated", "Incorrect physics of the checkpoint", "run")
    gate = runs[runs["gate_accuracy"].notna()]
    if len(gate):
        text.append(
            "The gate gives more than half of the weight to the correct head for"
            f" {format_range(gate['gate_accuracy'], '.0%')} of the training structures; the mixed energy differs from"
            f" that of the correct head by {format_range(MEV * gate['gate_energy_error_ev_per_atom'])} meV/atom."
        )
    return text


def format_estimate(row: Row, name: str, scale: float = 1.0, spec: str = ".3g") -> str:
    """Return a value with its interval, `12.3 [11.9, 12.8]`, or `12.3` for one seed."""
    value, low, high = (number_cell(f"{name}{end}", spec, scale)(row) for end in ("", "_low", "_high"))
    return value if low == EN_DASH else f"{value} [{low}, {high}]"


def estimate_cell(name: str, scale: float = 1.0, spec: str = ".3g") -> Callable[[Row], str]:
    """Return a function that formats a column with its interval, both multiplied by a scale."""
    return lambda row: format_estimate(row, name, scale, spec)


def describe_dataset(row: Row) -> str:
    """Return the origin of a dataset with the name of its head: `stand-in for OC2020`."""
    return describe_origin({"data_origin": classify_origin(row["data_origin"]), "head": row["head"]})
