"""False alarms and detection rates of change points stay within bounds, and compare well with other detectors.

`pytest -s tests/benchmarks/test_change_points.py` prints a table; reports/measured/detection/README.md has more rows.
"""

from __future__ import annotations

import time

import numpy as np
import pytest

from harness.stats.changepoints.detect import detect_in_each
from harness.stats.two_sample import estimate_ratios
from tests.support.changepoint_methods import CASES, Case, format_table, measure_detection_rates

N_SERIES, N_SERIES_OF_OTHERS = 4000, 60

MAX_FALSE_ALARM_RATE = {Case("iid"): 0.015, Case("spikes"): 0.015, Case("AR(1) 0.5"): 0.035}
MIN_DETECTION_RATE = {
    Case("iid", "step", 0.03): 0.75,
    Case("spikes", "step", 0.03): 0.62,
    Case("AR(1) 0.5", "step", 0.03): 0.22,
    Case("AR(1) 0.5", "step", 0.06): 0.58,
    Case("iid", "up and back", 0.06): 0.97,
    Case("iid", "two steps", 0.03): 0.97,
}


@pytest.fixture(scope="module")
def measured_rates() -> dict[Case, dict[str, float]]:
    return {case: measure_detection_rates(case, N_SERIES, N_SERIES_OF_OTHERS) for case in CASES}


def test_false_alarm_rates_stay_below_their_bounds(measured_rates: dict[Case, dict[str, float]]) -> None:
    print("\n" + format_table(measured_rates))
    for case, maximum in MAX_FALSE_ALARM_RATE.items():
        assert measured_rates[case]["ours"] <= maximum, case


def test_detection_rates_reach_their_bounds(measured_rates: dict[Case, dict[str, float]]) -> None:
    for case, minimum in MIN_DETECTION_RATE.items():
        assert measured_rates[case]["ours"] >= minimum, case


def test_there_are_no_more_false_alarms_than_with_otava(measured_rates: dict[Case, dict[str, float]]) -> None:
    pytest.importorskip("otava.analysis", reason="apache-otava pins an older numpy: pip install --no-deps apache-otava")
    for case in MAX_FALSE_ALARM_RATE:
        assert measured_rates[case]["ours"] <= measured_rates[case]["otava"], case


def test_more_changes_are_detected_than_by_asv(measured_rates: dict[Case, dict[str, float]]) -> None:
    pytest.importorskip("asv")
    for case in MIN_DETECTION_RATE:
        assert measured_rates[case]["ours"] > measured_rates[case]["asv"], case


def test_ten_thousand_series_take_two_cpu_seconds_at_most() -> None:
    """One series in ten has a change; the time excludes null distributions, which are simulated once per process."""
    series = Case("iid").series(10_000)
    series[:1000] *= Case("iid", "step", 0.1).series(1000) / Case("iid").series(1000)
    detect_in_each(series[:100])
    seconds = []
    for _ in range(3):
        started = time.process_time()
        changes = detect_in_each(series)
        seconds.append(time.process_time() - started)
    print(f"10,000 series of 60 values in {min(seconds):.2f} CPU s")
    assert np.mean([bool(c) for c in changes[:1000]]) > 0.95
    assert min(seconds) <= 2.0


def test_ten_thousand_comparisons_take_half_a_cpu_second_at_most() -> None:
    a, b = np.random.default_rng(5).lognormal(size=(2, 10_000, 6))
    estimate_ratios(a[:10], b[:10])
    seconds = []
    for _ in range(3):
        started = time.process_time()
        estimate_ratios(a, b)
        seconds.append(time.process_time() - started)
    assert min(seconds) <= 0.5
