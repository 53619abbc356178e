"""Estimates of the time that cases take, from measured cases of this results folder and what their suites expect."""

from __future__ import annotations

from collections import defaultdict

from harness.protocol.case import Case
from harness.protocol.text import pluralize

MINUTE_S, HOUR_S = 60.0, 3600.0


class Pace:
    """The measured times of cases, and how they compare with what their suites expect."""

    def __init__(self) -> None:
        self._measured_s: dict[str, float] = {}  # by the id of the case
        # the measured and the expected seconds of the cases of each suite that are measured
        self._totals_s: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])

    def add(self, case: Case, seconds: float | None) -> None:
        """Add the measured time of a case; an unknown time, or a second time of the same case, is ignored."""
        if seconds is not None and case.id not in self._measured_s:
            self._measured_s[case.id] = seconds
            totals = self._totals_s[case.suite]
            totals[0] += seconds
            totals[1] += MINUTE_S * case.expected_minutes

    def estimate_s(self, case: Case) -> float:
        """Return the seconds that a case takes.

        This is its measured time, or else the time that its suite expects, multiplied by the ratio of measured to
        expected times of the suite's other cases.
        """
        if case.id in self._measured_s:
            return self._measured_s[case.id]
        measured, expected = self._totals_s[case.suite]
        return MINUTE_S * case.expected_minutes * (measured / expected if expected else 1.0)


def format_remaining(seconds: float) -> str:
    """Return the remaining time as text, such as `about 40 s left`; `longer than expected` if it is not positive."""
    if seconds <= 0:
        return "longer than expected"
    if seconds < 1.5 * MINUTE_S:
        return f"about {max(10, 10 * round(seconds / 10))} s left"
    if seconds < 1.5 * HOUR_S:
        return f"about {pluralize(seconds / MINUTE_S, 'minute')} left"
    return f"about {seconds / HOUR_S:.1f} hours left"
