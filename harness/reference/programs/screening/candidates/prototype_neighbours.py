"""Neighbour lists of candidates from one list for each prototype.

Candidates of a prototype differ in their elements and in one length, the stretch, by which the prototype's geometry is
multiplied. The neighbours of each atom and
their order are therefore those of the prototype; the number of edges depends on the stretch alone and is looked up.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from harness.reference.data.neighbours import ADAPTIVE_TOLERANCE, SAME_SHELL_ANGSTROM, solve_adaptive_cutoffs
from harness.reference.data.structure import Array
from harness.reference.errors import InputError
from harness.reference.programs.screening.candidates.prototype_space import CandidateSpace, PrototypeBlock
from harness.reference.programs.screening.candidates.prototypes import AtomPairs, Prototype
from harness.reference.programs.screening.candidates.workload import GraphArrays

GROWTH = 1.25
CACHE_SIZE = 16  # number of cached prototypes, with up to 66,000 pairs each; with a neighbour limit, all are cached


@dataclass(frozen=True)
class StepFunction:
    """Counts as functions of a value, which change at some values and are constant between them.

    Attributes:
        edges: [s] the values at which counts change, ascending.
        counts: [s + 1, n]; row k is valid for values above edges[k - 1] and up to edges[k].
    """

    edges: Array
    counts: NDArray[np.int64]

    def __call__(self, value: Array) -> NDArray[np.int64]:
        """Return the counts at values [m], [m, n]."""
        return self.counts[np.searchsorted(self.edges, value, side="left")]


def count_below(rows: NDArray[np.int64], values: Array, n: int) -> StepFunction:
    """Return the function that counts, in each of n rows, the values below its argument.

    Args:
        rows: [p] row of each value, 0 .. n - 1.
        values: [p] the values.
        n: Number of rows.
    """
    edges, position = np.unique(values, return_inverse=True)
    counts = np.zeros((len(edges) + 1, n), dtype=np.int64)
    np.add.at(counts, (position + 1, rows), 1)
    return StepFunction(edges, np.cumsum(counts, axis=0))


@dataclass(frozen=True, eq=False)
class Topology:
    """The neighbours of the atoms of one prototype, up to the largest radius of any candidate.

    Attributes:
        prototype: The structure type.
        cutoff: Angstrom.
        max_neighbours: Maximum number of neighbours of an atom, as in `build_neighbour_list`, or None.
        smallest_stretch: Lower bound of the stretch of candidates, angstrom per unit of length of the prototype.
        adaptive: As in `NeighbourSpec`.
    """

    prototype: Prototype
    cutoff: float
    max_neighbours: int | None
    smallest_stretch: float
    adaptive: float | None = None

    @cached_property
    def pairs(self) -> AtomPairs:
        """The pairs in the prototype's geometry.

        With a neighbour limit, they are the limit + 1 nearest of each atom; with adaptive cutoffs, those within the
        largest adaptive cutoff of any candidate.
        """
        furthest = self.cutoff / self.smallest_stretch
        if self.adaptive is not None:
            return self._find_adaptive_pairs(furthest, self.adaptive)
        if self.max_neighbours is None:
            return self.prototype.pairs(furthest)
        n_pairs = self.max_neighbours + 1
        radius = min(furthest, self._estimate_radius(n_pairs))
        pairs = self.prototype.pairs(radius)
        while radius < furthest and np.bincount(pairs.receiver, minlength=len(self.prototype)).min() < n_pairs:
            radius = min(furthest, GROWTH * radius)
            pairs = self.prototype.pairs(radius)
        keep = _rank_within_receiver(pairs.receiver, len(self.prototype)) < n_pairs
        return AtomPairs(pairs.receiver[keep], pairs.sender[keep], pairs.image[keep], pairs.distance[keep])

    def _estimate_radius(self, n_pairs: float) -> float:
        """Return the radius of a sphere with n_pairs atoms at the mean density of the prototype."""
        volume = abs(np.linalg.det(self.prototype.cell)) * n_pairs / len(self.prototype)
        return float((3 * volume / (4 * math.pi)) ** (1 / 3))

    def _find_adaptive_pairs(self, furthest: float, adaptive: float) -> AtomPairs:
        # an adaptive cutoff rises with the cutoff of the model, here with the largest one in units of the prototype
        radius, n = min(furthest, self._estimate_radius(2 * adaptive)), len(self.prototype)
        while True:
            pairs = self.prototype.pairs(radius)
            ratio = pairs.distance / furthest
            scale = solve_adaptive_cutoffs(pairs.receiver, ratio, adaptive, n, tolerance=ADAPTIVE_TOLERANCE)
            if radius >= furthest or (radius / furthest) ** 3 * scale.min() >= 1.0:
                break
            radius = min(furthest, GROWTH * radius)
        keep = ratio**3 * scale[pairs.receiver] < 1.0
        return AtomPairs(pairs.receiver[keep], pairs.sender[keep], pairs.image[keep], pairs.distance[keep])

    @cached_property
    def _first(self) -> NDArray[np.int64]:
        """The index of the first pair of each atom, [n]."""
        degree = np.bincount(self.pairs.receiver, minlength=len(self.prototype))
        return np.cumsum(degree) - degree

    @cached_property
    def _shift(self) -> Array:
        """The translation from each pair's sender to its periodic image in the prototype's geometry, [p, 3]."""
        return self.pairs.image @ self.prototype.cell

    @cached_property
    def _within(self) -> StepFunction:
        """The number of pairs of each atom that are shorter than a distance, as a function of the distance."""
        return count_below(self.pairs.receiver, self.pairs.distance, len(self.prototype))

    @cached_property
    def _before(self) -> StepFunction:
        """The number of pairs of each atom whose distance is smaller than its bound plus the argument.

        The bound of an atom is the distance of its first pair beyond the limit; it is infinite if there is none.
        """
        assert self.max_neighbours is not None
        receiver, distance, n = self.pairs.receiver, self.pairs.distance, len(self.prototype)
        excess = np.full(n, np.inf)
        last = _rank_within_receiver(receiver, n) == self.max_neighbours
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

    def edge_counts(self, block: PrototypeBlock) -> NDArray[np.int64]:
        """Return the number of edges of each candidate, [m]."""
        return self.degrees(block.stretch).sum(axis=1)

    def arrays(self, block: PrototypeBlock) -> GraphArrays:
        """Return the candidates with their edges in the order of `build_neighbour_list`, up to equal distances."""
        slots, m, n = self.prototype.slots, len(block), len(self.prototype)
        degrees = self.degrees(block.stretch)
        edges = degrees.sum(axis=1)
        flat = degrees.reshape(-1)
        receiver = np.repeat(np.arange(m * n), flat)
        offset = np.broadcast_to(self._first, (m, n)).reshape(-1) - (np.cumsum(flat) - flat)
        pair = np.repeat(offset, flat) + np.arange(len(receiver))
        edge_graph = np.repeat(np.arange(m), edges)
        stretch = block.stretch[:, None, None]
        return GraphArrays(
            numbers=block.species[:, slots].reshape(-1),
            positions=(stretch * self.prototype.positions).reshape(-1, 3),
            receiver=receiver,
            sender=self.pairs.sender[pair] + edge_graph * n,
            shift=self._shift[pair] * block.stretch[edge_graph, None],
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
    adaptive: float | None = None

    @cached_property
    def get(self) -> Callable[[int], Topology]:
        """The function that returns the topology of a prototype by its number, with a cache."""
        return lru_cache(maxsize=None if self.max_neighbours or self.adaptive else CACHE_SIZE)(self._build_topology)

    def _build_topology(self, number: int) -> Topology:
        smallest = self.space.smallest_stretch(number)
        return Topology(self.space.prototypes[number], self.cutoff, self.max_neighbours, smallest, self.adaptive)

    def edge_counts(self, block: PrototypeBlock) -> NDArray[np.int64]:
        """Return the number of edges of each candidate, [m]."""
        return self.get(block.prototype).edge_counts(block)

    def arrays(self, block: PrototypeBlock) -> GraphArrays:
        """Return the candidates with their edges."""
        return self.get(block.prototype).arrays(block)


def _rank_within_receiver(receiver: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    """Return the position of each pair among the pairs of its receiver, [p]; receivers must ascend."""
    degree = np.bincount(receiver, minlength=n)
    return np.arange(len(receiver)) - (np.cumsum(degree) - degree)[receiver]
