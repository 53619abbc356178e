"""The axis on which the overview shows the value of a paper and the measured value of a claim."""

from __future__ import annotations

import math
from dataclasses import dataclass

from harness.claims.scorecard import Score
from harness.document.blocks import format_quantity
from harness.document.figures import format_count

# The axis is logarithmic above this ratio of the largest to the smallest value; a linear axis ends at least this factor
# beyond the values.
MAX_LINEAR_RATIO, MARGIN = 20.0, 1.05


@dataclass(frozen=True)
class ClaimAxis:
    """An axis with positions from 0 to 100.

    Attributes:
        paper, measured: the positions of the values.
        interval: the ends of the interval of the measured value, or its position twice.
        ticks: the positions of the ticks and their labels.
        is_log: whether the axis is logarithmic.
    """

    paper: float
    measured: float
    interval: tuple[float, float]
    ticks: list[tuple[float, str]]
    is_log: bool


def build_axis(score: Score) -> ClaimAxis | None:
    """Return the axis of a claim; None if it has no measured value, or if one of its values is not finite."""
    if score.measured_value is None:
        return None
    low = score.measured_value if score.ci_low is None else score.ci_low
    high = score.measured_value if score.ci_high is None else score.ci_high
    values = [score.paper_value, score.measured_value, low, high]
    if not all(map(math.isfinite, values)):
        return None
    smallest, largest = min(values), max(values)
    is_log = smallest > 0 and largest / smallest > MAX_LINEAR_RATIO
    if is_log:
        ends = 10.0 ** math.floor(math.log10(smallest)), 10.0 ** math.ceil(math.log10(largest))
    else:
        ends = (0.0 if smallest >= 0 else -round_up(-smallest), round_up(largest) if largest > 0 else 0.0)

    def place(value: float) -> float:
        left, right, x = map(math.log10, (*ends, value)) if is_log else (*ends, value)
        return round(100 * (x - left) / (right - left), 1) if right > left else 0.0

    ticks = [(place(x), format_quantity(x, "s") if score.unit == "s" else format_count(x)) for x in ends]
    return ClaimAxis(place(score.paper_value), place(score.measured_value), (place(low), place(high)), ticks, is_log)


def round_up(value: float) -> float:
    """Return the smallest of 1, 2, 3, 4, 5, 6, 8 and 10 times a power of ten that leaves a margin above the value."""
    power = 10.0 ** math.floor(math.log10(value))
    return power * next(step for step in (1, 2, 3, 4, 5, 6, 8, 10, 20) if step * power >= MARGIN * value)
