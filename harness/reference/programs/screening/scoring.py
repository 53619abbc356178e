"""Scores of candidates (energies, spread of the heads, forces, distance, risk) and their retention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.protocol.programs.screening import Selection
from harness.reference.data.batch import Batch
from harness.reference.inference.risk import Evaluation, RiskModel, find_largest_forces
from harness.reference.models.foundation import FoundationModel

COLUMNS: dict[str, str] = {
    "energy_ev_per_atom": "the gate's weighted energy of the heads that know all elements",
    "residual_energy_ev_per_atom": "the same minus the reference energies of the elements",
    "spread_ev_per_atom": "weighted standard deviation of the residual energies of the heads",
    "force_max_ev_per_angstrom": "largest force on an atom",
    "distance": "distance of the embedding from the training sets",
    "risk_ev_per_atom": "half the width of the interval around the energy, see harness.reference.inference.risk",
}


def list_columns(*, forces: bool, distance: bool, risk: bool = False) -> tuple[str, ...]:
    """Return the names of the columns, with or without forces, distances and risks."""
    is_omitted = {"force_max_ev_per_angstrom": not forces, "distance": not distance, "risk_ev_per_atom": not risk}
    return tuple(name for name in COLUMNS if not is_omitted.get(name, False))


@dataclass(frozen=True)
class Scores:
    """The scores of some candidates.

    Attributes:
        names: Names of the columns.
        index: [k] numbers of the candidates.
        values: [k, columns].
    """

    names: tuple[str, ...]
    index: NDArray[np.int64]
    values: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, selection: slice | NDArray[np.bool_] | NDArray[np.int64]) -> Scores:
        return Scores(self.names, self.index[selection], self.values[selection])

    def column(self, name: str) -> NDArray[np.float32]:
        """Return the values of a column by its name, [k] for k retained candidates."""
        return self.values[:, self.names.index(name)]


def concatenate_scores(names: tuple[str, ...], parts: Sequence[Scores]) -> Scores:
    """Concatenate the scores of several parts.

    Args:
        names: Names of the columns, which the result has even if there are no parts.
        parts: Scores with these columns.
    """
    empty = Scores(names, np.zeros(0, dtype=np.int64), np.zeros((0, len(names)), dtype=np.float32))
    parts = [empty, *parts]
    return Scores(names, np.concatenate([p.index for p in parts]), np.concatenate([p.values for p in parts]))


@dataclass(frozen=True)
class MahalanobisDistance:
    """The distance |(z - mean) whitening| / sqrt(F) of a pooled embedding per atom z from the training sets.

    Attributes:
        mean: [F] mean embedding of the training sets.
        whitening: [F, F] matrix that whitens their covariance.
    """

    mean: Tensor
    whitening: Tensor

    def distance(self, embedding: Tensor) -> Tensor:
        """Return the distances [g] of embeddings [g, F]."""
        deviation = (embedding - self.mean) @ self.whitening
        return (deviation.square().mean(1)).sqrt()

    def to(self, device: torch.device, dtype: torch.dtype) -> MahalanobisDistance:
        """Return a copy on a device, in a data type."""
        return MahalanobisDistance(self.mean.to(device, dtype), self.whitening.to(device, dtype))


def score_energies(
    model: FoundationModel,
    batch: Batch,
    distance: MahalanobisDistance | None,
    risk: RiskModel | None = None,
    *,
    fused: bool = False,
) -> Tensor:
    """Return the columns of each structure without forces, [g, columns]; `fused` as in FoundationModel.features.

    There is no risk without forces, so that it has to be None.
    """
    assert risk is None
    features = model.encode_atoms(batch, batch.positions, batch.shift, fused=fused)
    scores = _compute_scores(model, batch, features, distance)
    return torch.stack(list(scores.values()), dim=1)


def score_energies_and_forces(
    model: FoundationModel,
    batch: Batch,
    distance: MahalanobisDistance | None,
    risk: RiskModel | None = None,
    *,
    fused: bool = False,
) -> Tensor:
    """Return the columns of each structure with forces, [g, columns]; `fused` as in FoundationModel.features."""
    with torch.enable_grad():
        positions = batch.positions.detach().requires_grad_()
        features = model.encode_atoms(batch, positions, batch.shift, fused=fused)
        scores = _compute_scores(model, batch, features, distance)
        (gradient,) = torch.autograd.grad((scores["residual_energy_ev_per_atom"] * batch.n_atoms).sum(), positions)
    largest = find_largest_forces(batch, gradient)
    scores["force_max_ev_per_angstrom"] = largest
    if risk is not None:
        features = features.detach()
        pooled = model.pool(batch, features)
        residual = model.residual_energies(pooled, batch) / batch.n_atoms.unsqueeze(-1)
        evaluation = Evaluation(features, pooled, residual, largest)
        scores["risk_ev_per_atom"] = risk.estimate(model, batch, evaluation, model.gate_weights(batch.composition))
    return torch.stack([scores[name].detach() for name in COLUMNS if name in scores], dim=1)


def _compute_scores(
    model: FoundationModel, batch: Batch, features: Tensor, distance: MahalanobisDistance | None
) -> dict[str, Tensor]:
    pooled = model.pool(batch, features)
    atoms = batch.n_atoms.unsqueeze(-1)
    residual = model.residual_energies(pooled, batch) / atoms
    weights = model.gate_weights(batch.composition)
    mean = (weights * residual).sum(1)
    spread = (weights * (residual - mean.unsqueeze(-1)).square()).sum(1).clamp_min(0).sqrt()
    # a head that lacks an element has a reference energy of 0 for it, and a weight of 0
    reference = (weights * (batch.composition @ model.reference_energy.T)).sum(1) / batch.n_atoms
    scores = {
        "energy_ev_per_atom": mean + reference,
        "residual_energy_ev_per_atom": mean,
        "spread_ev_per_atom": spread,
    }
    if distance is not None:
        scores["distance"] = distance.distance(model.select_features(pooled) / atoms)
    return scores


@dataclass(frozen=True)
class Retention:
    """The rule by which results are retained.

    Attributes:
        mode: "all", "top" (the `count` lowest or highest values of a column) or "within" (values from low to high).
        column: Name of the column.
        count: Number of results for "top".
        descending: Whether "top" retains the highest values.
        low: Lower bound for "within".
        high: Upper bound for "within".
        max_distance: Results with a larger distance from the training sets are dropped.
        max_risk_ev_per_atom: Results with a larger risk are dropped.
    """

    mode: Literal["all", "top", "within"] = "top"
    column: str = "residual_energy_ev_per_atom"
    count: int = 1000
    descending: bool = False
    low: float = -np.inf
    high: float = np.inf
    max_distance: float = np.inf
    max_risk_ev_per_atom: float = np.inf

    @classmethod
    def from_parameters(cls, selection: Selection, max_risk_ev_per_atom: float = np.inf) -> Retention:
        """Return the retention of a case, with infinity for open bounds."""
        return cls(
            selection.mode,
            selection.column,
            selection.count,
            selection.descending,
            -np.inf if selection.min is None else selection.min,
            np.inf if selection.max is None else selection.max,
            np.inf if selection.max_distance is None else selection.max_distance,
            max_risk_ev_per_atom,
        )

    def select(self, scores: Scores) -> Scores:
        """Return the results to retain; of candidates with equal values, the one with the lower number is better."""
        if self.max_distance < np.inf:
            scores = scores[scores.column("distance") <= self.max_distance]
        if self.max_risk_ev_per_atom < np.inf:
            scores = scores[scores.column("risk_ev_per_atom") <= self.max_risk_ev_per_atom]
        if self.mode == "all":
            return scores
        values = scores.column(self.column)
        if self.mode == "within":
            return scores[(values >= self.low) & (values <= self.high)]
        order = np.lexsort((scores.index, -values if self.descending else values))
        best: NDArray[np.int64] = np.sort(order[: self.count])
        return scores[best]

    def sort(self, scores: Scores) -> Scores:
        """Return the results sorted by the column, best first."""
        values = scores.column(self.column)
        return scores[np.lexsort((scores.index, -values if self.descending else values))]
