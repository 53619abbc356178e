"""What the heads of a model were trained on, and which structures lie outside it: other elements, shorter distances.

A distance counts in units of the sum of the two covalent radii (Cordero et al., Dalton Trans. 2832 (2008)). What a head
has seen down to is stored with the model; of a weighted sum of heads, the limit is the weighted mean of theirs. It
depends on the composition alone, and so is the same all along a relaxation or a trajectory.
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
from harness.reference.data.neighbours import Graph
from harness.reference.data.structure import Array, Structure
from harness.reference.datasets.heads import HEADS
from harness.reference.datasets.parsing.free_atoms import RADII
from harness.reference.errors import InputError
from harness.reference.models.foundation import FoundationModel

# A limit of single precision must not refuse the very structure that it was taken from.
ROUNDING = 1e-5
OTHER_ELEMENTS = "elements outside the heads"
TOO_CLOSE = "atoms closer than in training"


class OutsideTraining(InputError):
    """A structure of which the model cannot know anything."""


def check_elements(model: FoundationModel, structure: Structure, head: int | None = None) -> None:
    """Raise OutsideTraining if the head, or every single head, lacks an element of the structure."""
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
    words = ", ".join(f"{chemical_symbols[z]} (element {z})" for z in lacking)
    raise OutsideTraining(f"structure {structure.name!r}: {who} {words}; {hint}")


def contacts(graph: Graph) -> Array:
    """Return the length of each edge over the sum of the covalent radii of its atoms, [e]."""
    structure = graph.structure
    vector = structure.positions[graph.sender] + graph.shift - structure.positions[graph.receiver]
    radii = RADII[structure.numbers]
    return np.asarray(np.linalg.norm(vector, axis=1) / (radii[graph.sender] + radii[graph.receiver]))


def shortest_contact(graphs: Iterable[Graph]) -> float:
    """Return the least of all contacts, or 0 if there are none."""
    result = [float(ratios.min()) for ratios in map(contacts, graphs) if ratios.size]
    return min(result, default=0.0)


def check_distances(model: FoundationModel, graph: Graph, weights: Tensor) -> None:
    """Raise OutsideTraining, naming the pair, if two atoms are closer than the heads in use have seen.

    Args:
        model: The model, with the limits of its heads.
        graph: The structure with its neighbours.
        weights: What each head counts, [heads].
    """
    limit = float(weights @ model.closest.to(weights)) * (1.0 - ROUNDING)
    ratios = contacts(graph)
    if not ratios.size or ratios.min() >= limit:
        return
    edge = int(ratios.argmin())
    pair = sorted((int(graph.receiver[edge]), int(graph.sender[edge])))
    names = "-".join(f"{chemical_symbols[graph.structure.numbers[k]]}{k}" for k in pair)
    radii = float(RADII[graph.structure.numbers[pair]].sum())
    raise OutsideTraining(
        f"structure {graph.structure.name!r}: {names} are {ratios[edge] * radii:.3f} angstrom apart, closer than any"
        f" atoms that the model was trained on (for this pair {limit * radii:.3f} angstrom, {limit:.2f} times the sum"
        " of covalent radii); its energies mean nothing there"
    )


class Coverage:
    """What a model was trained on, at hand on the CPU, to sort out candidates while the device works."""

    def __init__(self, model: FoundationModel) -> None:
        self.gate = copy.deepcopy(model.gate).to("cpu", torch.float64).requires_grad_(False)
        self.unknown = (~model.known_elements).T.to("cpu", torch.float64)
        self.closest = model.closest.to("cpu", torch.float64) * (1.0 - ROUNDING)
        self.is_total = not (self.unknown[1:].any() or self.closest.any())

    def outside(self, batch: Batch) -> dict[str, NDArray[np.bool_]]:
        """Return which structures of a batch in double precision are outside, [g], by reason; each has one reason."""
        if self.is_total:
            return {}
        known = batch.composition @ self.unknown == 0
        alien = ~known.any(1)
        limit = torch.nan_to_num(self.gate.among(batch.composition, known) @ self.closest)
        radii = torch.from_numpy(RADII)[batch.numbers]
        vector = batch.positions[batch.sender] + batch.shift - batch.positions[batch.receiver]
        ratio = torch.linalg.vector_norm(vector, dim=1) / (radii[batch.sender] + radii[batch.receiver])
        least = torch.full_like(limit, torch.inf).scatter_reduce(0, batch.edge_graph, ratio, "amin")
        return {OTHER_ELEMENTS: alien.numpy(), TOO_CLOSE: ((least < limit) & ~alien).numpy()}
