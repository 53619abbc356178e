"""Factors between 0 and 1 that scale the learnt energy of each head so that its validation loss is lowest.

A head that was trained on few or very different structures overfits them, and adds noise elsewhere. Its learnt
energies, and with them its forces, are multiplied by the factor with the lowest validation loss among those whose force
error is below that of zero forces with 95% confidence. It is 1 for a head that generalizes, less for others, and almost
0 for one that predicts no better than the composition or than zero forces. The idea is that of James and Stein (Proc.
4th Berkeley Symp. 1, 361, 1961).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from harness.reference.data.batch import Batch
from harness.reference.errors import NotFinite
from harness.reference.models.foundation import FoundationModel
from harness.reference.training.loss import Labels, MultiTaskLoss, compare_with_labels, predict_own_head

# The factors that are compared. With a factor of 0, a head could not be trained any further. The force error is convex
# in the factor: without repulsion, the smallest factor exceeds the error of zero forces by at most 1e-4 of the excess
# of a factor of 1.
FACTORS = torch.cat([torch.tensor([1e-4], dtype=torch.float64), torch.linspace(0.01, 1.0, 100, dtype=torch.float64)])
ONE_SIDED_95 = 1.645  # standard deviations of a normal distribution


def find_best_factors(
    model: FoundationModel, batches: Iterable[tuple[Batch, Labels]], objective: MultiTaskLoss
) -> Tensor:
    """Return the factor of each head, [heads]; 1 for a head without structures.

    The excess is the mean absolute force error minus that of zero forces. Among the factors whose upper bound of the
    excess is not positive, that with the lowest loss is returned; if there are none, that with the smallest bound.

    Args:
        model: The model, whose scales are those of training.
        batches: Validation structures with labels.
        objective: The training loss.

    Raises:
        NotFinite: A prediction for a validation structure is not finite.
    """
    scale = model.scale.clone()
    heads, losses, excesses, sizes = [], [], [], []
    for batch, labels in batches:
        # energies are affine in the scale; at scale 0, the reference energies and the repulsion remain
        energy, forces = predict_own_head(model, batch, create_graph=False)
        model.scale.zero_()
        try:
            energy_without, forces_without = predict_own_head(model, batch, create_graph=False)
        finally:
            model.scale.copy_(scale)
        zero_errors = compare_with_labels(energy_without, torch.zeros_like(forces), batch, labels)
        by_factor = [
            compare_with_labels(
                torch.lerp(energy_without, energy, factor), torch.lerp(forces_without, forces, factor), batch, labels
            )
            for factor in FACTORS.tolist()
        ]
        losses.append(torch.stack([objective.per_graph(errors, batch.head) for errors in by_factor], 1).double().cpu())
        # errors of graphs are means over their atoms, and the bound applies to the mean over all atoms of a head
        excess = torch.stack([(errors.force - zero_errors.force) * batch.n_atoms for errors in by_factor], 1)
        excesses.append(excess.double().cpu())
        known_forces = torch.zeros(len(batch.head), device=batch.head.device, dtype=torch.float64)
        known_forces.index_add_(0, batch.graph, labels.force_mask[:, 0].double())
        sizes.append(known_forces.cpu())
        heads.append(batch.head.cpu())
    factors = torch.ones(len(scale), dtype=torch.float64)
    if heads:
        head, loss, excess, size = map(torch.cat, (heads, losses, excesses, sizes))
        if not (loss.isfinite().all() and excess.isfinite().all()):
            raise NotFinite("the predictions for validation structures are not finite")
        for k in head.unique().tolist():
            rows = head == k
            bound = bound_excess(excess[rows], size[rows])
            allowed = bound <= max(0.0, float(bound.min()))
            factors[k] = FACTORS[int(loss[rows].sum(0).masked_fill(~allowed, torch.inf).argmin())]
    return factors


def bound_excess(excess: Tensor, sizes: Tensor) -> Tensor:
    """Return the upper bound of the one-sided 95% interval of the sum of each column of [graphs, columns].

    The standard error is that of a ratio of sums over graphs (Cochran, Sampling Techniques, 1977, equation 6.13); a
    single graph has none, and its bound is the sum.

    Args:
        excess: The sum of a quantity over the atoms of each graph, [graphs, columns].
        sizes: The number of atoms of each graph for which the quantity is known, [graphs].
    """
    total = excess.sum(0)
    residuals = excess - sizes[:, None] * (total / sizes.sum().clamp(min=1.0))
    count = int((sizes > 0).sum())
    return total + ONE_SIDED_95 * residuals.square().sum(0).mul(count / max(1, count - 1)).sqrt()
