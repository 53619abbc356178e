"""Detection of structures outside the training sets of a model: other elements, or atoms closer than in training.

Distances are divided by the sum of the two covalent radii (Cordero et al., Dalton Trans. 2832 (2008)). The shortest
distance in the training set of each head is stored with the model. For a weighted sum of heads, the limit is the
weighted mean of theirs: it depends on the composition alone, and so is constant along a relaxation or a trajectory.
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

# A limit of single precision must not refuse the very structure that it was taken from.
ROUNDING = 1e-5
OTHER_ELEMENTS = "elements outside the heads"
TOO_CLOSE = "atoms closer than in training"


class OutsideTraining(InputError):
    """A structure outside the training sets of the model, for which its energies mean nothing."""


def check_elements(model: FoundationModel, structure: Structure, head: int | None = None) -> None:
    """Check that the model knows the elements of a structure.

    Args:
        model: The model.
        structure: The structure.
        head: The head in use; None if the gate weighs all of them.

    Raises:
        OutsideTraining: The head, or every single head, lacks an element of the structure.
    """
    numbers = np.unique(structure.numbers)
    known = model.known_elements.cpu().numpy()[:, numbers]
    complete = np.asarray(known.all(axis=1))
    if complete.any() if head is None else complete[head]:
        return
    knowing = ", ".join(HEADS[k] for k in np.flatnonzero(complete))
    if head is not None:
        lacking, who = numbers[~known[head]], f"the head {HEADS[head]!r} was not trained on"
        hint = f"heads that know all of its elements: {knowing or 'none'}"
    elif not known.any(axis=0).all():
        lacking, who = numbers[~known.any(axis=0)], "no head of this model was trained on"
        hint = "it cannot be used for this structure"
    else:
        lacking, who = numbers, "no single head of this model was trained on all of"
        hint = "it cannot be used for this structure"
    elements = ", ".join(f"{chemical_symbols[z]} (element {z})" for z in lacking)
    raise OutsideTraining(f"structure {structure.name!r}: {who} {elements}; {hint}")


def compute_contact_ratios(graph: NeighbourList) -> Array:
    """Return [e] the length of each edge over the sum of the covalent radii of its atoms."""
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
    limit = float(weights @ model.closest.to(weights)) * (1.0 - ROUNDING)
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
    """The limits of a model's training sets, copied to the CPU, to check candidates while the device computes."""

    def __init__(self, model: FoundationModel) -> None:
        self.gate = copy.deepcopy(model.gate).to("cpu", torch.float64).requires_grad_(False)
        self.unknown = (~model.known_elements).T.to("cpu", torch.float64)
        self.closest = model.closest.to("cpu", torch.float64) * (1.0 - ROUNDING)
        self.is_total = not (self.unknown[1:].any() or self.closest.any())

    def find_outside(self, batch: Batch) -> dict[str, NDArray[np.bool_]]:
        """Return for each reason which structures are outside the training sets, [g]; each has at most one reason.

        Args:
            batch: Structures in double precision on the CPU.
        """
        if self.is_total:
            return {}
        known = batch.composition @ self.unknown == 0
        lacks_element = ~known.any(1)
        limit = torch.nan_to_num(self.gate.masked_weights(batch.composition, known) @ self.closest)
        radii = torch.from_numpy(COVALENT_RADII)[batch.numbers]
        vector = batch.positions[batch.sender] + batch.shift - batch.positions[batch.receiver]
        ratio = torch.linalg.vector_norm(vector, dim=1) / (radii[batch.sender] + radii[batch.receiver])
        shortest = torch.full_like(limit, torch.inf).scatter_reduce(0, batch.edge_graph, ratio, "amin")
        return {OTHER_ELEMENTS: lacks_element.numpy(), TOO_CLOSE: ((shortest < limit) & ~lacks_element).numpy()}
