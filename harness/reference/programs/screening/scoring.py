"""What is told of a candidate: energies, how far the heads agree, forces, and how far it is from what is known."""

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


def columns(*, forces: bool, distance: bool) -> tuple[str, ...]:
    """The names of what is told where forces and distances are, or are not, asked for."""
    left_out = {"force_max_ev_per_a": not forces, "distance": not distance}
    return tuple(name for name in COLUMNS if not left_out.get(name, False))


@dataclass(frozen=True)
class Scores:
    """names: of the columns. index: [k] of candidates. values: [k, columns]."""

    names: tuple[str, ...]
    index: NDArray[np.int64]
    values: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, picked: slice | NDArray[np.bool_] | NDArray[np.int64]) -> Scores:
        return Scores(self.names, self.index[picked], self.values[picked])

    def column(self, name: str) -> NDArray[np.float32]:
        """One column, [k]."""
        return self.values[:, self.names.index(name)]


def joined(names: tuple[str, ...], parts: Sequence[Scores]) -> Scores:
    """One after the other."""
    none = Scores(names, np.zeros(0, dtype=np.int64), np.zeros((0, len(names)), dtype=np.float32))
    every = [none, *parts]
    return Scores(names, np.concatenate([p.index for p in every]), np.concatenate([p.values for p in every]))


@dataclass(frozen=True)
class Familiar:
    """Where the training sets lie among embeddings: mean [F] and whitening [F, F], so that the distance of a pooled
    embedding per atom z is |(z - mean) whitening| / sqrt(F)."""

    mean: Tensor
    whitening: Tensor

    def distance(self, embedding: Tensor) -> Tensor:
        """embedding [g, F] -> [g]."""
        away = (embedding - self.mean) @ self.whitening
        return (away.square().mean(1)).sqrt()

    def to(self, device: torch.device, dtype: torch.dtype) -> Familiar:
        """The same elsewhere."""
        return Familiar(self.mean.to(device, dtype), self.whitening.to(device, dtype))


def energies_only(model: FoundationModel, batch: Batch, familiar: Familiar | None, *, fused: bool = False) -> Tensor:
    """What `columns` names of each structure, [g, columns], without forces; fused as of FoundationModel.encode."""
    told = _scored(model, batch, batch.positions, familiar, fused=fused)
    return torch.stack(list(told.values()), dim=1)


def with_forces(model: FoundationModel, batch: Batch, familiar: Familiar | None, *, fused: bool = False) -> Tensor:
    """What `columns` names of each structure, [g, columns]; fused as of FoundationModel.encode."""
    with torch.enable_grad():
        positions = batch.positions.detach().requires_grad_()
        told = _scored(model, batch, positions, familiar, fused=fused)
        (slope,) = torch.autograd.grad((told["beyond_ev_per_atom"] * batch.atoms).sum(), positions)
    size = torch.linalg.vector_norm(slope, dim=1)
    largest = size.new_zeros(len(batch.atoms)).scatter_reduce(0, batch.graph, size, "amax", include_self=True)
    told["force_max_ev_per_a"] = largest
    return torch.stack([told[name].detach() for name in COLUMNS if name in told], dim=1)


def _scored(
    model: FoundationModel, batch: Batch, positions: Tensor, familiar: Familiar | None, *, fused: bool
) -> dict[str, Tensor]:
    pooled = model.encode(batch, positions, batch.shift, fused=fused)
    atoms = batch.atoms.unsqueeze(-1)
    beyond = model.beyond_references(pooled, batch) / atoms
    weights = model.gate_weights(batch.composition)
    mean = (weights * beyond).sum(1)
    spread = (weights * (beyond - mean.unsqueeze(-1)).square()).sum(1).clamp_min(0).sqrt()
    # a head that lacks an element has a reference energy of 0 for it, and a weight of 0
    reference = (weights * (batch.composition @ model.reference_energy.T)).sum(1) / batch.atoms
    told = {
        "energy_ev_per_atom": mean + reference,
        "beyond_ev_per_atom": mean,
        "spread_ev_per_atom": spread,
    }
    if familiar is not None:
        told["distance"] = familiar.distance(pooled / atoms)
    return told
