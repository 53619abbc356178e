"""Candidates that chemistry might know: elements on the sites of prototypes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np
from ase.data import covalent_radii
from numpy.typing import NDArray

from harness.reference.screening.filters import Filter
from harness.reference.screening.space import CandidateSpace, Run
from harness.reference.screening.topology import Topology
from harness.reference.screening.workload import Made
from harness.reference.structures import Structure

AT_ONCE = 1024  # candidates whose edges are counted together


class Crystals:
    """The workload "prototypes". filters: those that a candidate must pass, asked in their order."""

    name = "prototypes"

    def __init__(self, space: CandidateSpace, filters: Sequence[Filter], *, cutoff: float, limit: int | None) -> None:
        self.space, self.filters = space, tuple(filters)
        self.cutoff, self.limit = cutoff, limit
        self.total = len(space)
        self.facts: dict[str, object] = {
            "prototypes": len(space.prototypes), "elements": list(space.elements), "volumes": list(space.scales),
            "filters": [f.name for f in self.filters], "cutoff_angstrom": cutoff, "max_neighbours": limit,
        }  # fmt: skip

    @cached_property
    def _topologies(self) -> dict[int, Topology]:
        return {}

    def topology(self, number: int) -> Topology:
        """The neighbours of a prototype, made when first asked for."""
        if number not in self._topologies:
            smallest = 2.0 * min(covalent_radii[z] for z in self.space.elements)
            least = smallest / float(np.nanmin(self.space.closest(number))) * min(self.space.scales) ** (1 / 3)
            self._topologies[number] = Topology(self.space.prototypes[number], self.cutoff, self.limit, least)
        return self._topologies[number]

    def batches(self, first: int, stop: int, edges: int) -> Iterator[Made]:
        """As Workload asks: each batch of one prototype."""
        for run in self.space.blocks(first, stop):
            for k in range(0, len(run), AT_ONCE):
                kept, left_out = self._passed(run[k : k + AT_ONCE])
                yield from self._made(kept, left_out, edges)

    def _passed(self, run: Run) -> tuple[Run, dict[str, int]]:
        """The candidates that pass all filters, and how many each took out."""
        left_out = {}
        for each in self.filters:
            passes = each.passes(self.space.prototypes[run.prototype], run)
            left_out[each.name] = int((~passes).sum())
            run = run[passes]
        return run, left_out

    def _made(self, run: Run, left_out: dict[str, int], edges: int) -> Iterator[Made]:
        topology = self.topology(run.prototype)
        mask = topology.mask(run.stretch)
        for places in cut(mask.sum(axis=(1, 2)), edges):
            batch = topology.batch(run.species[places], run.stretch[places], mask[places])
            yield Made(run.index[places], batch, left_out)
            left_out = {}
        if left_out and not len(run):
            yield Made(run.index, topology.batch(run.species, run.stretch, mask), left_out)

    def structure(self, index: int) -> Structure:
        """One candidate."""
        return self.space.structure(index)

    def described(self, index: int) -> dict[str, str]:
        """Formula, prototype and volume."""
        return self.space.described(index)


def cut(counts: NDArray[np.int64], most: int) -> Iterator[slice]:
    """Consecutive stretches whose counts sum to at most `most` each, or hold one alone."""
    ends = np.cumsum(counts)
    first = 0
    while first < len(counts):
        before = ends[first - 1] if first else 0
        stop = max(first + 1, int(np.searchsorted(ends, before + most, side="right")))
        yield slice(first, stop)
        first = stop
