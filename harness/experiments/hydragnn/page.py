"""The page on runs of the original code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import pandas as pd

from harness.document.blocks import (
    EN_DASH,
    Column,
    Section,
    TableBlock,
    build_block,
    format_number,
    list_rows,
    number_cell,
)
from harness.document.figures import STYLE, Figure, save_figure
from harness.experiments.experiment import PageContext
from harness.experiments.hydragnn.metrics import EPOCHS, RATES
from harness.protocol.text import pluralize
from harness.results.tables import Row

COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9")


def build_sections(context: PageContext) -> list[Section]:
    """Return one section, or none if no run was imported."""
    rates, epochs, regions = (context.tables[f"hydragnn_{name}"] for name in ("rates", "epochs", "regions"))
    if rates.empty:
        return []
    runs = len(rates)
    text = [
        f"These are numbers of {pluralize(runs, 'run')} of HydraGNN, from its logs and in their units; this harness"
        " did not measure them. The logs do not contain the training throughput. It is derived as ranks x batch size x"
        " steps / seconds of the slowest rank in the region `train`, without the first epoch, which the tracer leaves"
        " out."
    ]
    figures = [draw_losses(epochs, context.figures)] if len(epochs) else []
    blocks = [build_runs_block(rates, epochs), build_parameters_block(rates)]
    if len(regions):
        blocks.append(build_regions_block(regions))
    return [Section("Runs of HydraGNN", "hydragnn", text, figures, blocks)]


def draw_losses(epochs: pd.DataFrame, folder: Path) -> Figure:
    """Draw the losses of each epoch, with a colour per run."""
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(6.2, 3.4), layout="constrained")
        for k, (case, rows) in enumerate(epochs.groupby("case", sort=False)):
            for column, style in (("loss", "-"), ("validation_loss", "--"), ("test_loss", ":")):
                values: Any = rows[column].astype(float)
                name = f"{case}, {column.removesuffix('loss').strip('_') or 'training'}"
                axes.plot(rows["epoch"], values, style, color=COLOURS[k % len(COLOURS)], lw=1.1, label=name)
        axes.set_yscale("log")
        axes.set_xlabel("epoch")
        axes.set_ylabel("loss")
        axes.legend(frameon=False, fontsize=7)
        return save_figure(figure, folder, "original-losses", "Losses of each epoch that the original code printed.")


def build_runs_block(rates: pd.DataFrame, epochs: pd.DataFrame) -> TableBlock:
    """Return the table of runs: a row for each, with its last epoch, time and rate."""
    columns = [
        "run", "epochs", "last training loss", "validation", "test", "validation E", "E/atom", "F",
        "train_validate_test (s)", "training, derived (structures/s)", "inference (structures/s)",
    ]  # fmt: skip
    body = []
    for r in list_rows(rates):
        run_epochs = list_rows(epochs[epochs["case"] == r["case"]])
        last: dict[str, Any] = run_epochs[-1] if run_epochs else {}
        names = [name for name in (*EPOCHS["losses"], *EPOCHS["tasks"]) if name != "epoch"]
        body.append(
            [
                r["case"],
                str(len(run_epochs)),
                *(format_number(last.get(name), ".4g") for name in names),
                format_number(r["train_s"]),
                format_number(r["train_structures_per_s"]),
                format_number(r["structures_per_s"]) if r["samples"] else EN_DASH,
            ]
        )
    return TableBlock(
        "Runs", columns, body, "All epochs, with their lines in the log, are in tables/hydragnn_epochs.csv."
    )


def build_parameters_block(rates: pd.DataFrame) -> TableBlock:
    """Return the table of parameters: a row per run, with notes on missing information."""
    headers = ("model", "width", "layers", "batch size", "precision", "epochs", "datasets", "ranks", "nodes")
    body = [
        [
            r["case"],
            *(_format_parameter(r[name]) for name in RATES["parameters"]),
            "; ".join(text for text in (r["unavailable_reason"], r["notes"]) if text) or EN_DASH,
        ]
        for r in list_rows(rates)
    ]
    note = "The parameters come from config.json and from the command lines of the program and of the launcher."
    return TableBlock("Parameters", ["run", *headers, "notes"], body, note)


def _format_parameter(value: Any) -> str:
    if value is None:
        return EN_DASH
    return f"{value:g}" if isinstance(value, float) else str(value)


def build_regions_block(regions: pd.DataFrame) -> TableBlock:
    """Return the table of the regions of HydraGNN's tracer."""
    columns: list[Column] = [
        ("run", "case"),
        ("region", "region"),
        ("ranks", "ranks"),
        ("calls", number_cell("calls", ",")),
        ("mean rank (s)", number_cell("duration_mean_s")),
        ("slowest (s)", number_cell("duration_max_s")),
        ("slowest / mean", number_cell("imbalance", ".2f")),
        ("energy (J)", _format_energy),
    ]
    note = "Regions are nested, so their times do not add up."
    return build_block("Tracer regions", list_rows(regions), columns, note)


def _format_energy(region: Row) -> str:
    """Return the energy in joules, with the number of ranks if the energy of some ranks is unknown."""
    ranks = region["energy_ranks"]
    suffix = f" ({ranks} of {region['ranks']} ranks)" if 0 < ranks < region["ranks"] else ""
    return format_number(region["energy_j"]) + suffix
