"""Scores of candidates: energies, spread of the heads, forces, and distance from the training sets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.reference.data.batch import Batch
from harness.reference.models.foundation import FoundationModel

COLUMNS: dict[str, str] = {
    "energy_ev_per_atom": "the gate's weighted energy of the heads that know all elements",
    "beyond_ev_per_atom": "the same less the reference energies of the elements",
    "spread_ev_per_atom": "weighted standard deviation of the heads about it, references left off",
    "force_max_ev_per_a": "largest force on an atom",
    "distance": "of the embedding from the training sets",
}


def column_names(*, forces: bool, distance: bool) -> tuple[str, ...]:
    """Return the names of the columns, with or without forces and distances."""
    is_omitted = {"force_max_ev_per_a": not forces, "distance": not distance}
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
        """Return one column, [k]."""
        return self.values[:, self.names.index(name)]


def concatenate_scores(names: tuple[str, ...], parts: Sequence[Scores]) -> Scores:
    """Concatenate scores with the given columns; the list may be empty."""
    empty = Scores(names, np.zeros(0, dtype=np.int64), np.zeros((0, len(names)), dtype=np.float32))
    parts = [empty, *parts]
    return Scores(names, np.concatenate([p.index for p in parts]), np.concatenate([p.values for p in parts]))


@dataclass(frozen=True)
class MahalanobisDistance:
    """The distance |(z - mean) whitening| / sqrt(F) of a pooled embedding per atom z from the training sets.

    Attributes:
        mean: [F].
        whitening: [F, F].
    """

    mean: Tensor
    whitening: Tensor

    def distance(self, embedding: Tensor) -> Tensor:
        """Return the distances [g] of embeddings [g, F]."""
        deviation = (embedding - self.mean) @ self.whitening
        return (deviation.square().mean(1)).sqrt()

    def to(self, device: torch.device, dtype: torch.dtype) -> MahalanobisDistance:
        """Return a copy on a device in a type."""
        return MahalanobisDistance(self.mean.to(device, dtype), self.whitening.to(device, dtype))


def energies_only(
    model: FoundationModel, batch: Batch, distance: MahalanobisDistance | None, *, fused: bool = False
) -> Tensor:
    """Return the columns of each structure without forces, [g, columns]; `fused` as in FoundationModel.features."""
    scores = _compute_scores(model, batch, batch.positions, distance, fused=fused)
    return torch.stack(list(scores.values()), dim=1)


def with_forces(
    model: FoundationModel, batch: Batch, distance: MahalanobisDistance | None, *, fused: bool = False
) -> Tensor:
    """Return the columns of each structure with forces, [g, columns]; `fused` as in FoundationModel.features."""
    with torch.enable_grad():
        positions = batch.positions.detach().requires_grad_()
        scores = _compute_scores(model, batch, positions, distance, fused=fused)
        (slope,) = torch.autograd.grad((scores["beyond_ev_per_atom"] * batch.atoms).sum(), positions)
    size = torch.linalg.vector_norm(slope, dim=1)
    largest = size.new_zeros(len(batch.atoms)).scatter_reduce(0, batch.graph, size, "amax", include_self=True)
    scores["force_max_ev_per_a"] = largest
    return torch.stack([scores[name].detach() for name in COLUMNS if name in scores], dim=1)


def _compute_scores(
    model: FoundationModel, batch: Batch, positions: Tensor, distance: MahalanobisDistance | None, *, fused: bool
) -> dict[str, Tensor]:
    pooled = model.encode(batch, positions, batch.shift, fused=fused)
    atoms = batch.atoms.unsqueeze(-1)
    residual = model.residual_energies(pooled, batch) / atoms
    weights = model.gate_weights(batch.composition)
    mean = (weights * residual).sum(1)
    spread = (weights * (residual - mean.unsqueeze(-1)).square()).sum(1).clamp_min(0).sqrt()
    # a head that lacks an element has a reference energy of 0 for it, and a weight of 0
    reference = (weights * (batch.composition @ model.reference_energy.T)).sum(1) / batch.atoms
    scores = {
        "energy_ev_per_atom": mean + reference,
        "beyond_ev_per_atom": mean,
        "spread_ev_per_atom": spread,
    }
    if distance is not None:
        scores["distance"] = distance.distance(pooled / atoms)
    return scores
