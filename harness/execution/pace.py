"""Estimates of the time that cases take, from the measured times of earlier cases and the times that suites expect."""

from __future__ import annotations

from collections import defaultdict

from harness.protocol.case import Case
from harness.protocol.events import Event
from harness.protocol.text import pluralize

MINUTE_S, HOUR_S = 60.0, 3600.0


class Pace:
    """The measured times of cases, and how they compare with what their suites expect."""

    def __init__(self) -> None:
        self._measured_s: dict[str, float] = {}  # by the id of the case
        # total measured and expected seconds of each suite's measured cases
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

    def estimate_remaining_s(self, case: Case, started_s: float | None, first: Event | None, now_s: float) -> float:
        """Return the seconds that a running case still takes.

        At its first progress, a case that continues the work of an earlier attempt has already done a part of it. Later
        progress is not used, since programs with several stages count the work of one stage.

        Args:
            case: The case.
            started_s: The Unix time at which the case started; None if it is unknown.
            first: The first progress event of this attempt, if there is one.
            now_s: The Unix time.
        """
        total_s = self.estimate_s(case)
        remaining_s = total_s - (now_s - started_s if started_s else 0.0)
        if first is None or not first["total"] or first.get("time_s") is None:
            return remaining_s
        return min(remaining_s, total_s * (1.0 - first["done"] / first["total"]) - (now_s - first["time_s"]))


def format_remaining(seconds: float) -> str:
    """Return the remaining time as text, such as `about 40 s left`; `longer than expected` if it is not positive."""
    if seconds <= 0:
        return "longer than expected"
    if seconds < 1.5 * MINUTE_S:
        return f"about {max(10, 10 * round(seconds / 10))} s left"
    if seconds < 1.5 * HOUR_S:
        return f"about {pluralize(seconds / MINUTE_S, 'minute')} left"
    return f"about {seconds / HOUR_S:.1f} hours left"
