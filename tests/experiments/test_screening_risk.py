"""Measures and figures of the risk from labels whose errors are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from harness.experiments.screening.metrics import _measure_risk
from harness.experiments.screening.risk_figures import draw_risk_figures


def make_risks(count: int) -> pd.DataFrame:
    """Errors of 0.01 to `count` / 100 eV/atom with risks that are twice as large, of which half are accepted."""
    error = np.arange(1, count + 1) / 100.0
    return pd.DataFrame(
        {"energy_error_ev_per_atom": error, "risk_ev_per_atom": 2.0 * error, "is_accepted": error <= error[-1] / 2}
    )


def test_measures_follow_from_errors_and_risks() -> None:
    risks = make_risks(10)
    risks.loc[0, "energy_error_ev_per_atom"] = 9.0  # a large error with the smallest risk
    rows = {row[0]: row[2] for row in _measure_risk(risks)}
    assert rows["error within the risk"] == pytest.approx(0.9)
    assert rows["AUROC, error above 5 medians"] == 0.0
    assert rows["risk at most the threshold"] == 0.5
    assert rows["largest error / median error of all"] == pytest.approx(9.0 / 0.065)
    assert _measure_risk(risks.iloc[:0]) == []


def test_each_figure_is_drawn_for_a_few_labels_and_for_many(tmp_path: Path) -> None:
    many = make_risks(40)
    many.loc[0, "energy_error_ev_per_atom"] = 9.0
    figures = draw_risk_figures(many, "assessment", tmp_path, "many")
    assert [f.name.rsplit("-", 1)[-1] for f in figures] == ["calibration", "retained", "detection"]
    assert "98% of 40 errors" in figures[0].caption
    assert len(draw_risk_figures(make_risks(1), "assessment", tmp_path, "few")) == 2
