"""The page on runs of HydraGNN, the code of the paper."""

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
from harness.experiments.hydragnn.metrics import EPOCHS, RUNS
from harness.protocol.text import pluralize
from harness.results.tables import Row

COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9")


def build_sections(context: PageContext) -> list[Section]:
    """Return one section, or none if no run was imported."""
    runs, epochs, regions = (context.tables[f"hydragnn_{name}"] for name in ("runs", "epochs", "regions"))
    if runs.empty:
        return []
    text = [
        f"These numbers were read from the logs of {pluralize(len(runs), 'run')} of HydraGNN and keep the units of the"
        " logs; this harness did not measure them. The logs do not contain the training throughput. It is derived as"
        " ranks x batch size x steps / seconds of the slowest rank in the region `train`, without the first epoch,"
        " which the tracer leaves out."
    ]
    figures = [draw_losses(epochs, context.figures)] if len(epochs) else []
    blocks = [build_runs_block(runs, epochs), build_parameters_block(runs)]
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
        return save_figure(figure, folder, "hydragnn-losses", "Losses that HydraGNN printed for each epoch.")


def build_runs_block(runs: pd.DataFrame, epochs: pd.DataFrame) -> TableBlock:
    """Return the table of runs, with the last epoch, the time and the rates of each."""
    columns = [
        "run", "epochs", "last training loss", "last validation loss", "last test loss", "validation error, E",
        "validation error, E/atom", "validation error, F", "timer train_validate_test (s)",
        "training, derived (structures/s)", "inference (structures/s)",
    ]  # fmt: skip
    body = []
    for r in list_rows(runs):
        run_epochs = list_rows(epochs[epochs["case"] == r["case"]])
        last: dict[str, Any] = run_epochs[-1] if run_epochs else {}
        names = [name for name in (*EPOCHS["losses"], *EPOCHS["task_losses"]) if name != "epoch"]
        body.append(
            [
                r["case"],
                str(len(run_epochs)),
                *(format_number(last.get(name), ".4g") for name in names),
                format_number(r["train_validate_test_s"]),
                format_number(r["train_structures_per_s"]),
                format_number(r["inference_structures_per_s"]) if r["inference_samples"] else EN_DASH,
            ]
        )
    return TableBlock(
        "Runs", columns, body, "All epochs, with the numbers of their log lines, are in tables/hydragnn_epochs.csv."
    )


def build_parameters_block(runs: pd.DataFrame) -> TableBlock:
    """Return the table of the parameters of each run, with notes on missing information."""
    headers = ("model", "width", "layers", "batch size", "precision", "epochs", "datasets", "ranks", "nodes")
    body = [
        [
            r["case"],
            *(_format_parameter(r[name]) for name in RUNS["parameters"]),
            "; ".join(text for text in (r["unavailable_reason"], r["notes"]) if text) or EN_DASH,
        ]
        for r in list_rows(runs)
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
        ("mean over ranks (s)", number_cell("duration_mean_s")),
        ("slowest rank (s)", number_cell("duration_max_s")),
        ("slowest rank / mean", number_cell("imbalance", ".2f")),
        ("energy (J)", _format_energy),
    ]
    note = "Regions are nested, so their times do not add up."
    return build_block("Tracer regions", list_rows(regions), columns, note)


def _format_energy(region: Row) -> str:
    """Return the energy in joules, with the number of ranks if the energy of some ranks is unknown."""
    ranks = region["energy_ranks"]
    suffix = f" ({ranks} of {region['ranks']} ranks)" if 0 < ranks < region["ranks"] else ""
    return format_number(region["energy_j"]) + suffix
