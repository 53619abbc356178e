"""The training loss: errors of energy and forces of each graph, as predicted by its dataset's head, and their sum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from harness.reference.data.batch import Batch, build_batch
from harness.reference.data.neighbours import NeighbourList
from harness.reference.models.foundation import FoundationModel


class Labels(NamedTuple):
    """The labels of a batch.

    Attributes:
        residual_energy: [g] eV, energy minus the reference energies.
        forces: [n, 3] eV/angstrom.
        force_mask: [n, 1], 1 if the forces of the structure are known, else 0.
    """

    residual_energy: Tensor
    forces: Tensor
    force_mask: Tensor


class Errors(NamedTuple):
    """The errors of each graph.

    Attributes:
        energy: [g] absolute error of the energy per atom, eV.
        force: [g] mean absolute error of force components, eV/angstrom; 0 if the forces are unknown.
    """

    energy: Tensor
    force: Tensor


def collate_labelled(
    graphs: Sequence[NeighbourList], references: Tensor, dtype: torch.dtype, *, with_triplets: bool = False
) -> tuple[Batch, Labels]:
    """Build a batch and its labels in one data type.

    Reference energies are subtracted in double precision: in single precision, total energies of thousands of eV would
    lose the last meV.

    Args:
        graphs: Structures with neighbours and energies.
        references: [heads, 119] eV in double precision.
        dtype: Type of the batch and the labels.
        with_triplets: Whether the batch includes pairs of edges.
    """
    structures = [g.structure for g in graphs]
    batch = build_batch(graphs, with_triplets=with_triplets)
    forces = [np.zeros_like(s.positions) if s.forces is None else s.forces for s in structures]
    known = [np.full((len(s), 1), s.forces is not None, dtype=float) for s in structures]
    energy = torch.tensor([s.energy for s in structures], dtype=torch.float64)
    labels = (
        energy - (batch.composition * references[batch.head]).sum(1),
        torch.from_numpy(np.concatenate(forces)),
        torch.from_numpy(np.concatenate(known)),
    )
    return batch.to("cpu", dtype), Labels(*(t.to(dtype) for t in labels))


def predict_own_head(
    model: FoundationModel, batch: Batch, *, create_graph: bool, fused: bool | None = None
) -> tuple[Tensor, Tensor]:
    """Predict each structure with the head of its own dataset.

    Args:
        model: The model.
        batch: The structures.
        create_graph: Whether the results are differentiable: with respect to the parameters, and to positions that
            require a gradient.
        fused: As in FoundationModel.features.

    Returns:
        Residual energies [g] in eV and forces [n, 3] in eV/angstrom.
    """
    positions = batch.positions if batch.positions.requires_grad else batch.positions.detach().requires_grad_()
    pooled = model.encode(batch, positions, batch.shift, fused=fused)
    energy, slope = model.own_energies(pooled, batch)
    (gradient,) = torch.autograd.grad(pooled, positions, slope, create_graph=create_graph)
    return energy, -gradient


def compute_errors(model: FoundationModel, batch: Batch, labels: Labels, *, fused: bool | None = None) -> Errors:
    """Return the errors of each graph, differentiable with respect to the parameters of the model."""
    return compare_with_labels(*predict_own_head(model, batch, create_graph=True, fused=fused), batch, labels)


def backpropagate(loss: Tensor, module: nn.Module) -> None:
    """Add the gradients of a loss to those of the parameters of a module.

    Unlike `loss.backward()`, this skips the gradients of the positions, which the graph of the forces contains.
    """
    loss.backward(inputs=[p for p in module.parameters() if p.requires_grad])


def compare_with_labels(energy: Tensor, forces: Tensor, batch: Batch, labels: Labels) -> Errors:
    """Return the errors of residual energies [g] and forces [n, 3] for each graph."""
    per_atom = ((forces - labels.forces) * labels.force_mask).abs().mean(1)
    force_sum = torch.zeros_like(energy).index_add(0, batch.graph, per_atom)
    return Errors(((energy - labels.residual_energy) / batch.n_atoms).abs(), force_sum / batch.n_atoms)


def find_known_forces(batch: Batch, labels: Labels) -> Tensor:
    """Return 1 for each graph whose forces are known, else 0, [g]."""
    known = torch.zeros_like(batch.n_atoms)
    known[batch.graph] = labels.force_mask.squeeze(1)
    return known


class PerGraphErrors(nn.Module):
    """`compute_errors` as a module, which can be compiled and wrapped in DistributedDataParallel."""

    def __init__(self, model: FoundationModel, *, fused: bool | None = None) -> None:
        super().__init__()
        self.model, self.fused = model, fused

    def forward(self, batch: Batch, labels: Labels) -> Errors:
        """Return the errors of each graph of a batch."""
        return compute_errors(self.model, batch, labels, fused=self.fused)


@dataclass(frozen=True)
class MultiTaskLoss:
    """The loss MAE(E/atom) + force_weight MAE(F) over the graphs of a step, with equal weight for each graph.

    Attributes:
        force_weight: Weight of the force errors.
        graphs_per_rank: The divisor of each rank's sum: the number of graphs of a step divided by that of ranks. The
            mean over ranks is then that over all graphs of the step, even if ranks have different numbers of them.
        energy_unit: [heads] eV, the divisor of the energy errors of each head; None for 1, the paper's loss.
        force_unit: [heads] eV/angstrom, the divisor of the force errors of each head; None if energy_unit is.
    """

    force_weight: float
    graphs_per_rank: int
    energy_unit: Tensor | None = None
    force_unit: Tensor | None = None

    def __post_init__(self) -> None:
        if (self.energy_unit is None) != (self.force_unit is None):
            raise ValueError("energy_unit and force_unit: expected both or neither")

    def __call__(self, graph_errors: Errors, head: Tensor) -> Tensor:
        """Return the loss, a scalar; head [g] is the head of each graph."""
        return self.per_graph(graph_errors, head).sum() / self.graphs_per_rank

    def per_graph(self, graph_errors: Errors, head: Tensor) -> Tensor:
        """Return the contribution of each graph to the loss, [g]; head [g] is the head of each graph."""
        energy, force = graph_errors
        if self.energy_unit is not None and self.force_unit is not None:
            energy, force = energy / self.energy_unit[head], force / self.force_unit[head]
        return energy + self.force_weight * force
