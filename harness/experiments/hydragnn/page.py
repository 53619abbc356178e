"""The section of the report on runs of the original code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import pandas as pd

from harness.document.blocks import DASH, Section, View, lines, number
from harness.document.figures import STYLE, Figure, kept
from harness.experiments.hydragnn.metrics import PARAMETERS, OriginalTables

COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9")


def original_sections(tables: OriginalTables, figures: Path) -> list[Section]:
    """The section, or none where nothing was taken in; draws its figure into the folder."""
    if tables.rates.empty:
        return []
    runs = len(tables.rates)
    said = [
        f"{runs} run{'s' * (runs > 1)} of HydraGNN, from its logs, as they stand: nothing here was measured by this"
        " harness, and units are those of the logs. Training throughput is not in them; it is derived as ranks x batch"
        " size x steps / seconds of the slowest rank in `train`, without the first epoch, which the tracer leaves out."
    ]
    drawn = [losses(tables.epochs, figures)] if len(tables.epochs) else []
    views = [
        runs_view(tables),
        parameters_view(tables),
        *([regions_view(tables.regions)] if len(tables.regions) else []),
    ]
    return [Section("Runs of the original code", "original", said, drawn, views)]


def losses(epochs: pd.DataFrame, folder: Path) -> Figure:
    """Losses over epochs, a colour a run."""
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(6.2, 3.4), layout="constrained")
        for k, (case, own) in enumerate(epochs.groupby("case", sort=False)):
            for column, style in (("loss", "-"), ("validation_loss", "--"), ("test_loss", ":")):
                values: Any = own[column].astype(float)
                name = f"{case}, {column.removesuffix('loss').strip('_') or 'training'}"
                axes.plot(own["epoch"], values, style, color=COLOURS[k % len(COLOURS)], lw=1.1, label=name)
        axes.set_yscale("log")
        axes.set_xlabel("epoch")
        axes.set_ylabel("loss")
        axes.legend(frameon=False, fontsize=7)
        return kept(figure, folder, "original-losses", "Losses that the original code printed, epoch by epoch.")


def runs_view(tables: OriginalTables) -> View:
    """A row a run: its last epoch, time and rate."""
    columns = [
        "run", "epochs", "last training loss", "validation", "test", "validation E", "E/atom", "F",
        "train_validate_test (s)", "training, derived (structures/s)", "inference (structures/s)",
    ]  # fmt: skip
    body = []
    for r in lines(tables.rates):
        own = lines(tables.epochs[tables.epochs["case"] == r["case"]])
        last: dict[str, Any] = dict(own[-1]) if own else {}
        shown = ("loss", "validation_loss", "test_loss", "validation_energy", "validation_energy_per_atom")
        body.append(
            [
                r["case"], str(len(own)), *(number(last.get(k), ".4g") for k in (*shown, "validation_force")),
                number(r["train_s"]), number(r["train_structures_per_s"]),
                number(r["structures_per_s"]) if r["samples"] else DASH,
            ]
        )  # fmt: skip
    return View("Runs", columns, body, "Every line that was read, with its number: tables/original_epochs.csv.")


def parameters_view(tables: OriginalTables) -> View:
    """A row a run: what it was made with, and what its logs leave open."""
    columns = [
        "run",
        "model",
        "width",
        "layers",
        "batch size",
        "precision",
        "epochs",
        "datasets",
        "ranks",
        "nodes",
        "notes",
    ]
    body = [
        [
            r["case"], *(_shown(r[name]) for name in PARAMETERS),
            "; ".join(text for text in (r["why_not"], r["notes"]) if text) or DASH,
        ]
        for r in lines(tables.rates)
    ]  # fmt: skip
    return View("Parameters", columns, body, "From config.json, the command line and the launcher's.")


def _shown(value: Any) -> str:
    if value is None:
        return DASH
    return f"{value:g}" if isinstance(value, float) else str(value)


def regions_view(regions: pd.DataFrame) -> View:
    """Where its time went, by its own tracer."""
    columns = ["run", "region", "ranks", "calls", "mean rank (s)", "slowest (s)", "slowest over mean", "energy (J)"]
    body = [
        [
            r["case"], r["region"], str(r["ranks"]), f"{r['calls']:,}", number(r["seconds_mean"]),
            number(r["seconds_most"]), number(r["imbalance"], ".2f"), _energy(r),
        ]
        for r in lines(regions)
    ]  # fmt: skip
    return View("Regions of its tracer", columns, body, "Regions lie inside one another; their times do not add up.")


def _energy(region: dict[str, Any]) -> str:
    """Joules, and of how many ranks where they are not of all."""
    ranks = region["energy_ranks"]
    return number(region["joule"]) + (f" ({ranks} of {region['ranks']} ranks)" if 0 < ranks < region["ranks"] else "")
