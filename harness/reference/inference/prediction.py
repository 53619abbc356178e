"""Energies and forces, a function per formulation: the paper's optimization ladder (Table XV), and mixed precision.

Every one takes the same model and batch and returns the gated energy and its forces. All give the baseline's numbers up
to rounding but branch_skip, which leaves out the forces of branches that the gate hardly uses, and mixed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from harness.reference.data.batch import Batch
from harness.reference.models.foundation import FoundationModel

SKIP_THRESHOLD = 0.01


class Prediction(NamedTuple):
    """energy [g] in eV, forces [n, 3] in eV/angstrom, detached."""

    energy: Tensor
    forces: Tensor


Predict = Callable[[FoundationModel, Batch, Tensor], Prediction]


def gradient(energy: Tensor, positions: Tensor, *, keep_graph: bool = False) -> Tensor:
    """d(sum of energy)/d(positions)."""
    return torch.autograd.grad(energy.sum(), positions, retain_graph=keep_graph)[0]


def baseline(model: FoundationModel, batch: Batch, weights: Tensor) -> Prediction:
    """Each branch on its own: encoder, head and gradient, then the weighted mean of energies and forces."""
    energy = torch.zeros_like(weights[:, 0])
    forces = torch.zeros_like(batch.positions)
    for head in range(model.config.heads):
        positions = batch.positions.detach().requires_grad_()
        of_head = model.head_energy(head, model.encode(batch, positions, batch.shift), batch)
        weight = weights[:, head]
        forces -= weight[batch.graph].unsqueeze(-1) * gradient(of_head, positions)
        energy += weight * of_head.detach()
    return Prediction(energy, forces)


def encoder_reuse(model: FoundationModel, batch: Batch, weights: Tensor) -> Prediction:
    """The encoder runs once; every branch still has its own gradient through it."""
    return _per_head(model, batch, weights, threshold=0.0)


def branch_skip(model: FoundationModel, batch: Batch, weights: Tensor) -> Prediction:
    """Branches whose mean weight over the batch is under the threshold get no gradient; their energy counts."""
    return _per_head(model, batch, weights, threshold=SKIP_THRESHOLD)


def live_heads(weights: Tensor, threshold: float = SKIP_THRESHOLD) -> list[int]:
    """Branches that branch_skip takes gradients of."""
    return torch.nonzero(weights.mean(0) >= threshold).flatten().tolist()


def _per_head(model: FoundationModel, batch: Batch, weights: Tensor, *, threshold: float) -> Prediction:
    positions = batch.positions.detach().requires_grad_()
    pooled = model.encode(batch, positions, batch.shift)
    live = set(live_heads(weights, threshold))
    energy = torch.zeros_like(weights[:, 0])
    forces = torch.zeros_like(batch.positions)
    for head in range(model.config.heads):
        weight = weights[:, head]
        if head in live:
            of_head = model.head_energy(head, pooled, batch)
            forces -= weight[batch.graph].unsqueeze(-1) * gradient(of_head, positions, keep_graph=True)
        else:
            of_head = model.head_energy(head, pooled.detach(), batch)
        energy += weight * of_head.detach()
    return Prediction(energy, forces)


def fused_gradient(model: FoundationModel, batch: Batch, weights: Tensor) -> Prediction:
    """The weighted sum of energies comes first; one gradient gives the forces of all branches."""
    positions = batch.positions.detach().requires_grad_()
    pooled = model.encode(batch, positions, batch.shift)
    heads = range(model.config.heads)
    energies = torch.stack([model.head_energy(head, pooled, batch) for head in heads], dim=-1)
    energy = (weights * energies).sum(-1)
    return Prediction(energy.detach(), -gradient(energy, positions))


def batched_heads(model: FoundationModel, batch: Batch, weights: Tensor, *, fused: bool = False) -> Prediction:
    """As fused_gradient, with the sixteen heads as one batched product a layer; fused: as of FoundationModel.encode."""
    with torch.enable_grad():
        positions = batch.positions.detach().requires_grad_()
        pooled = model.encode(batch, positions, batch.shift, fused=fused)
        energy = (weights * model.all_energies(pooled, batch)).sum(-1)
        return Prediction(energy.detach(), -gradient(energy, positions))


def mixed(
    model: FoundationModel, low: FoundationModel, batch: Batch, weights: Tensor, *, fused: bool = False
) -> Prediction:
    """As batched_heads; low, the same model in single precision, does all but distances and sums.

    Geometry, sums over atoms, reference energies, and the sums over edges that make forces are in the batch's own type.
    """
    with torch.enable_grad():
        positions = batch.positions.detach().requires_grad_()
        coarse = batch.to(positions.device, torch.float32)
        vector = positions[batch.sender] + batch.shift - positions[batch.receiver]
        s = low.features(coarse, vector.float(), fused=fused).to(positions.dtype)
        pooled = s.new_zeros(batch.composition.shape[0], s.shape[1]).index_add(0, batch.graph, s)
        beyond = low.beyond_references(pooled.float(), coarse).to(positions.dtype)
        energy = (weights * (beyond + batch.composition @ model.reference_energy.T)).sum(-1)
        return Prediction(energy.detach(), -gradient(energy, positions))


def stress(model: FoundationModel, batch: Batch, weights: Tensor) -> tuple[Prediction, Tensor]:
    """Energy, forces, and stress [g, 3, 3] in eV/angstrom^3 (tension positive; NaN where the cell has no volume).

    The stress is the derivative of the energy by a symmetric strain of positions and periodic images, over the
    volume (Knuth et al., Comput. Phys. Commun. 190, 33 (2015)).
    """
    positions = batch.positions.detach().requires_grad_()
    strain = torch.zeros_like(batch.cell).requires_grad_()
    symmetric = 0.5 * (strain + strain.transpose(1, 2))
    moved = positions + torch.einsum("ni,nij->nj", positions, symmetric[batch.graph])
    shift = batch.shift + torch.einsum("ei,eij->ej", batch.shift, symmetric[batch.edge_graph])
    energy = (weights * model.all_energies(model.encode(batch, moved, shift), batch)).sum(-1)
    by_position, by_strain = torch.autograd.grad(energy.sum(), (positions, strain))
    volume = torch.linalg.det(batch.cell).abs()
    volume = torch.where(volume > 0, volume, torch.full_like(volume, torch.nan))
    return Prediction(energy.detach(), -by_position), by_strain / volume[:, None, None]
