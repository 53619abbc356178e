"""Factors between 0 and 1 that scale the learnt energy of each head so that its validation loss is lowest.

A head that was trained on few or very different structures fits them, and adds noise elsewhere. Its learnt energies,
and with them its forces, are multiplied by the factor with the lowest validation loss among those whose force error
does not exceed that of zero forces. It is 1 for a head that generalizes, less for others, and almost 0 for one that
predicts no better than the composition or than zero forces. The idea is that of James and Stein (Proc. 4th Berkeley
Symp. 1, 361, 1961).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from harness.reference.data.batch import Batch
from harness.reference.models.foundation import FoundationModel
from harness.reference.training.loss import Labels, MultiTaskLoss, compare_with_labels, predict_own_head

# The factors that are compared. With a factor of 0, a head could not be trained any further. The force error is convex
# in the factor, so with the smallest one it exceeds that of zero forces by at most 1e-4 of the excess at a factor of 1.
FACTORS = torch.cat([torch.tensor([1e-4], dtype=torch.float64), torch.linspace(0.01, 1.0, 100, dtype=torch.float64)])


def find_best_factors(
    model: FoundationModel, batches: Iterable[tuple[Batch, Labels]], objective: MultiTaskLoss
) -> Tensor:
    """Return the factor of each head, [heads]; 1 for a head without structures.

    It has the lowest loss of those with a mean absolute force error of at most that of zero forces. If there is none,
    which repulsion can cause, it has the lowest force error.

    Args:
        model: The model, whose scales are those of training.
        batches: Validation structures with labels.
        objective: The training loss.
    """
    scale = model.scale.clone()
    losses = torch.zeros(len(scale), len(FACTORS), dtype=torch.float64)
    force_errors, zero_force_errors = torch.zeros_like(losses), torch.zeros(len(scale), 1, dtype=torch.float64)
    for batch, labels in batches:
        # energies are affine in the scale; at scale 0, the reference energies and the repulsion remain
        energy, forces = predict_own_head(model, batch, create_graph=False)
        model.scale.zero_()
        try:
            energy_without, forces_without = predict_own_head(model, batch, create_graph=False)
        finally:
            model.scale.copy_(scale)
        head = batch.head.cpu()
        # errors of graphs are means over their atoms, and the bound applies to the mean over all atoms of a head
        zero_errors = compare_with_labels(energy_without, torch.zeros_like(forces), batch, labels)
        zero_force_errors[:, 0].index_add_(0, head, (zero_errors.force * batch.n_atoms).double().cpu())
        for column, factor in enumerate(FACTORS.tolist()):
            errors = compare_with_labels(
                torch.lerp(energy_without, energy, factor), torch.lerp(forces_without, forces, factor), batch, labels
            )
            losses[:, column].index_add_(0, head, objective.per_graph(errors, batch.head).double().cpu())
            force_errors[:, column].index_add_(0, head, (errors.force * batch.n_atoms).double().cpu())
    bound = torch.maximum(zero_force_errors, force_errors.amin(1, keepdim=True))
    losses.masked_fill_(force_errors > bound, torch.inf)
    # the last of equal minima, so that a head without structures has the factor 1
    return FACTORS[len(FACTORS) - 1 - losses.flip(1).argmin(1)]
