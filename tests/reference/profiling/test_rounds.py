"""Rounds end at fixed numbers when all intervals are narrow, and the intervals then keep their coverage."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.random import Generator
from pydantic import ValidationError

from harness.protocol.rounds import RoundParameters, RoundsEnded
from harness.reference.profiling.rounds import TimedRounds, compute_half_width, list_checks
from harness.stats.intervals import compute_median_interval

NOMINAL = 0.95
SUITE = {"rounds": 6, "max_rounds": 32}


def run_rounds(parameters: RoundParameters, times: dict[str, list[float]], clock_s: float = 0.0) -> RoundsEnded:
    """Return the event after rounds with the given times; each look at the clock takes `clock_s` seconds."""
    rounds = TimedRounds(parameters, clock=itertools.count(step=clock_s).__next__)
    for number in rounds:
        for name, seconds in times.items():
            rounds.add(name, seconds[number])
    return rounds.build_event()


def test_rounds_end_when_the_widest_interval_is_narrow() -> None:
    parameters = RoundParameters(**SUITE)
    steady, noisy = [1.0] * 32, [1.0, 1.1] * 3 + [1.04, 1.06] * 13
    assert run_rounds(parameters, {"a": steady, "b": steady}).rounds == 6
    event = run_rounds(parameters, {"a": steady, "b": noisy})
    assert (event.reason, event.series, event.rounds) == ("narrow", "b", 21)
    assert event.half_width == compute_half_width(noisy[:21]) <= parameters.max_half_width
    assert compute_half_width(noisy[:14]) > parameters.max_half_width


def test_rounds_end_at_their_limits() -> None:
    noisy = {"a": [1.0, 2.0] * 16}
    assert run_rounds(RoundParameters(**SUITE), noisy).rounds == 32
    limited = RoundParameters(**SUITE, rounds_time_limit_s=9.5)
    assert (run_rounds(limited, noisy, 1.0).rounds, run_rounds(limited, noisy, 1.0).reason) == (10, "time_limit")
    # the minimum holds even if it takes longer than the limit, and without a maximum the number is fixed
    assert run_rounds(limited, noisy, 5.0).rounds == 6
    fixed = run_rounds(RoundParameters(rounds=7), noisy)
    assert (fixed.rounds, fixed.reason) == (7, "fixed")


def test_too_few_rounds_are_never_narrow() -> None:
    """Five times give no interval of 95%, even if all are equal."""
    event = run_rounds(RoundParameters(rounds=2, max_rounds=5), {"a": [1.0] * 5})
    assert (event.rounds, event.reason, event.half_width, event.series) == (5, "max_rounds", None, None)


def test_times_of_zero_are_never_narrow() -> None:
    """A coarse clock may measure them."""
    assert compute_half_width([0.0] * 6) == math.inf
    event = run_rounds(RoundParameters(rounds=6, max_rounds=8), {"a": [0.0] * 8})
    assert (event.rounds, event.reason, event.half_width) == (8, "max_rounds", None)


def test_rounds_that_have_not_ended_have_no_event() -> None:
    rounds = TimedRounds(RoundParameters(rounds=2))
    with pytest.raises(RuntimeError, match="have not ended"):
        rounds.build_event()
    for _ in rounds:
        break
    with pytest.raises(RuntimeError, match="have not ended"):
        rounds.build_event()


def test_the_time_of_a_round_is_the_sum_over_its_batches() -> None:
    rounds = TimedRounds(RoundParameters(rounds=2))
    for _ in rounds:
        rounds.add("a", 1.0)
        rounds.add("a", 0.5)
    assert rounds.seconds == {"a": {0: 1.5, 1: 1.5}}


def test_a_series_that_stopped_does_not_prolong_the_rounds() -> None:
    rounds = TimedRounds(RoundParameters(**SUITE))
    for number in rounds:
        rounds.add("a", 1.0)
        if number < 3:
            rounds.add("failed", float(number))
    assert rounds.build_event().rounds == 6


@pytest.mark.parametrize(
    ("values", "message"),
    [({"rounds": 6, "max_rounds": 5}, "expected at least rounds"), ({"max_half_width": 0.1}, "no effect")],
)
def test_limits_that_contradict_each_other_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        RoundParameters(**values)


def spikes(rng: Generator, shape: tuple[int, ...], scale: float) -> np.ndarray:
    """Return times of which every sixth or so is half as long again."""
    return (1 + scale * rng.standard_normal(shape)) * np.where(rng.random(shape) < 0.15, 1.5, 1.0)


def two_speeds(rng: Generator, shape: tuple[int, ...], scale: float) -> np.ndarray:
    """Return times of a machine that alternates between two clock rates."""
    return (1 + scale / 5 * rng.standard_normal(shape)) * np.where(rng.random(shape) < 0.45, 1 + 3 * scale, 1.0)


DISTRIBUTIONS: dict[str, Callable[[Generator, tuple[int, ...], float], np.ndarray]] = {
    "normal": lambda rng, shape, scale: 1 + scale * rng.standard_normal(shape),
    "lognormal": lambda rng, shape, scale: np.exp(scale * rng.standard_normal(shape)),
    "exponential": lambda rng, shape, scale: 1 + scale * rng.exponential(size=shape),
    "spikes": spikes,
    "two speeds": two_speeds,
}


def simulate_coverage(times: np.ndarray, median: float, checks: Sequence[int], max_half_width: float) -> float:
    """Return the fraction of the rows of `times` whose interval contains the median when the rounds end."""
    is_running, covered = np.full(len(times), True), 0
    for n in checks:
        ordered = np.sort(times[is_running, :n], axis=1)
        first = int(compute_median_interval(range(n), NOMINAL).low)
        low, high, middle = ordered[:, first], ordered[:, n - 1 - first], np.median(ordered, axis=1)
        ends = ((high - low) / 2 / middle <= max_half_width) | (n == checks[-1])
        covered += int(((low <= median) & (median <= high) & ends).sum())
        is_running[is_running] = ~ends
    return covered / len(times)


def find_least_coverage(name: str, checks: Sequence[int]) -> float:
    """Return the smallest coverage over noises below, near and above the limit."""
    draw, rng = DISTRIBUTIONS[name], np.random.default_rng(3)
    coverages = []
    for scale in (0.005, 0.01, 0.015, 0.02, 0.03, 0.05):
        median = float(np.median(draw(rng, (1_000_000,), scale)))
        coverages.append(simulate_coverage(draw(rng, (20_000, checks[-1]), scale), median, checks, 0.02))
    return min(coverages)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_intervals_keep_their_coverage_although_narrow_ones_end_the_rounds(name: str) -> None:
    """The coverage is at least the nominal one less two points, whatever the noise relative to the limit."""
    assert find_least_coverage(name, list_checks(RoundParameters(**SUITE))) >= NOMINAL - 0.02


def test_intervals_examined_after_every_round_would_lose_coverage() -> None:
    assert find_least_coverage("two speeds", range(6, 33)) < NOMINAL - 0.02
