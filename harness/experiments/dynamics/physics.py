"""The physics of trajectories: the drift of the energy, and the temperature."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from harness.protocol.events import Event
from harness.stats.intervals import Interval, compute_mean_interval

BOLTZMANN_EV_PER_K = 8.617333262e-5
PS_PER_FS = 1e-3
MEV = 1000.0
EQUILIBRATION = 0.5  # share of a trajectory at its start that temperatures leave out
BLOCKS = 5  # blocks of a single trajectory whose mean temperatures count as independent


def compute_energy_change(event: Event) -> NDArray[np.float64]:
    """Return the total energy of each record minus that of the first one, [k] meV/atom."""
    total = np.array(event["potential_ev"]) + np.array(event["kinetic_ev"])
    change: NDArray[np.float64] = MEV * (total - total[0]) / event["atoms"]
    return change


def compute_drift(event: Event, time_step_fs: float) -> tuple[float, float]:
    """Return the slope of the total energy, meV/atom/ps, and the root mean square deviation from the line, meV/atom."""
    time_ps, change = PS_PER_FS * time_step_fs * np.array(event["steps"]), compute_energy_change(event)
    if len(change) < 3:
        return math.nan, math.nan
    slope, offset = np.polyfit(time_ps, change, 1)
    return float(slope), float(np.sqrt(np.mean((change - offset - slope * time_ps) ** 2)))


def compute_temperatures(event: Event, *, has_momentum: bool) -> NDArray[np.float64]:
    """Return the temperature of each record in kelvin, [k].

    Args:
        event: The trajectory.
        has_momentum: Whether the total momentum fluctuates, as with a thermostat; otherwise, it is zero.
    """
    degrees = 3 * event["atoms"] - (0 if has_momentum else 3)
    temperatures: NDArray[np.float64] = 2.0 * np.array(event["kinetic_ev"]) / (degrees * BOLTZMANN_EV_PER_K)
    return temperatures


def compute_mean_temperature(events: Sequence[Event], *, has_momentum: bool) -> Interval:
    """Return the mean temperature after equilibration, with Student's interval over structures, or over blocks of one.

    Args:
        events: The trajectories.
        has_momentum: See `compute_temperatures`.
    """
    series = []
    for event in events:
        temperatures = compute_temperatures(event, has_momentum=has_momentum)
        series.append(temperatures[math.ceil(EQUILIBRATION * len(temperatures)) :])
    if len(series) == 1:
        series = [block for block in np.array_split(series[0], BLOCKS) if len(block)]
    return compute_mean_interval(float(block.mean()) for block in series if len(block))
