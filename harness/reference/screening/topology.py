"""Neighbour lists of candidates from one list a prototype: a prototype's candidates differ in size alone.

Who is nearest to whom, and in what order, is the prototype's; how far the cutoff reaches depends on the candidate.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import vesin
from numpy.typing import NDArray

from harness.reference.batches import Batch
from harness.reference.graphs import SAME_SHELL_ANGSTROM
from harness.reference.screening.prototypes import Prototype
from harness.reference.structures import MAX_ATOMIC_NUMBER, Array

FIRST_REACH = 6.0  # angstrom in the named compound
GROWTH = 1.4


def closest(prototype: Prototype) -> Array:
    """The smallest distance between sites of two species, periodic images included, [k, k], angstrom."""
    receiver, sender, _, distance = _pairs(prototype, _reach(prototype, 1))
    least = np.full((prototype.species, prototype.species), np.inf)
    np.minimum.at(least, (prototype.slots[receiver], prototype.slots[sender]), distance)
    return np.minimum(least, least.T)


def _pairs(prototype: Prototype, reach: float) -> tuple[NDArray[np.int64], NDArray[np.int64], Array, Array]:
    """All directed pairs within reach: receiver, sender, image of the sender [p, 3], distance."""
    receiver, sender, images, distance = vesin.NeighborList(cutoff=reach, full_list=True, n_threads=1).compute(
        points=prototype.positions, box=prototype.cell, periodic=True, quantities="ijSd"
    )
    return receiver.astype(np.int64), sender.astype(np.int64), images.reshape(-1, 3).astype(float), distance


def _reach(prototype: Prototype, neighbours: int) -> float:
    """A distance within which every site has so many neighbours."""
    reach = FIRST_REACH
    while np.bincount(_pairs(prototype, reach)[0], minlength=len(prototype.slots)).min() < neighbours:
        reach *= GROWTH
    return reach


@dataclass(frozen=True, eq=False)
class Topology:
    """A prototype's sites with their neighbours, nearest first, so many of each that no candidate needs more.

    cutoff: angstrom. limit: neighbours of an atom at most, or None. least_stretch: of any candidate; needed only where
    there is no limit.
    """

    prototype: Prototype
    cutoff: float
    limit: int | None
    least_stretch: float

    @cached_property
    def _table(self) -> tuple[NDArray[np.int64], Array, Array]:
        """sender [n, w], image [n, w, 3] of it in angstrom of the named compound, distance [n, w], inf where none."""
        n = len(self.prototype.slots)
        enough = self.cutoff / self.least_stretch
        if self.limit is not None:
            enough = min(enough, _reach(self.prototype, self.limit + 1))
        receiver, sender, images, distance = _pairs(self.prototype, enough)
        order = np.lexsort((distance, receiver))
        degree = np.bincount(receiver, minlength=n)
        width = int(degree.max()) if self.limit is None else self.limit + 1
        rank = np.arange(len(order)) - np.repeat(np.cumsum(degree) - degree, degree)
        order, rank = order[rank < width], rank[rank < width]
        place = (receiver[order], rank)
        senders, shifts = np.zeros((n, width), dtype=np.int64), np.zeros((n, width, 3))
        distances = np.full((n, width), np.inf)
        senders[place], distances[place] = sender[order], distance[order]
        shifts[place] = images[order] @ self.prototype.cell
        return senders, shifts, distances

    def mask(self, stretch: Array) -> NDArray[np.bool_]:
        """stretch [m] -> [m, n, w]: which of the table's pairs are edges, by the rules of neighbour_graph."""
        _, _, distance = self._table
        there = stretch[:, None, None] * distance
        within = there < self.cutoff
        if self.limit is None:
            return within
        if distance.shape[1] <= self.limit:
            return within
        full = within[:, :, self.limit]
        bound = np.where(full, there[:, :, self.limit] - SAME_SHELL_ANGSTROM, np.inf)
        keep = within & (there < bound[:, :, None])
        keep |= within & ~keep.any(axis=2, keepdims=True)
        return keep[:, :, : self.limit]

    def batch(self, species: NDArray[np.int64], stretch: Array, mask: NDArray[np.bool_]) -> Batch:
        """Candidates [m, k], [m] with their edges, as `collate` would give them, in double precision on the CPU."""
        sender, shift, _ = self._table
        slots, (m, n) = self.prototype.slots, (len(stretch), len(self.prototype.slots))
        which, receiver, column = np.nonzero(mask)
        offset = which * n
        composition = np.zeros((m, MAX_ATOMIC_NUMBER + 1))
        for slot, count in enumerate(self.prototype.counts):
            composition[np.arange(m), species[:, slot]] += count
        nothing = np.zeros(0, dtype=np.int64)
        arrays = (
            species[:, slots].reshape(-1),
            (stretch[:, None, None] * self.prototype.positions).reshape(-1, 3),
            receiver + offset,
            sender[receiver, column] + offset,
            shift[receiver, column] * stretch[which, None],
            np.repeat(np.arange(m), n),
            which,
            stretch[:, None, None] * self.prototype.cell,
            composition,
            np.zeros(m),
            np.zeros(m),
            np.full(m, -1),
            nothing,
            nothing,
        )
        return Batch(*(torch.from_numpy(np.ascontiguousarray(a)) for a in arrays))
