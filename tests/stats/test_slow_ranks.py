"""A node at 80% of the speed of the others is found, and even nodes raise no alarm."""

from __future__ import annotations

import numpy as np
import pytest

from harness.stats import Floats
from harness.stats.slow_ranks import MIN_RANKS, score_ranks

ROUNDS = 12
SLOW = 0.8


def simulate(seed: int, ranks: int = 8, spread: float = 0.01, noise: float = 0.03, spikes: float = 0.05) -> Floats:
    """Return rates with lognormal differences between ranks, noise of each round, and rounds that are slowed by 30%."""
    random = np.random.default_rng(seed)
    rates = np.exp(random.normal(0, spread, (ranks, 1)) + random.normal(0, noise, (ranks, ROUNDS)))
    return 1e9 * np.where(random.random(rates.shape) < spikes, rates / 1.3, rates)


@pytest.mark.parametrize(("ranks", "noise"), [(8, 0.01), (64, 0.03), (1000, 0.03)])
def test_rank_at_80_percent_is_found_20_of_20_times(ranks: int, noise: float) -> None:
    for seed in range(20):
        rates = simulate(seed, ranks, noise=noise)
        rates[seed % ranks] *= SLOW
        scores = score_ranks(rates)
        assert np.flatnonzero(scores.is_slow).tolist() == [seed % ranks], seed
        assert scores.relative[seed % ranks] == pytest.approx(SLOW, abs=0.06)


@pytest.mark.parametrize(("spread", "noise", "spikes"), [(0.01, 0.03, 0.05), (0.0, 0.01, 0.0), (0.04, 0.03, 0.05)])
@pytest.mark.parametrize(("ranks", "runs"), [(8, 2000), (64, 500), (9400, 10)])
def test_even_ranks_raise_no_alarm(spread: float, noise: float, spikes: float, ranks: int, runs: int) -> None:
    """The spread of 4% between ranks is so large that the limit follows from it, and not from MIN_LOSS."""
    alarms = sum(score_ranks(simulate(seed, ranks, spread, noise, spikes)).is_slow.any() for seed in range(runs))
    assert alarms <= 2  # of 2000 runs: a run has a false alarm with a probability of 1 in 1000 at most


def test_disturbance_of_half_of_the_rounds_is_no_slow_rank() -> None:
    for seed in range(200):
        rates = simulate(seed, spikes=0.0)
        rates[3, ROUNDS // 2 :] *= 0.5
        assert not score_ranks(rates).is_slow.any(), seed


def test_several_slow_ranks_are_found() -> None:
    rates = simulate(0, ranks=64)
    rates[[3, 40, 41]] *= SLOW
    assert np.flatnonzero(score_ranks(rates).is_slow).tolist() == [3, 40, 41]


def test_few_ranks_are_not_judged() -> None:
    rates = simulate(0, ranks=MIN_RANKS - 1)
    rates[0] *= 0.1
    assert not score_ranks(rates).is_slow.any()


def test_missing_rounds_are_left_out() -> None:
    rates = simulate(1)
    rates[5] *= SLOW
    rates[2, 3:6] = np.nan
    assert np.flatnonzero(score_ranks(rates).is_slow).tolist() == [5]


@pytest.mark.parametrize("missing", [slice(None), slice(ROUNDS // 2), slice(ROUNDS // 2, None)])
def test_rank_without_rates_does_not_hide_a_slow_one(missing: slice) -> None:
    rates = simulate(1)
    rates[5] *= SLOW
    rates[2, missing] = np.nan
    assert np.flatnonzero(score_ranks(rates).is_slow).tolist() == [5]


def test_slow_rank_with_few_rounds_is_found() -> None:
    rates = simulate(1)
    rates[5] *= SLOW
    rates[5, ROUNDS // 2 :] = np.nan
    assert np.flatnonzero(score_ranks(rates).is_slow).tolist() == [5]
