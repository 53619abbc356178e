"""The workload of crystals: elements on the sites of prototypes, in batches of one prototype each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from harness.reference.data.structure import Structure
from harness.reference.programs.screening.candidates.filters import charge_balanced, duplicate
from harness.reference.programs.screening.candidates.prototype_neighbours import Topologies
from harness.reference.programs.screening.candidates.prototype_space import CandidateSpace, Run
from harness.reference.programs.screening.candidates.prototypes import Prototype
from harness.reference.programs.screening.candidates.workload import Made, batch_of, cut

AT_ONCE = 2048  # candidates whose edges are counted together


def _first_of_equals(prototype: Prototype, run: Run) -> NDArray[np.bool_]:
    return ~duplicate(prototype, run)


# What a candidate may be asked to be, [m] of a run.
FILTERS: Mapping[str, Callable[[Prototype, Run], NDArray[np.bool_]]] = {
    "charge_balance": charge_balanced,
    "no_duplicates": _first_of_equals,
}


class Crystals:
    """The workload "prototypes". filters: names of FILTERS, asked in their order."""

    name = "prototypes"

    def __init__(
        self, space: CandidateSpace, filters: tuple[str, ...], *, cutoff: float, max_neighbours: int | None
    ) -> None:
        self.space, self.filters = space, filters
        self.topologies = Topologies(space, cutoff, max_neighbours)
        self.total = len(space)
        self.facts: dict[str, object] = {
            "prototypes": len(space.prototypes), "elements": list(space.elements), "volumes": list(space.scales),
            "filters": list(filters), "cutoff_angstrom": cutoff, "max_neighbours": max_neighbours,
        }  # fmt: skip

    def batches(self, first: int, stop: int, edges: int) -> Iterator[Made]:
        """As Workload asks."""
        for run in self.space.block(first, stop):
            for k in range(0, len(run), AT_ONCE):
                kept, left_out = self._passed(run[k : k + AT_ONCE])
                for places in cut(self.topologies.edge_counts(kept), edges):
                    part = kept[places]
                    yield Made(part.index, batch_of(self.topologies.arrays(part)), left_out)
                    left_out = {}
                if left_out:
                    yield Made(kept.index, None, left_out)

    def _passed(self, run: Run) -> tuple[Run, dict[str, int]]:
        """The candidates that pass all filters, and how many each took out."""
        left_out = {}
        for name in self.filters:
            passes = FILTERS[name](self.space.prototypes[run.prototype], run)
            left_out[name] = int((~passes).sum())
            run = run[passes]
        return run, left_out

    def structure(self, index: int) -> Structure:
        """One candidate."""
        return self.space.structure(index)

    def described(self, index: int) -> dict[str, str]:
        """Formula, prototype and volume."""
        (run,) = self.space.block(index, index + 1)
        prototype = self.space.prototypes[run.prototype]
        return {
            "formula": self.space.formula(run)[0],
            "prototype": prototype.tag,
            "volume": f"{run.scale[0]:g}",
        }
