"""Calibration of a risk: the scale of errors, the quantiles of intervals, the threshold, and measures of the result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import lsq_linear  # type: ignore[import-untyped]
from sklearn.metrics import roc_auc_score

from harness.reference.data.structure import Array
from harness.reference.inference.risk import COVERAGE, FEATURES, RiskModel, TrainingStatistics
from harness.reference.inference.risk_labels import LabelSplit

MIN_CALIBRATION = 20  # heads with fewer structures use the quantile of all heads
ERROR_RANGE_EV_PER_ATOM = (1e-4, 30.0)  # errors are clipped to this range in the fit of the scale
RIDGE = 0.1  # weight of the squared coefficients; the weights of the squared residuals sum to 2
ACCEPTED_SHARE = 0.9  # of the labels, by the threshold
REFUSED_MEDIANS, AUROC_MEDIANS = 10.0, 5.0  # large errors in units of the median, for the threshold and the AUROC
FOLDS = 5  # of the cross-validation


@dataclass(frozen=True)
class HeadErrors:
    """s structures of one head: their features and the errors of the head's energies.

    Attributes:
        head: Index of the head.
        features: [s, FEATURES].
        error: [s] absolute error, eV/atom.
        inside: [s] whether they are inside the training set.
        fold: [s] index of the cross-validation fold; structures of equal composition are in the same fold.
    """

    head: int
    features: Array
    error: Array
    inside: NDArray[np.bool_]
    fold: NDArray[np.int64]

    def compute_risks(self, risk: RiskModel) -> Array:
        """Return the risk of each structure, [s] eV/atom."""
        inside, outside = risk.quantiles[self.head].tolist()
        scales = float(risk.unit[self.head]) * np.exp(self.features @ risk.coefficients.numpy())
        return np.asarray(np.where(self.inside, inside, outside) * scales)


@dataclass(frozen=True)
class Observations:
    """All structures from which a risk is fitted and calibrated, and on which it is tested.

    Attributes:
        statistics: The training sets.
        inside_limit: [heads] as in RiskModel.
        validation: The validation split of each head, one entry per head.
        test: The test split of the same heads, one entry per head.
        labels: The labelled crystals by their split.
    """

    statistics: TrainingStatistics
    inside_limit: torch.Tensor
    validation: Sequence[HeadErrors]
    test: Sequence[HeadErrors]
    labels: Mapping[LabelSplit, HeadErrors]


def calibrate(observations: Observations) -> RiskModel:
    """Fit the scale of errors, calibrate the quantiles, and choose the threshold."""
    heads = len(observations.inside_limit)
    coefficients, unit = fit_scale(observations.validation, observations.labels["fit"], heads)
    ones = torch.ones(heads, 2, dtype=torch.float64)
    scale = RiskModel(
        observations.statistics, coefficients, unit, observations.inside_limit, ones, torch.tensor(torch.inf)
    )
    labels = observations.labels["calibration"]
    risk = replace(scale, quantiles=calibrate_quantiles(scale, observations.test, labels))
    return replace(risk, threshold_ev_per_atom=choose_threshold(risk, [labels, observations.labels["fit"]]))


def fit_scale(validation: Sequence[HeadErrors], labels: HeadErrors, heads: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Fit log |error| = log(unit of the head) + features @ coefficients by least squares, with coefficients >= 0.

    The labelled crystals have a unit of their own, since the calibration determines how much larger errors outside the
    training sets are; their total weight equals that of all validation structures. RIDGE times the squares of the
    coefficients is added, so that correlated features share their coefficient.

    Returns:
        Coefficients [FEATURES], and units [heads] in eV/atom, which are 1 for heads without structures.
    """
    rows, targets = [], []
    for column, part in [(part.head, part) for part in validation] + [(heads, labels)]:
        weight = 1.0 / np.sqrt(len(part.error) * (1 if part is labels else len(validation)))
        intercepts = np.zeros((len(part.error), heads + 1))
        intercepts[:, column] = 1.0
        rows.append(weight * np.column_stack([part.features, intercepts]))
        targets.append(weight * np.log(np.clip(part.error, *ERROR_RANGE_EV_PER_ATOM)))
    rows.append(np.sqrt(RIDGE) * np.eye(len(FEATURES), len(FEATURES) + heads + 1))
    targets.append(np.zeros(len(FEATURES)))
    lower = np.r_[np.zeros(len(FEATURES)), np.full(heads + 1, -np.inf)]
    solution = lsq_linear(np.concatenate(rows), np.concatenate(targets), (lower, np.inf)).x
    return torch.from_numpy(solution[: len(FEATURES)].copy()), torch.from_numpy(np.exp(solution[len(FEATURES) : -1]))


