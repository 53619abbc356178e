"""Detection of structures outside the training sets of a model: other elements, or atoms closer than in training.

Distances are divided by the sum of the two covalent radii (Cordero et al., Dalton Trans. 2832 (2008)). The shortest
distance in the training set of each head is stored with the model. For a weighted sum of heads, the limit is the
weighted mean of the heads' limits, which depends on the composition alone and so is constant along a trajectory.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable

import numpy as np
import torch
from ase.data import chemical_symbols
from numpy.typing import NDArray
from torch import Tensor

from harness.reference.data.batch import Batch
from harness.reference.data.neighbours import NeighbourList
from harness.reference.data.structure import Array, Structure
from harness.reference.datasets.catalog import HEADS
from harness.reference.datasets.parsing.constants import COVALENT_RADII
from harness.reference.errors import InputError
from harness.reference.models.foundation import FoundationModel

# Relative tolerance: a limit in single precision must not refuse the structure whose distance defines it.
TOLERANCE = 1e-5
OTHER_ELEMENTS = "elements outside the heads"
TOO_CLOSE = "atoms closer than in training"


class OutsideTraining(InputError):
    """A structure is outside the training sets of the model, so that predicted energies are meaningless."""


def check_elements(model: FoundationModel, structure: Structure, head: int | None = None) -> None:
    """Check that the model knows the elements of a structure.

    Args:
        model: The model.
        structure: The structure.
        head: Index of the head in use; None if the gate weights all heads.

    Raises:
        OutsideTraining: The head was not trained on an element of the structure, or no head was trained on all of them.
    """
    numbers = np.unique(structure.numbers)
    known = model.known_elements.cpu().numpy()[:, numbers]
    knows_all = np.asarray(known.all(axis=1))
    if knows_all.any() if head is None else knows_all[head]:
        return
    if head is not None:
        missing, problem = numbers[~known[head]], f"the head {HEADS[head]!r} was not trained on"
        alternatives = ", ".join(HEADS[k] for k in np.flatnonzero(knows_all))
        hint = f"heads that know all of its elements: {alternatives or 'none'}"
    elif not known.any(axis=0).all():
        missing, problem = numbers[~known.any(axis=0)], "no head of this model was trained on"
        hint = "it cannot be used for this structure"
    else:
        missing, problem = numbers, "no single head of this model was trained on all of"
        hint = "it cannot be used for this structure"
    elements = ", ".join(f"{chemical_symbols[z]} (element {z})" for z in missing)
    raise OutsideTraining(f"structure {structure.name!r}: {problem} {elements}; {hint}")


def compute_contact_ratios(graph: NeighbourList) -> Array:
    """Return the length of each edge divided by the sum of the covalent radii of its two atoms, [e]."""
    structure = graph.structure
    vector = structure.positions[graph.sender] + graph.shift - structure.positions[graph.receiver]
    radii = COVALENT_RADII[structure.numbers]
    return np.asarray(np.linalg.norm(vector, axis=1) / (radii[graph.sender] + radii[graph.receiver]))


def find_shortest_contact(graphs: Iterable[NeighbourList]) -> float:
    """Return the smallest contact ratio of all graphs, or 0 if there are no edges."""
    contacts = (float(ratios.min()) for ratios in map(compute_contact_ratios, graphs) if ratios.size)
    return min(contacts, default=0.0)


def check_distances(model: FoundationModel, graph: NeighbourList, weights: Tensor) -> None:
    """Check that no two atoms are closer than in the training sets of the heads in use.

    Args:
        model: The model, with the limits of its heads.
        graph: The structure with its neighbours.
        weights: [heads] weight of each head.

    Raises:
        OutsideTraining: Two atoms are closer; the message names them.
    """
    limit = float(weights @ model.closest.to(weights)) * (1.0 - TOLERANCE)
    ratios = compute_contact_ratios(graph)
    if not ratios.size or ratios.min() >= limit:
        return
    edge = int(ratios.argmin())
    pair = sorted((int(graph.receiver[edge]), int(graph.sender[edge])))
    names = "-".join(f"{chemical_symbols[graph.structure.numbers[k]]}{k}" for k in pair)
    radii = float(COVALENT_RADII[graph.structure.numbers[pair]].sum())
    raise OutsideTraining(
        f"structure {graph.structure.name!r}: {names} are {ratios[edge] * radii:.3f} angstrom apart, closer than any"
        f" atoms that the model was trained on (for this pair {limit * radii:.3f} angstrom, {limit:.2f} times the sum"
        " of covalent radii); its energies mean nothing there"
    )


class Coverage:
    """A copy of the limits of a model's training sets on the CPU, which checks candidates while the GPU computes."""

    def __init__(self, model: FoundationModel) -> None:
        self.gate = copy.deepcopy(model.gate).to("cpu", torch.float64).requires_grad_(False)
        self.unknown = (~model.known_elements).T.to("cpu", torch.float64)
        self.closest = model.closest.to("cpu", torch.float64) * (1.0 - TOLERANCE)
        self.has_limits = bool(self.unknown[1:].any() or self.closest.any())

    def find_outside(self, batch: Batch) -> dict[str, NDArray[np.bool_]]:
        """Find the structures outside the training sets.

        Args:
            batch: g structures in double precision on the CPU.

        Returns:
            For each reason, the mask [g] of the structures that are excluded for it; a structure has at most one
            reason. The result is empty if the model has no limits.
        """
        if not self.has_limits:
            return {}
        known = batch.composition @ self.unknown == 0
        lacks_element = ~known.any(1)
        limit = torch.nan_to_num(self.gate.masked_weights(batch.composition, known) @ self.closest)
        radii = torch.from_numpy(COVALENT_RADII)[batch.numbers]
        vector = batch.positions[batch.sender] + batch.shift - batch.positions[batch.receiver]
        ratio = torch.linalg.vector_norm(vector, dim=1) / (radii[batch.sender] + radii[batch.receiver])
        shortest = torch.full_like(limit, torch.inf).scatter_reduce(0, batch.edge_graph, ratio, "amin")
        return {OTHER_ELEMENTS: lacks_element.numpy(), TOO_CLOSE: ((shortest < limit) & ~lacks_element).numpy()}
