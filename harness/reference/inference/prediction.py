"""Energies and forces, one function per formulation of the paper's optimization ladder (Table XV), and mixed precision.

Each function takes a model, a batch and the weights [g, heads] of the heads, and returns the weighted energy and its
forces. All agree with the baseline up to rounding, except branch_skip, which omits the forces of heads with small
weights, and mixed_precision, which has lower precision.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from harness.reference.data.batch import Batch
from harness.reference.models.edge_groups import compute_edge_vectors
from harness.reference.models.foundation import FoundationModel

SKIP_THRESHOLD = 0.01


class Prediction(NamedTuple):
    """The energies and forces of a batch, without autograd graph.

    Attributes:
        energy: [g] eV.
        forces: [n, 3] eV/angstrom.
    """

    energy: Tensor
    forces: Tensor


Predict = Callable[[FoundationModel, Batch, Tensor], Prediction]


def gradient(energy: Tensor, positions: Tensor, *, retain_graph: bool = False) -> Tensor:
    """Return d(sum of energy)/d(positions) [n, 3]."""
    return torch.autograd.grad(energy.sum(), positions, retain_graph=retain_graph)[0]


def baseline(model: FoundationModel, batch: Batch, weights: Tensor) -> Prediction:
    """Run encoder, head and gradient for each head separately, then average energies and forces by weight."""
    energy = torch.zeros_like(weights[:, 0])
    forces = torch.zeros_like(batch.positions)
    for head in range(model.config.heads):
        positions = batch.positions.detach().requires_grad_()
        head_energy = model.head_energy(head, model.encode(batch, positions, batch.shift), batch)
        weight = weights[:, head]
        forces -= weight[batch.graph].unsqueeze(-1) * gradient(head_energy, positions)
        energy += weight * head_energy.detach()
    return Prediction(energy, forces)


def encoder_reuse(model: FoundationModel, batch: Batch, weights: Tensor) -> Prediction:
    """Run the encoder once; each head still has its own backward pass through the encoder."""
    return _predict_per_head(model, batch, weights, threshold=0.0)


def branch_skip(model: FoundationModel, batch: Batch, weights: Tensor) -> Prediction:
    """Omit the forces, but not the energies, of heads whose mean weight over the batch is below SKIP_THRESHOLD."""
    return _predict_per_head(model, batch, weights, threshold=SKIP_THRESHOLD)


def find_active_heads(weights: Tensor, threshold: float = SKIP_THRESHOLD) -> list[int]:
    """Return the heads whose mean weight is at least the threshold, for weights [g, heads] of a batch."""
    return torch.nonzero(weights.mean(0) >= threshold).flatten().tolist()


def _predict_per_head(model: FoundationModel, batch: Batch, weights: Tensor, *, threshold: float) -> Prediction:
    positions = batch.positions.detach().requires_grad_()
    pooled = model.encode(batch, positions, batch.shift)
    active = set(find_active_heads(weights, threshold))
    energy = torch.zeros_like(weights[:, 0])
    forces = torch.zeros_like(batch.positions)
    for head in range(model.config.heads):
        weight = weights[:, head]
        if head in active:
            head_energy = model.head_energy(head, pooled, batch)
            forces -= weight[batch.graph].unsqueeze(-1) * gradient(head_energy, positions, retain_graph=True)
        else:
            head_energy = model.head_energy(head, pooled.detach(), batch)
        energy += weight * head_energy.detach()
    return Prediction(energy, forces)


def fused_gradient(model: FoundationModel, batch: Batch, weights: Tensor) -> Prediction:
    """Sum the weighted energies of all heads first, so that one gradient gives the forces."""
    positions = batch.positions.detach().requires_grad_()
    pooled = model.encode(batch, positions, batch.shift)
    heads = range(model.config.heads)
    energies = torch.stack([model.head_energy(head, pooled, batch) for head in heads], dim=-1)
    energy = (weights * energies).sum(-1)
    return Prediction(energy.detach(), -gradient(energy, positions))


def batched_heads(model: FoundationModel, batch: Batch, weights: Tensor, *, fused: bool | None = None) -> Prediction:
    """Compute all heads by one batched product per layer, and the forces by one gradient as in `fused_gradient`.

    Args:
        model: The model.
        batch: The structures.
        weights: [g, heads] weight of each head.
        fused: As in FoundationModel.features.
    """
    with torch.enable_grad():
        positions = batch.positions.detach().requires_grad_()
        pooled = model.encode(batch, positions, batch.shift, fused=fused)
        energy = (weights * model.all_energies(pooled, batch)).sum(-1)
        return Prediction(energy.detach(), -gradient(energy, positions))


def mixed_precision(
    model: FoundationModel, low: FoundationModel, batch: Batch, weights: Tensor, *, fused: bool | None = None
) -> Prediction:
    """Predict as `batched_heads` does, but with a model in single precision for all but distances and sums.

    Distances, sums over atoms, reference energies, and the sums over edges for the forces have the data type of the
    batch.

    Args:
        model: The model in the data type of the batch, whose reference energies are used.
        low: The same model in single precision.
        batch: The structures.
        weights: [g, heads] weight of each head.
        fused: As in FoundationModel.features.
    """
    with torch.enable_grad():
        positions = batch.positions.detach().requires_grad_()
        low_batch = batch.to(positions.device, torch.float32)
        vector = compute_edge_vectors(batch, positions, batch.shift)
        s = low.features(low_batch, vector.float(), fused=fused).to(positions.dtype)
        pooled = model.pool(batch, s)
        residual = low.residual_energies(pooled.float(), low_batch).to(positions.dtype)
        energy = (weights * (residual + batch.composition @ model.reference_energy.T)).sum(-1)
        return Prediction(energy.detach(), -gradient(energy, positions))


def predict_with_stress(
    model: FoundationModel, batch: Batch, weights: Tensor, *, fused: bool | None = None
) -> tuple[Prediction, Tensor]:
    """Return energy and forces, and the stress [g, 3, 3] in eV/angstrom^3 (tension is positive).

    The stress is the derivative of the energy with respect to a symmetric strain of positions and periodic images,
    divided by the volume (Knuth et al., Comput. Phys. Commun. 190, 33 (2015)). It is NaN if the cell has no volume.

    Args:
        model: The model.
        batch: The structures.
        weights: [g, heads] weight of each head.
        fused: As in FoundationModel.features.
    """
    positions = batch.positions.detach().requires_grad_()
    strain = torch.zeros_like(batch.cell).requires_grad_()
    symmetric = 0.5 * (strain + strain.transpose(1, 2))
    strained = positions + torch.einsum("ni,nij->nj", positions, symmetric[batch.graph])
    shift = batch.shift + torch.einsum("ei,eij->ej", batch.shift, symmetric[batch.edge_graph])
    energy = (weights * model.all_energies(model.encode(batch, strained, shift, fused=fused), batch)).sum(-1)
    position_gradient, strain_gradient = torch.autograd.grad(energy.sum(), (positions, strain))
    volume = torch.linalg.det(batch.cell).abs()
    volume = torch.where(volume > 0, volume, torch.full_like(volume, torch.nan))
    return Prediction(energy.detach(), -position_gradient), strain_gradient / volume[:, None, None]
