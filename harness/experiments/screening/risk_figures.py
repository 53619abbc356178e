"""Figures on the risk of labelled candidates: calibration, detection of large errors, and errors that are retained."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from harness.document.figures import STYLE, Figure, save_figure
from harness.experiments.screening.metrics import LARGE_ERROR
from harness.stats.risk_measures import compute_auroc, compute_retained_errors, compute_roc

MIN_ERROR_EV_PER_ATOM = 1e-4  # smaller errors are drawn at this one


def draw_risk_figures(risks: pd.DataFrame, case: str, folder: Path, name: str) -> list[Figure]:
    """Draw the figures for one case from the rows of `screening_risk`; AUROC needs errors above LARGE_ERROR medians."""
    figures = [
        draw_calibration(risks, case, folder, f"{name}-calibration"),
        draw_retained_errors(risks, case, folder, f"{name}-retained"),
    ]
    error = risks["energy_error_ev_per_atom"].to_numpy(float)
    if (error > LARGE_ERROR * np.median(error)).any():
        figures.append(draw_roc(risks, case, folder, f"{name}-detection"))
    return figures


def draw_calibration(risks: pd.DataFrame, case: str, folder: Path, name: str) -> Figure:
    """Draw the error of each labelled candidate against its risk."""
    error, risk = (risks[c].to_numpy(float) for c in ("energy_error_ev_per_atom", "risk_ev_per_atom"))
    is_accepted = risks["is_accepted"].to_numpy(bool)
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(4.6, 3.6), layout="constrained")
        for mask, label, colour in ((is_accepted, "accepted", "#0072b2"), (~is_accepted, "refused", "#d55e00")):
            visible = np.maximum(error[mask], MIN_ERROR_EV_PER_ATOM)
            axes.plot(risk[mask], visible, "o", ms=3.2, alpha=0.75, color=colour, label=f"{label} ({mask.sum()})")
        ends = np.array([risk.min(), risk.max()])
        axes.plot(ends, ends, color="#333333", lw=1, label="error = risk")
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("risk (eV/atom)")
        axes.set_ylabel("error of the energy (eV/atom)")
        axes.legend(frameon=False, fontsize=7.5)
        caption = (
            f"{case}: errors of labelled candidates against their risk, half the width of the interval around the"
            f" energy. {(error <= risk).mean():.0%} of {len(error)} errors are within the interval, at or below the"
            " line."
        )
        return save_figure(figure, folder, name, caption)


def draw_retained_errors(risks: pd.DataFrame, case: str, folder: Path, name: str) -> Figure:
    """Draw the mean and the largest error of the candidates with the smallest risks against their share."""
    error, risk = (risks[c].to_numpy(float) for c in ("energy_error_ev_per_atom", "risk_ev_per_atom"))
    mean, largest = compute_retained_errors(risk, error)
    ideal, _ = compute_retained_errors(error, error)
    share = np.arange(1, len(error) + 1) / len(error)
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(4.6, 3.6), layout="constrained")
        axes.plot(share, largest, color="#d55e00", label="largest error")
        axes.plot(share, mean, color="#0072b2", label="mean error")
        axes.plot(share, ideal, color="#0072b2", ls=":", label="mean error, ordered by the error itself")
        axes.set_yscale("log")
        axes.set_xlabel("share of candidates retained")
        axes.set_ylabel("error of the energy (eV/atom)")
        axes.legend(frameon=False, fontsize=7.5)
        caption = (
            f"{case}: errors of the labelled candidates that are retained if those with the largest risks are refused,"
            " against the share that is retained."
        )
        return save_figure(figure, folder, name, caption)


def draw_roc(risks: pd.DataFrame, case: str, folder: Path, name: str) -> Figure:
    """Draw the share of large errors above a limit of the risk against the share of other errors above it."""
    error, risk = (risks[c].to_numpy(float) for c in ("energy_error_ev_per_atom", "risk_ev_per_atom"))
    is_large = error > LARGE_ERROR * np.median(error)
    false_alarms, detected = compute_roc(risk, is_large)
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(4.6, 3.6), layout="constrained")
        axes.plot(false_alarms, detected, color="#0072b2")
        axes.plot([0, 1], [0, 1], color="#bdbdbd", lw=1)
        axes.set_xlabel("share of other candidates above the limit")
        axes.set_ylabel("share of large errors above the limit")
        caption = (
            f"{case}: detection of {is_large.sum()} errors above {LARGE_ERROR:g} times the median error by a limit of"
            f" the risk. The area under the curve (AUROC) is {compute_auroc(risk, is_large):.2f}; a risk without"
            " information has 0.5."
        )
        return save_figure(figure, folder, name, caption)
