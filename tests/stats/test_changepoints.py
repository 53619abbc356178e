"""Changes of level are found where they are, and hardly ever where there are none."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from harness.stats.changepoints.detect import change_points, change_points_of_many
from harness.stats.changepoints.null_distribution import noise

Floats = NDArray[np.float64]
seeds = st.integers(0, 10_000)


def stepped(seed: int, *steps: tuple[int, float], n: int = 60, spread: float = 0.02) -> Floats:
    """Log-normal values whose level is multiplied by a factor from each place on."""
    x = np.exp(spread * np.random.default_rng(seed).standard_normal(n))
    for place, factor in steps:
        x[place:] *= factor
    return x


def places(values: Floats, alpha: float = 0.01) -> list[int]:
    return [change.index for change in change_points(values, alpha)]


def test_a_step_is_found_where_it_is_with_its_height() -> None:
    (change,) = change_points(stepped(0, (40, 1.1)))
    assert change.index == 40
    assert change.p <= 0.001
    assert change.shift.low < 1.1 < change.shift.high
    assert change.shift.estimate == pytest.approx(1.1, abs=0.02)
    assert (change.shift.n_a, change.shift.n_b) == (40, 20)


@pytest.mark.parametrize("factors", [(1.1, 1.1), (1.1, 1 / 1.1), (0.9, 1.2)])
def test_two_steps_are_both_found(factors: tuple[float, float]) -> None:
    """The same way, up and back to where it was, and back beyond."""
    for seed in range(5):
        assert places(stepped(seed, (20, factors[0]), (40, factors[1]))) == pytest.approx([20, 40], abs=1)


def test_nearly_all_of_four_steps_are_found() -> None:
    at = [40, 90, 150, 200]
    for factors in ([1.1, 1.1, 1 / 1.1, 1 / 1.1], [1.1, 1 / 1.1, 1.1, 1.1], [0.9, 0.9, 1.2, 1.2]):
        found = [places(stepped(seed, *zip(at, factors, strict=True), n=240)) for seed in range(10)]
        assert np.mean([k in changes for changes in found for k in at]) >= 0.9


@settings(max_examples=25)
@given(seed=seeds, factor=st.sampled_from([0.9, 1.0, 1.03, 1.1]))
def test_places_do_not_depend_on_the_scale_of_values(seed: int, factor: float) -> None:
    x = stepped(seed, (25, factor))
    assert places(np.log(x)) == places(x) == places(5 * x**3)


@settings(max_examples=25)
@given(seed=seeds)
def test_a_step_down_is_a_step_up(seed: int) -> None:
    x = stepped(seed, (25, 1.05))
    assert places(x) == places(1 / x)


@settings(max_examples=25)
@given(seed=seeds)
def test_from_the_end_a_clear_step_is_the_same(seed: int) -> None:
    x = stepped(seed, (25, 1.2))
    assert 25 in places(x)
    assert 60 - 25 in places(x[::-1])


@settings(max_examples=10)
@given(seed=seeds)
def test_what_is_not_measured_makes_no_difference(seed: int) -> None:
    x = stepped(seed, (25, 1.1))
    gaps = np.insert(x, [0, 10, 10, 25, 40], np.nan)
    behind = np.flatnonzero(~np.isnan(gaps))
    assert places(gaps) == [behind[k] for k in places(x)]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("n", [0, 1, 2, 3, 4, 7, 8, 11, 12, 13, 60, 1500])
def test_a_constant_series_has_no_change(n: int) -> None:
    assert places(np.full(n, 3.0)) == []
    assert places(np.full(n, np.nan)) == []
    assert places(np.full((8, n), 3.0)) == []


@pytest.mark.parametrize("n", range(10))
def test_too_few_values_prove_nothing(n: int) -> None:
    assert places(np.r_[np.ones(n // 2), np.full(n - n // 2, 2.0)]) == []


@pytest.mark.filterwarnings("error")
def test_a_count_that_jumps_is_a_change_but_one_odd_value_is_none() -> None:
    assert places(np.r_[np.full(40, 7.0), np.full(20, 8.0)]) == [40]
    assert places(np.r_[np.full(57, 7.0), np.full(3, 8.0)]) == [57]
    assert places(np.r_[np.full(59, 7.0), 8.0]) == []
    assert places(np.r_[np.full(30, 7.0), 8.0, np.full(29, 7.0)]) == []


@pytest.mark.filterwarnings("error")
def test_values_that_have_no_ratio_change_all_the_same() -> None:
    (change,) = change_points(np.log(stepped(2, (30, 1.2))))
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
    "correlated 0.5": (lambda rng: noise(rng, 4000, 60, 0.5), 0.03),
    "correlated 0.5, long": (lambda rng: noise(rng, 2000, 120, 0.5), 0.02),
}


@pytest.mark.parametrize("kind", FALSE_ALARMS)
def test_false_alarms_are_as_few_as_promised(kind: str) -> None:
    """Within three standard errors of the rate promised."""
    make, rate = FALSE_ALARMS[kind]
    series = make(np.random.default_rng(11))
    wrong = np.mean([bool(found) for found in change_points_of_many(series)])
    assert wrong <= rate + 3 * math.sqrt(rate * (1 - rate) / len(series))


def test_alpha_is_what_it_says() -> None:
    series = np.random.default_rng(12).random((4000, 64))
    for alpha in (0.05, 0.2):
        wrong = np.mean([bool(found) for found in change_points_of_many(series, alpha)])
        assert 0.5 * alpha <= wrong <= alpha + 3 * math.sqrt(alpha / 4000)
    with pytest.raises(ValueError, match="alpha"):
        change_points(series[0], 1e-6)


def test_many_series_are_each_as_if_alone() -> None:
    series = np.stack([stepped(seed, (30, 1.05)) for seed in range(20)])
    assert change_points_of_many(series) == [change_points(row) for row in series]


def rounds(seed: int, count: int, n: int, step: float = 1.0, at: int = 1, spread: float = 0.01) -> Floats:
    """Interleaved rounds (count, n) of a machine that drifts by a tenth from round to round."""
    rng = np.random.default_rng(seed)
    drift = np.cumsum(0.1 * rng.standard_normal((count, 1)), axis=0)
    x = np.exp(drift + spread * rng.standard_normal((count, n)))
    x[:, at:] *= step
    return x


def test_rounds_find_three_percent_between_two_commits_under_drift() -> None:
    found = [change_points(rounds(seed, 8, 2, 1.03)) for seed in range(50)]
    assert np.mean([len(changes) == 1 for changes in found]) >= 0.7
    (change,) = found[0]
    assert change.index == 1
    assert change.shift.low < 1.03 < change.shift.high


def test_drift_alone_gives_no_alarm() -> None:
    for n in (2, 3, 10):
        wrong = np.mean([bool(change_points(rounds(seed, 8, n))) for seed in range(400)])
        assert wrong <= 0.01 + 3 * math.sqrt(0.01 / 400)


def test_rounds_find_one_percent_among_many_commits() -> None:
    assert np.mean([7 in places(rounds(seed, 8, 20, 1.02, at=7)) for seed in range(40)]) >= 0.9


def test_two_steps_in_rounds() -> None:
    x = rounds(3, 8, 12, 1.05, at=4)
    x[:, 8:] /= 1.05
    assert places(x) == [4, 8]


def test_six_rounds_are_the_fewest_for_two_commits() -> None:
    clear = rounds(4, 6, 2, 1.5)
    assert places(clear, alpha=0.05) == [1]
    assert places(clear[:5], alpha=0.05) == []


def test_one_round_is_a_series() -> None:
    x = stepped(5, (30, 1.1))
    assert change_points(x[None]) == change_points(x)


@pytest.mark.filterwarnings("error")
def test_rounds_with_gaps() -> None:
    x = rounds(6, 10, 12, 1.05, at=5)
    x[3, :6] = x[7, 2] = np.nan
    x[:, 9] = np.nan
    x[5] = np.nan
    (change,) = change_points(x)
    assert change.index == 5
    assert change.shift.estimate == pytest.approx(1.05, abs=0.01)
