"""The figures of the page on molecular dynamics and relaxations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from harness.document.figures import STYLE, Figure, save_figure
from harness.experiments.dynamics.physics import PS_PER_FS, compute_energy_change, compute_temperatures
from harness.results.runs import RunRecord

BATCH_COLOUR, ASE_COLOUR, TARGET_COLOUR = "#0072b2", "#d55e00", "#59636e"


def draw_times(rows: pd.DataFrame, folder: Path, name: str) -> Figure:
    """Draw the time per atom and step of the batch and of ASE in each case."""
    labels = [
        f"{r['motion']}, {r['source']}, {str(r['precision']).upper()}, {r['mean_batch']:.3g}"
        for _, r in rows.iterrows()
    ]
    position = np.arange(len(rows))
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(7.4, 1.2 + 0.25 * len(rows)), layout="constrained")
        style: Any = {"fmt": "o", "ms": 4.5, "lw": 1}
        for column, colour, label in (
            ("us_per_atom_step", BATCH_COLOUR, "batch"),
            ("ase_us_per_atom_step", ASE_COLOUR, "ASE, one structure at a time"),
        ):
            values = rows[column].to_numpy(dtype=float)
            ends = [np.abs(values - rows[f"{column}_{end}"].to_numpy(dtype=float)) for end in ("low", "high")]
            axes.errorbar(values, position, xerr=ends, color=colour, label=label, **style)
        axes.set_yticks(position, labels)
        axes.invert_yaxis()
        axes.set_xscale("log")
        axes.set_xlabel("us per atom and step")
        axes.legend()
        caption = (
            "Time per atom and step with 95% intervals, by motion, structures, precision and mean number of structures"
            " in the batch."
        )
        return save_figure(figure, folder, name, caption)


def draw_physics(records: Sequence[RunRecord], folder: Path, name: str) -> Figure:
    """Draw the total energy of NVE trajectories and the mean temperature of Langevin trajectories over time.

    Args:
        records: Runs, of which at least one has a trajectory.
        folder: The folder of the figure.
        name: The name of the figure.
    """
    groups: dict[str, list[RunRecord]] = {}
    for record in records:
        if record.events("trajectory"):
            groups.setdefault(record.case["parameters"].get("motion", "nve"), []).append(record)
    panels = [(panel, groups[motion]) for motion, panel in PANELS.items() if motion in groups]
    with mpl.rc_context(STYLE):
        size = (3.7 * len(panels), 3.2)
        figure, row = plt.subplots(1, len(panels), figsize=size, layout="constrained", squeeze=False)
        for axes, (panel, members) in zip(row[0], panels, strict=True):
            for record in members:
                panel.draw(axes, record)
            axes.set_xlabel("ps")
            axes.set_ylabel(panel.label)
        return save_figure(figure, folder, name, " ".join(panel.caption for panel, _ in panels), card=0)


def _compute_time_ps(record: RunRecord, steps: Sequence[int]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return PS_PER_FS * float(record.case["parameters"].get("time_step_fs", 1.0)) * np.asarray(steps, dtype=np.float64)


def _draw_energy(axes: Axes, record: RunRecord) -> None:
    event = min(record.events("trajectory"), key=lambda e: e["index"])
    axes.plot(_compute_time_ps(record, event["steps"]), compute_energy_change(event), lw=1, label=_name(record))


def _draw_temperature(axes: Axes, record: RunRecord) -> None:
    events = record.events("trajectory")
    mean = np.mean([compute_temperatures(event, has_momentum=True) for event in events], axis=0)
    axes.plot(_compute_time_ps(record, events[0]["steps"]), mean, lw=1, label=_name(record))
    target = float(record.case["parameters"].get("temperature_k", 300.0))
    axes.axhline(target, color=TARGET_COLOUR, ls="--", lw=0.8)


def _name(record: RunRecord) -> str:
    return str(record.case.get("name"))


@dataclass(frozen=True)
class Panel:
    """A panel on the trajectories of one kind of motion.

    Attributes:
        draw: Draws the trajectories of a run.
        label: The label of the vertical axis.
        caption: A sentence for the caption of the figure.
    """

    draw: Callable[[Axes, RunRecord], None]
    label: str
    caption: str


# The panels of draw_physics, by the motion of the cases that they show.
PANELS = {
    "nve": Panel(
        _draw_energy, "change of the total energy (meV/atom)", "Total energy of the first NVE trajectory of each case."
    ),
    "langevin": Panel(
        _draw_temperature,
        "temperature (K)",
        "Temperature of Langevin dynamics, mean over the structures of each case; dashed lines are the thermostat's.",
    ),
}
