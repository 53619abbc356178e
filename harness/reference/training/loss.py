"""What training minimises: errors of each graph's energy and forces, by the head of its own dataset, and their mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from harness.reference.data.batch import Batch, collate
from harness.reference.data.neighbours import Graph
from harness.reference.models.foundation import FoundationModel


class Labels(NamedTuple):
    """beyond [g] eV, energies less their references; forces [n, 3] eV/angstrom; known [n, 1], 1 where forces are."""

    beyond: Tensor
    forces: Tensor
    known: Tensor


class Errors(NamedTuple):
    """Of each graph: |error of E/atom| [g] in eV, mean |error of a force component| [g] in eV/angstrom (0: unknown)."""

    energy: Tensor
    force: Tensor


def labelled(
    graphs: Sequence[Graph], references: Tensor, dtype: torch.dtype, *, with_triplets: bool = False
) -> tuple[Batch, Labels]:
    """A batch and its labels in one type; references [heads, 119] eV in double precision.

    Reference energies come off while all is in double precision: totals of thousands of eV would cost single precision
    their last meV.
    """
    structures = [g.structure for g in graphs]
    batch = collate(graphs, with_triplets=with_triplets)
    forces = [np.zeros_like(s.positions) if s.forces is None else s.forces for s in structures]
    known = [np.full((len(s), 1), s.forces is not None, dtype=float) for s in structures]
    energy = torch.tensor([s.energy for s in structures], dtype=torch.float64)
    labels = (
        energy - (batch.composition * references[batch.head]).sum(1),
        torch.from_numpy(np.concatenate(forces)),
        torch.from_numpy(np.concatenate(known)),
    )
    return batch.to("cpu", dtype), Labels(*(t.to(dtype) for t in labels))


def own_head(model: FoundationModel, batch: Batch, *, create_graph: bool, fused: bool = False) -> tuple[Tensor, Tensor]:
    """Energy beyond the references [g] in eV, and forces [n, 3], of each structure from its own dataset's head.

    fused: as of FoundationModel.encode.
    """
    positions = batch.positions if batch.positions.requires_grad else batch.positions.detach().requires_grad_()
    beyond = model.beyond_references(model.encode(batch, positions, batch.shift, fused=fused), batch)
    own = beyond.gather(1, model.place[batch.head].unsqueeze(1)).squeeze(1)
    (slope,) = torch.autograd.grad(own.sum(), positions, create_graph=create_graph)
    return own, -slope


def errors(model: FoundationModel, batch: Batch, labels: Labels, *, fused: bool = False) -> Errors:
    """The errors of each graph, differentiable; the gradient that makes the forces is part of it."""
    return compared(*own_head(model, batch, create_graph=True, fused=fused), batch, labels)


def compared(energy: Tensor, forces: Tensor, batch: Batch, labels: Labels) -> Errors:
    """energy [g] beyond the references, forces [n, 3] -> their errors, graph by graph."""
    per_atom = ((forces - labels.forces) * labels.known).abs().mean(1)
    of_graph = torch.zeros_like(energy).index_add(0, batch.graph, per_atom)
    return Errors(((energy - labels.beyond) / batch.atoms).abs(), of_graph / batch.atoms)


class GraphErrors(nn.Module):
    """`errors` as a module, which is what is compiled and what gradients are exchanged for."""

    def __init__(self, model: FoundationModel, *, fused: bool = False) -> None:
        super().__init__()
        self.model, self.fused = model, fused

    def forward(self, batch: Batch, labels: Labels) -> Errors:
        """The errors of each graph of a batch."""
        return errors(self.model, batch, labels, fused=self.fused)


@dataclass(frozen=True)
class Objective:
    """MAE(E/atom) x 1 + MAE(F) x force_weight over the graphs of a step, every graph weighing the same.

    graphs: how many a rank takes on average. A rank that was dealt more or fewer sums over its own and divides by
    this number all the same, so that the mean over ranks is the mean over all graphs of the step. energy_unit,
    force_unit: [heads], what errors of each head are counted in (1 for the paper's loss, in eV and eV/angstrom).
    """

    force_weight: float
    graphs: int
    energy_unit: Tensor | None = None
    force_unit: Tensor | None = None

    def __call__(self, of_graphs: Errors, head: Tensor) -> Tensor:
        """The loss, a scalar; head [g]."""
        return self.each(of_graphs, head).sum() / self.graphs

    def each(self, of_graphs: Errors, head: Tensor) -> Tensor:
        """What each graph adds to the loss, [g]; head [g]."""
        energy, force = of_graphs
        if self.energy_unit is not None and self.force_unit is not None:
            energy, force = energy / self.energy_unit[head], force / self.force_unit[head]
        return energy + self.force_weight * force