def calibrate_quantiles(scale: RiskModel, test: Sequence[HeadErrors], labels: HeadErrors) -> torch.Tensor:
    """Return the quantile of |error| / scale of each head, inside and outside, [heads, 2].

    Args:
        scale: The risk with quantiles of 1.
        test: Test structures of each head, of which only those inside its training set are used.
        labels: Labels for the calibration, of which those outside are used. Their quantile applies to all heads in
            `test`; the quantiles of other heads are infinite.
    """
    scores = {part.head: (part.error / part.compute_risks(scale))[part.inside] for part in test}
    pooled_quantile = compute_conformal_quantile(np.concatenate(list(scores.values())), COVERAGE)
    outside = compute_conformal_quantile((labels.error / labels.compute_risks(scale))[~labels.inside], COVERAGE)
    quantiles = torch.full((len(scale.unit), 2), torch.inf, dtype=torch.float64)
    for head, values in scores.items():
        is_enough = len(values) >= MIN_CALIBRATION
        inside = compute_conformal_quantile(values, COVERAGE) if is_enough else pooled_quantile
        quantiles[head] = torch.tensor([inside, outside], dtype=torch.float64)
    return quantiles


def compute_conformal_quantile(scores: Array, coverage: float) -> float:
    """Return the score of rank ceil((n + 1) * coverage) among n scores, ascending; infinity if the rank exceeds n.

    Source: Lei et al., J. Am. Stat. Assoc. 113, 1094 (2018), algorithm 2.
    """
    rank = int(np.ceil((len(scores) + 1) * coverage))
    return float(np.sort(scores)[rank - 1]) if rank <= len(scores) else float("inf")


def choose_threshold(risk: RiskModel, parts: Sequence[HeadErrors]) -> torch.Tensor:
    """Return the risk up to which predictions are accepted, a scalar in eV/atom.

    It accepts at most ACCEPTED_SHARE of the labels, to within one label, and none with an error above REFUSED_MEDIANS
    times the median error.
    """
    risks, errors = np.concatenate([p.compute_risks(risk) for p in parts]), np.concatenate([p.error for p in parts])
    is_large = errors > REFUSED_MEDIANS * np.median(errors)
    accepted = risks[(risks < risks[is_large].min(initial=np.inf)) & (risks <= np.quantile(risks, ACCEPTED_SHARE))]
    return torch.tensor(accepted.max(initial=0.0), dtype=torch.float64)


def measure_coverage_inside(observations: Observations, part: HeadErrors) -> float:
    """Return the coverage of the test structures inside the training set of a head; NaN if there are none.

    Each structure is compared with the quantiles of the other folds alone.
    """
    covered = np.zeros(len(part.error), dtype=bool)
    for fold in range(FOLDS):
        others = [select_structures(p, p.fold != fold) for p in observations.test]
        risk = calibrate(replace(observations, test=others))
        covered |= (part.fold == fold) & (part.error <= part.compute_risks(risk))
    return float(covered[part.inside].mean()) if part.inside.any() else float("nan")


def select_structures(part: HeadErrors, mask: NDArray[np.bool_]) -> HeadErrors:
    """Return the structures of a part for which the mask [s] is true."""
    return HeadErrors(part.head, part.features[mask], part.error[mask], part.inside[mask], part.fold[mask])


def measure_labels(risk: RiskModel, labels: HeadErrors) -> dict[str, float]:
    """Return measures of the risk on labels that neither the fit nor the calibration used, in eV/atom."""
    risks, error = labels.compute_risks(risk), labels.error
    median = float(np.median(error))
    accepted = risks <= float(risk.threshold_ev_per_atom)
    is_large = error > AUROC_MEDIANS * median
    auroc = float(roc_auc_score(is_large, risks)) if 0 < is_large.mean() < 1 else np.nan
    return {
        "labels": len(error),
        "median error": median,
        "coverage": float((error <= risks).mean()),
        f"AUROC of errors above {AUROC_MEDIANS:g} medians": auroc,
        "accepted share": float(accepted.mean()),
        "largest accepted error / median": float(error[accepted].max(initial=0.0) / median),
        f"errors above {REFUSED_MEDIANS:g} medians": int((error > REFUSED_MEDIANS * median).sum()),
        "mean accepted error": float(error[accepted].mean()) if accepted.any() else np.nan,
        "mean error": float(error.mean()),
    }
