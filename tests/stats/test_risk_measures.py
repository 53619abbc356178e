"""Measures of a risk against brute force and known limits."""

from __future__ import annotations

import numpy as np
import pytest

from harness.stats.risk_measures import compute_auroc, compute_retained_errors, compute_roc


def test_auroc_is_the_share_of_ordered_pairs() -> None:
    rng = np.random.default_rng(0)
    risk = rng.integers(0, 6, 60).astype(float)  # with ties
    is_large = rng.random(60) < 0.3
    pairs = risk[is_large][:, None] - risk[~is_large][None, :]
    assert compute_auroc(risk, is_large) == pytest.approx((pairs > 0).mean() + 0.5 * (pairs == 0).mean())
    false_alarms, detected = compute_roc(risk, is_large)
    assert np.trapezoid(detected, false_alarms) == pytest.approx(compute_auroc(risk, is_large))
    assert compute_auroc(is_large.astype(float), is_large) == 1.0
    assert np.isnan(compute_auroc(risk, np.zeros(60, dtype=bool)))


def test_roc_begins_at_the_origin_with_infinite_risks() -> None:
    risk = np.array([np.inf, np.inf, 1.0, 0.5])
    is_large = np.array([True, False, True, False])
    false_alarms, detected = compute_roc(risk, is_large)
    assert false_alarms.tolist() == [0.0, 0.5, 0.5, 1.0]
    assert detected.tolist() == [0.0, 0.5, 1.0, 1.0]
    assert np.trapezoid(detected, false_alarms) == pytest.approx(compute_auroc(risk, is_large))
    assert np.isnan(compute_roc(risk, np.zeros(4, dtype=bool))[1]).all()


def test_retained_errors_are_those_of_the_smallest_risks() -> None:
    mean, largest = compute_retained_errors(np.array([3.0, 1.0, 2.0]), np.array([0.1, 0.2, 0.6]))
    assert mean == pytest.approx([0.2, 0.4, 0.3])
    assert largest == pytest.approx([0.2, 0.6, 0.6])
