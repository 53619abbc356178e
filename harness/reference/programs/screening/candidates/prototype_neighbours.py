"""Neighbour lists of candidates from one list for each prototype.

Candidates of a prototype differ in their elements and in one length. The neighbours of each atom and their order are
therefore those of the prototype; how many of them are edges depends on the length alone and is looked up.
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
from harness.reference.programs.screening.candidates.prototype_space import CandidateSpace, PrototypeBlock
from harness.reference.programs.screening.candidates.prototypes import AtomPairs, Prototype
from harness.reference.programs.screening.candidates.workload import GraphArrays

GROWTH = 1.25
CACHE_SIZE = 16  # prototypes with all their pairs, up to 66,000 of one; with a neighbour limit, all are cached


@dataclass(frozen=True)
class StepFunction:
    """Counts that are constant between the values at which they change.

    Attributes:
        at: [s] ascending values.
        counts: [s + 1, n]; row k holds for values above at[k - 1] and up to at[k].
    """

    at: Array
    counts: NDArray[np.int64]

    def __call__(self, value: Array) -> NDArray[np.int64]:
        """Return the counts at values [m], [m, n]."""
        return self.counts[np.searchsorted(self.at, value, side="left")]


def count_below(rows: NDArray[np.int64], values: Array, n: int) -> StepFunction:
    """Count the values below a given one in each of n rows.

    Args:
        rows: [p] row of each value, 0 .. n - 1.
        values: [p].
        n: Number of rows.
    """
    at, where = np.unique(values, return_inverse=True)
    counts = np.zeros((len(at) + 1, n), dtype=np.int64)
    np.add.at(counts, (where + 1, rows), 1)
    return StepFunction(at, np.cumsum(counts, axis=0))


@dataclass(frozen=True, eq=False)
class Topology:
    """The neighbours of the atoms of one prototype, up to the largest radius of any candidate.

    Attributes:
        prototype: The structure type.
        cutoff: Angstrom.
        max_neighbours: Maximum number of neighbours of an atom by the rule of `neighbour_graph`, or None.
        smallest_stretch: Lower bound of the stretch of candidates, angstrom per unit of length of the prototype.
    """

    prototype: Prototype
    cutoff: float
    max_neighbours: int | None
    smallest_stretch: float

    @cached_property
    def pairs(self) -> AtomPairs:
        """Return the pairs in the prototype's geometry, no more per atom than determine the max_neighbours nearest."""
        furthest = self.cutoff / self.smallest_stretch
        if self.max_neighbours is None:
            return self.prototype.pairs(furthest)
        n_pairs = self.max_neighbours + 1
        volume = abs(np.linalg.det(self.prototype.cell)) * n_pairs / len(self.prototype)
        radius = min(furthest, (3 * volume / (4 * math.pi)) ** (1 / 3))
        pairs = self.prototype.pairs(radius)
        while radius < furthest and np.bincount(pairs.receiver, minlength=len(self.prototype)).min() < n_pairs:
            radius = min(furthest, GROWTH * radius)
            pairs = self.prototype.pairs(radius)
        keep = _rank_in_receiver(pairs.receiver, len(self.prototype)) < n_pairs
        return AtomPairs(pairs.receiver[keep], pairs.sender[keep], pairs.image[keep], pairs.distance[keep])

    @cached_property
    def _first(self) -> NDArray[np.int64]:
        """Return the first pair of each atom, [n]."""
        degree = np.bincount(self.pairs.receiver, minlength=len(self.prototype))
        return np.cumsum(degree) - degree

    @cached_property
    def _shift(self) -> Array:
        """Return the periodic image of each pair's sender in the prototype's geometry, [p, 3]."""
        return self.pairs.image @ self.prototype.cell

    @cached_property
    def _within(self) -> StepFunction:
        """Return the number of pairs of each atom shorter than a distance."""
        return count_below(self.pairs.receiver, self.pairs.distance, len(self.prototype))

    @cached_property
    def _before(self) -> StepFunction:
        """Return the number of pairs of each atom that precede its first surplus pair by more than a distance."""
        assert self.max_neighbours is not None
        receiver, distance, n = self.pairs.receiver, self.pairs.distance, len(self.prototype)
        excess = np.full(n, np.inf)
        last = _rank_in_receiver(receiver, n) == self.max_neighbours
        excess[receiver[last]] = distance[last]
        return count_below(receiver, distance - excess[receiver], n)

    def degrees(self, stretch: Array) -> NDArray[np.int64]:
        """Return the number of edges of each atom, [m, n], for candidates with stretches [m].

        Raises:
            InputError: A stretch is below the lower bound.
        """
        if len(stretch) and stretch.min() < self.smallest_stretch * (1 - 1e-12):
            raise InputError(
                f"prototype {self.prototype.tag}: stretch {stretch.min():g}, expected {self.smallest_stretch:g} or more"
            )
        within = self._within(self.cutoff / stretch)
        if self.max_neighbours is None:
            return within
        # A shell of equal distances that does not fit is omitted as a whole, unless it is the first one.
        whole = self._before(-SAME_SHELL_ANGSTROM / stretch)
        whole = np.where(whole > 0, whole, self.max_neighbours)
        return np.where(within > self.max_neighbours, whole, within)

    def edge_counts(self, run: PrototypeBlock) -> NDArray[np.int64]:
        """Return the number of edges of each candidate, [m]."""
        return self.degrees(run.stretch).sum(axis=1)

    def arrays(self, run: PrototypeBlock) -> GraphArrays:
        """Return the candidates with their edges in the order of `neighbour_graph`, up to equal distances."""
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
    """The neighbours of all candidates of a space, computed for each prototype when it is first needed."""

    space: CandidateSpace
    cutoff: float
    max_neighbours: int | None = None

    @cached_property
    def get(self) -> Callable[[int], Topology]:
        """Return the function that returns the topology of a prototype, from a cache."""
        return lru_cache(maxsize=CACHE_SIZE if self.max_neighbours is None else None)(self._build_topology)

    def _build_topology(self, number: int) -> Topology:
        smallest = self.space.smallest_stretch(number)
        return Topology(self.space.prototypes[number], self.cutoff, self.max_neighbours, smallest)

    def edge_counts(self, run: PrototypeBlock) -> NDArray[np.int64]:
        """Return the number of edges of each candidate, [m]."""
        return self.get(run.prototype).edge_counts(run)

    def arrays(self, run: PrototypeBlock) -> GraphArrays:
        """Return the candidates with their edges."""
        return self.get(run.prototype).arrays(run)


def _rank_in_receiver(receiver: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    """Return [p] the position of each pair among those of its receiver; receivers ascend."""
    degree = np.bincount(receiver, minlength=n)
    return np.arange(len(receiver)) - (np.cumsum(degree) - degree)[receiver]
