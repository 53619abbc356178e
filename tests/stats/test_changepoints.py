"""Changes of level are detected where they are, and hardly ever where there are none."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.stats import Floats
from harness.stats.changepoints.detect import detect_change_points, detect_in_each
from harness.stats.changepoints.null_distribution import simulate_noise

seeds = st.integers(0, 10_000)


def make_series(seed: int, *steps: tuple[int, float], n: int = 60, spread: float = 0.02) -> Floats:
    """Return log-normal values; each step (index, factor) multiplies the values from its index on by its factor."""
    x = np.exp(spread * np.random.default_rng(seed).standard_normal(n))
    for index, factor in steps:
        x[index:] *= factor
    return x


def detect_indices(values: Floats, alpha: float = 0.01) -> list[int]:
    return [change.index for change in detect_change_points(values, alpha)]


def test_step_is_detected_with_its_index_and_height() -> None:
    (change,) = detect_change_points(make_series(0, (40, 1.1)))
    assert change.index == 40
    assert change.p <= 0.001
    assert change.shift.low < 1.1 < change.shift.high
    assert change.shift.estimate == pytest.approx(1.1, abs=0.02)
    assert (change.shift.n_a, change.shift.n_b) == (40, 20)


@pytest.mark.parametrize("factors", [(1.1, 1.1), (1.1, 1 / 1.1), (0.9, 1.2)])
def test_two_steps_are_both_detected(factors: tuple[float, float]) -> None:
    """The second step goes in the same direction, back to the first level, or back beyond it."""
    for seed in range(5):
        assert detect_indices(make_series(seed, (20, factors[0]), (40, factors[1]))) == pytest.approx([20, 40], abs=1)


def test_at_least_nine_in_ten_of_four_steps_are_detected() -> None:
    indices = [40, 90, 150, 200]
    for factors in ([1.1, 1.1, 1 / 1.1, 1 / 1.1], [1.1, 1 / 1.1, 1.1, 1.1], [0.9, 0.9, 1.2, 1.2]):
        detected = [detect_indices(make_series(seed, *zip(indices, factors, strict=True), n=240)) for seed in range(10)]
        assert np.mean([k in changes for changes in detected for k in indices]) >= 0.9


@settings(max_examples=25)
@given(seed=seeds, factor=st.sampled_from([0.9, 1.0, 1.03, 1.1]))
def test_indices_do_not_depend_on_the_scale_of_values(seed: int, factor: float) -> None:
    x = make_series(seed, (25, factor))
    assert detect_indices(np.log(x)) == detect_indices(x) == detect_indices(5 * x**3)


@settings(max_examples=25)
@given(seed=seeds)
def test_step_down_is_detected_like_a_step_up(seed: int) -> None:
    x = make_series(seed, (25, 1.05))
    assert detect_indices(x) == detect_indices(1 / x)


@settings(max_examples=25)
@given(seed=seeds)
def test_reversed_series_has_the_same_clear_step(seed: int) -> None:
    x = make_series(seed, (25, 1.2))
    assert 25 in detect_indices(x)
    assert 60 - 25 in detect_indices(x[::-1])


@settings(max_examples=10)
@given(seed=seeds)
def test_missing_values_are_ignored(seed: int) -> None:
    x = make_series(seed, (25, 1.1))
    gaps = np.insert(x, [0, 10, 10, 25, 40], np.nan)
    measured = np.flatnonzero(~np.isnan(gaps))
    assert detect_indices(gaps) == [measured[k] for k in detect_indices(x)]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("n", [0, 1, 2, 3, 4, 7, 8, 11, 12, 13, 60, 1500])
def test_constant_series_has_no_change(n: int) -> None:
    assert detect_indices(np.full(n, 3.0)) == []
    assert detect_indices(np.full(n, np.nan)) == []
    assert detect_indices(np.full((8, n), 3.0)) == []


@pytest.mark.parametrize("n", range(10))
def test_fewer_than_ten_values_have_no_change(n: int) -> None:
    assert detect_indices(np.r_[np.ones(n // 2), np.full(n - n // 2, 2.0)]) == []


@pytest.mark.filterwarnings("error")
def test_jump_of_a_count_is_a_change_but_one_outlier_is_not() -> None:
    assert detect_indices(np.r_[np.full(40, 7.0), np.full(20, 8.0)]) == [40]
    assert detect_indices(np.r_[np.full(57, 7.0), np.full(3, 8.0)]) == [57]
    assert detect_indices(np.r_[np.full(59, 7.0), 8.0]) == []
    assert detect_indices(np.r_[np.full(30, 7.0), 8.0, np.full(29, 7.0)]) == []


@pytest.mark.filterwarnings("error")
def test_change_of_values_of_both_signs_has_no_ratio() -> None:
    (change,) = detect_change_points(np.log(make_series(2, (30, 1.2))))
    assert change.index == 30
    assert math.isnan(change.shift.estimate)


FALSE_ALARMS = {
    "uniform": (lambda rng: rng.random((4000, 60)), 0.01),
    "cauchy": (lambda rng: rng.standard_cauchy((4000, 60)), 0.01),
    "counts": (lambda rng: rng.poisson(2, (4000, 60)).astype(float), 0.01),
    "one odd value in ten": (lambda rng: (rng.random((1000, 60)) < 0.1).astype(float), 0.01),
    "two values": (lambda rng: rng.integers(0, 2, (1000, 60)).astype(float), 0.01),
    "short": (lambda rng: rng.random((4000, 14)), 0.01),
    "gaps": (lambda rng: np.where(rng.random((2000, 60)) < 0.3, np.nan, rng.random((2000, 60))), 0.01),
    "correlated 0.5": (lambda rng: simulate_noise(rng, 4000, 60, 0.5), 0.03),
    "correlated 0.5, long": (lambda rng: simulate_noise(rng, 2000, 120, 0.5), 0.02),
}


@pytest.mark.parametrize("kind", FALSE_ALARMS)
def test_false_alarm_rate_is_at_most_the_stated_one(kind: str) -> None:
    """The rate may exceed the stated one by three standard errors."""
    make, rate = FALSE_ALARMS[kind]
    series = make(np.random.default_rng(11))
    false_alarm_rate = np.mean([bool(changes) for changes in detect_in_each(series)])
    assert false_alarm_rate <= rate + 3 * math.sqrt(rate * (1 - rate) / len(series))


def test_alpha_is_the_false_alarm_rate() -> None:
    series = np.random.default_rng(12).random((4000, 64))
    for alpha in (0.05, 0.2):
        false_alarm_rate = np.mean([bool(changes) for changes in detect_in_each(series, alpha)])
        assert 0.5 * alpha <= false_alarm_rate <= alpha + 3 * math.sqrt(alpha / 4000)
    with pytest.raises(ValueError, match="alpha"):
        detect_change_points(series[0], 1e-6)


def test_series_are_independent_of_each_other() -> None:
    series = np.stack([make_series(seed, (30, 1.05)) for seed in range(20)])
    assert detect_in_each(series) == [detect_change_points(row) for row in series]


def simulate_rounds(seed: int, count: int, n: int, step: float = 1.0, index: int = 1, spread: float = 0.01) -> Floats:
    """Return interleaved rounds (count, n) of a machine that drifts by a tenth from round to round."""
    rng = np.random.default_rng(seed)
    drift = np.cumsum(0.1 * rng.standard_normal((count, 1)), axis=0)
    x = np.exp(drift + spread * rng.standard_normal((count, n)))
    x[:, index:] *= step
    return x


def test_rounds_detect_three_percent_between_two_commits_under_drift() -> None:
    detected = [detect_change_points(simulate_rounds(seed, 8, 2, 1.03)) for seed in range(50)]
    assert np.mean([len(changes) == 1 for changes in detected]) >= 0.7
    (change,) = detected[0]
    assert change.index == 1
    assert change.shift.low < 1.03 < change.shift.high


def test_drift_alone_raises_no_alarm() -> None:
    for n in (2, 3, 10):
        false_alarm_rate = np.mean([bool(detect_change_points(simulate_rounds(seed, 8, n))) for seed in range(400)])
        assert false_alarm_rate <= 0.01 + 3 * math.sqrt(0.01 / 400)


def test_rounds_detect_two_percent_among_many_commits() -> None:
    assert np.mean([7 in detect_indices(simulate_rounds(seed, 8, 20, 1.02, index=7)) for seed in range(40)]) >= 0.9


def test_rounds_detect_two_steps() -> None:
    x = simulate_rounds(3, 8, 12, 1.05, index=4)
    x[:, 8:] /= 1.05
    assert detect_indices(x) == [4, 8]


def test_two_commits_need_six_rounds() -> None:
    clear = simulate_rounds(4, 6, 2, 1.5)
    assert detect_indices(clear, alpha=0.05) == [1]
    assert detect_indices(clear[:5], alpha=0.05) == []


def test_one_round_equals_a_series() -> None:
    x = make_series(5, (30, 1.1))
    assert detect_change_points(x[None]) == detect_change_points(x)


@pytest.mark.filterwarnings("error")
def test_rounds_with_missing_values_detect_the_step() -> None:
    x = simulate_rounds(6, 10, 12, 1.05, index=5)
    x[3, :6] = x[7, 2] = np.nan
    x[:, 9] = np.nan
    x[5] = np.nan
    (change,) = detect_change_points(x)
    assert change.index == 5
    assert change.shift.estimate == pytest.approx(1.05, abs=0.01)
