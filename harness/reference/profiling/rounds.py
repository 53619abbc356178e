"""Rounds of timed calls that end when the median time of every series is known well enough, or at a limit.

A series, such as the calls of one stage, has one time per round. Intervals are examined only at fixed numbers of
rounds, each GROWTH times the one before. With more examinations, rounds would end more often because an interval is
narrow by chance, and intervals would contain the median less often than their coverage says; the
tests simulate this.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator

from harness.protocol.rounds import RoundParameters, RoundsEnded, RoundsEndReason
from harness.stats.intervals import compute_median_interval

CONFIDENCE = 0.95
GROWTH = 1.5


class TimedRounds:
    """The rounds of a case; the body of the loop over them adds the times of a round.

        for number in rounds:
            for name, call in series.items():
                rounds.add(name, time_call(call, device))

    Attributes:
        seconds: The time of each round so far, by name of the series.
    """

    def __init__(self, parameters: RoundParameters, clock: Callable[[], float] = time.perf_counter) -> None:
        self.seconds: defaultdict[str, dict[int, float]] = defaultdict(dict)
        self._parameters, self._clock = parameters, clock
        self._checks = list_checks(parameters)
        self._number = -1
        self._reason: RoundsEndReason | None = None

    @property
    def planned(self) -> int:
        """The number of rounds up to the next examination of the intervals."""
        return next((n for n in self._checks if n > self._number), self._checks[-1])

    def __iter__(self) -> Iterator[int]:
        """Yield the numbers of the rounds from 0, until the rounds end."""
        started = self._clock()
        while self._reason is None:
            self._number += 1
            yield self._number
            self._reason = self._find_end(self._number + 1, self._clock() - started)

    def add(self, series: str, seconds: float) -> None:
        """Add the time of a call to the time of a series in the present round."""
        times = self.seconds[series]
        times[self._number] = times.get(self._number, 0.0) + seconds

    def build_event(self) -> RoundsEnded:
        """Return the event that says how the rounds ended; raise RuntimeError if they have not."""
        if self._reason is None:
            raise RuntimeError("the rounds have not ended")
        series, half_width = self._find_widest()
        is_known = math.isfinite(half_width)
        return RoundsEnded(
            rounds=self._number + 1,
            reason=self._reason,
            series=series if is_known else None,
            half_width=half_width if is_known else None,
        )

    def _find_end(self, done: int, elapsed_s: float) -> RoundsEndReason | None:
        """Return why the rounds end after this number of rounds, or None if they do not."""
        parameters = self._parameters
        if parameters.max_rounds is None:
            return "fixed" if done >= parameters.rounds else None
        if done in self._checks and self._find_widest()[1] <= parameters.max_half_width:
            return "narrow"
        if done >= parameters.max_rounds:
            return "max_rounds"
        limit_s = parameters.rounds_time_limit_s
        return "time_limit" if limit_s is not None and done >= parameters.rounds and elapsed_s > limit_s else None

    def _find_widest(self) -> tuple[str | None, float]:
        """Return the series of the present round with the widest interval, and its relative half width."""
        widths = {
            name: compute_half_width(list(times.values()))
            for name, times in self.seconds.items()
            if self._number in times
        }
        return max(widths.items(), key=lambda item: item[1], default=(None, math.inf))


def list_checks(parameters: RoundParameters) -> list[int]:
    """Return the numbers of rounds at which intervals are examined; the last one is the maximum."""
    checks, last = [parameters.rounds], parameters.max_rounds or parameters.rounds
    while checks[-1] < last:
        checks.append(min(last, math.ceil(GROWTH * checks[-1])))
    return checks


def compute_half_width(seconds: list[float]) -> float:
    """Return half the width of the interval of the median, divided by the median.

    The result is infinite if the times are too few for an interval of CONFIDENCE, or too short for the clock.
    """
    interval = compute_median_interval(seconds, CONFIDENCE)
    if interval.coverage < CONFIDENCE or interval.value == 0.0:
        return math.inf
    return (interval.high - interval.low) / 2 / interval.value
