"""Neighbour lists of candidates from one list for each prototype.

Candidates of a prototype differ in their elements and in one length. So who is near whom, and in which order, is the
prototype's; how many of those are edges depends on the length alone and is looked up.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from harness.reference.data.neighbours import SAME_SHELL_ANGSTROM
from harness.reference.data.structure import Array
from harness.reference.errors import InputError
from harness.reference.programs.screening.candidates.graph_arrays import GraphArrays
from harness.reference.programs.screening.candidates.prototype_space import CandidateSpace, Run
from harness.reference.programs.screening.candidates.prototypes import Pairs, Prototype

GROWTH = 1.25
KEPT = 16  # prototypes with all their pairs, up to 66,000 of one; where neighbours are few, all are kept


@dataclass(frozen=True)
class Steps:
    """Counts that change at certain values and are the same between them.

    at: [s] ascending. counts: [s + 1, n], row k for values above at[k - 1] and up to at[k].
    """

    at: Array
    counts: NDArray[np.int64]

    def __call__(self, value: Array) -> NDArray[np.int64]:
        """[m] -> [m, n]."""
        return self.counts[np.searchsorted(self.at, value, side="left")]


def steps(rows: NDArray[np.int64], values: Array, n: int) -> Steps:
    """How many of each row's values are smaller than a given one; rows, values: [p], rows of 0 .. n - 1."""
    at, where = np.unique(values, return_inverse=True)
    counts = np.zeros((len(at) + 1, n), dtype=np.int64)
    np.add.at(counts, (where + 1, rows), 1)
    return Steps(at, np.cumsum(counts, axis=0))


@dataclass(frozen=True, eq=False)
class Topology:
    """The neighbours of one prototype's atoms, as far as a candidate can need them.

    cutoff: angstrom. max_neighbours: of an atom, or None, by the rule of `neighbour_graph`. smallest_stretch: of any
    candidate, angstrom to the prototype's unit of length.
    """

    prototype: Prototype
    cutoff: float
    max_neighbours: int | None
    smallest_stretch: float

    @cached_property
    def pairs(self) -> Pairs:
        """In the prototype's geometry; of each atom no more than decide which max_neighbours to keep."""
        furthest = self.cutoff / self.smallest_stretch
        if self.max_neighbours is None:
            return self.prototype.pairs(furthest)
        decisive = self.max_neighbours + 1
        volume = abs(np.linalg.det(self.prototype.cell)) * decisive / len(self.prototype)
        reach = min(furthest, (3 * volume / (4 * math.pi)) ** (1 / 3))
        found = self.prototype.pairs(reach)
        while reach < furthest and np.bincount(found.receiver, minlength=len(self.prototype)).min() < decisive:
            reach = min(furthest, GROWTH * reach)
            found = self.prototype.pairs(reach)
        kept = _rank(found.receiver, len(self.prototype)) < decisive
        return Pairs(found.receiver[kept], found.sender[kept], found.image[kept], found.distance[kept])

    @cached_property
    def _first(self) -> NDArray[np.int64]:
        """Where the pairs of each atom begin, [n]."""
        degree = np.bincount(self.pairs.receiver, minlength=len(self.prototype))
        return np.cumsum(degree) - degree

    @cached_property
    def _shift(self) -> Array:
        """Of the pairs, in the prototype's geometry, [p, 3]."""
        return self.pairs.image @ self.prototype.cell

    @cached_property
    def _within(self) -> Steps:
        """Pairs of each atom shorter than a distance."""
        return steps(self.pairs.receiver, self.pairs.distance, len(self.prototype))

    @cached_property
    def _before(self) -> Steps:
        """Pairs of each atom that come before its first one too many, by more than a distance."""
        assert self.max_neighbours is not None
        receiver, distance, n = self.pairs.receiver, self.pairs.distance, len(self.prototype)
        excess = np.full(n, np.inf)
        last = _rank(receiver, n) == self.max_neighbours
        excess[receiver[last]] = distance[last]
        return steps(receiver, distance - excess[receiver], n)

    def degrees(self, stretch: Array) -> NDArray[np.int64]:
        """Edges of each atom, its nearest ones, of candidates of these stretches, [m] -> [m, n]."""
        if len(stretch) and stretch.min() < self.smallest_stretch * (1 - 1e-12):
            raise InputError(
                f"prototype {self.prototype.tag}: stretch {stretch.min():g}, expected {self.smallest_stretch:g} or more"
            )
        within = self._within(self.cutoff / stretch)
        if self.max_neighbours is None:
            return within
        # A shell of equals that does not fit is left out whole, unless it is the first one.
        whole = self._before(-SAME_SHELL_ANGSTROM / stretch)
        whole = np.where(whole > 0, whole, self.max_neighbours)
        return np.where(within > self.max_neighbours, whole, within)

    def edge_counts(self, run: Run) -> NDArray[np.int64]:
        """Edges of each candidate, [m]."""
        return self.degrees(run.stretch).sum(axis=1)

    def arrays(self, run: Run) -> GraphArrays:
        """The candidates with their edges, in the order of `neighbour_graph`; of equal distances in any order."""
        slots, m, n = self.prototype.slots, len(run), len(self.prototype)
        degrees = self.degrees(run.stretch)
        edges = degrees.sum(axis=1)
        flat = degrees.reshape(-1)
        receiver = np.repeat(np.arange(m * n), flat)
        begin = np.broadcast_to(self._first, (m, n)).reshape(-1) - (np.cumsum(flat) - flat)
        pair = np.repeat(begin, flat) + np.arange(len(receiver))
        edge_graph = np.repeat(np.arange(m), edges)
        stretch = run.stretch[:, None, None]
        return GraphArrays(
            numbers=run.species[:, slots].reshape(-1),
            positions=(stretch * self.prototype.positions).reshape(-1, 3),
            receiver=receiver,
            sender=self.pairs.sender[pair] + edge_graph * n,
            shift=self._shift[pair] * run.stretch[edge_graph, None],
            graph=np.repeat(np.arange(m), n),
            edge_graph=edge_graph,
            cell=stretch * self.prototype.cell,
            atoms=np.full(m, n),
            edges=edges,
        )


@dataclass(frozen=True, eq=False)
class Topologies:
    """The neighbours in all candidates of a space, a prototype's made when it is first asked for."""

    space: CandidateSpace
    cutoff: float
    max_neighbours: int | None = None

    @cached_property
    def of(self) -> Callable[[int], Topology]:
        """That of one prototype, by number."""
        return lru_cache(maxsize=KEPT if self.max_neighbours is None else None)(self._topology)

    def _topology(self, number: int) -> Topology:
        smallest = self.space.smallest_stretch(number)
        return Topology(self.space.prototypes[number], self.cutoff, self.max_neighbours, smallest)

    def edge_counts(self, run: Run) -> NDArray[np.int64]:
        """Edges of each candidate, [m]."""
        return self.of(run.prototype).edge_counts(run)

    def arrays(self, run: Run) -> GraphArrays:
        """The candidates with their edges."""
        return self.of(run.prototype).arrays(run)


def _rank(receiver: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    """Of each pair among those of its receiver, [p]; receivers ascend."""
    degree = np.bincount(receiver, minlength=n)
    return np.arange(len(receiver)) - (np.cumsum(degree) - degree)[receiver]
