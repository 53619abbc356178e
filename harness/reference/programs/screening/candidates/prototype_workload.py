"""The workload of crystals: prototypes with elements on their sites; each batch has one prototype."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from harness.reference.data.structure import Structure
from harness.reference.programs.screening.candidates.filters import is_charge_balanced, is_duplicate
from harness.reference.programs.screening.candidates.prototype_neighbours import Topologies
from harness.reference.programs.screening.candidates.prototype_space import CandidateSpace, PrototypeBlock
from harness.reference.programs.screening.candidates.prototypes import Prototype
from harness.reference.programs.screening.candidates.workload import (
    CandidateBatch,
    build_batch_from_arrays,
    split_by_count,
)

CHUNK = 2048  # number of candidates whose edges are counted at a time


def _is_first_of_equals(prototype: Prototype, block: PrototypeBlock) -> NDArray[np.bool_]:
    return ~is_duplicate(prototype, block)


# For each filter, the function that returns which candidates of a block pass, [m].
FILTERS: Mapping[str, Callable[[Prototype, PrototypeBlock], NDArray[np.bool_]]] = {
    "charge_balance": is_charge_balanced,
    "no_duplicates": _is_first_of_equals,
}


class CrystalWorkload:
    """The workload "prototypes".

    Args:
        space: The candidates.
        filters: Names of FILTERS, applied in this order.
        cutoff: Cutoff of the model in angstrom.
        max_neighbours: Maximum number of neighbours of an atom, or None.
    """

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

    def batches(self, first: int, stop: int, edges: int) -> Iterator[CandidateBatch]:
        """Yield batches as in `Workload`."""
        for block in self.space.block(first, stop):
            for k in range(0, len(block), CHUNK):
                passed, left_out = self._filter(block[k : k + CHUNK])
                for selection in split_by_count(self.topologies.edge_counts(passed), edges):
                    chosen = passed[selection]
                    graphs = self.topologies.arrays(chosen)
                    yield CandidateBatch(chosen.index, build_batch_from_arrays(graphs), left_out)
                    left_out = {}
                if left_out:
                    yield CandidateBatch(passed.index, None, left_out)

    def _filter(self, block: PrototypeBlock) -> tuple[PrototypeBlock, dict[str, int]]:
        """Return the candidates that pass all filters, and the number that each filter removed."""
        left_out = {}
        for name in self.filters:
            passes = FILTERS[name](self.space.prototypes[block.prototype], block)
            left_out[name] = int((~passes).sum())
            block = block[passes]
        return block, left_out

    def structure(self, index: int) -> Structure:
        """Return one candidate."""
        return self.space.structure(index)

    def describe(self, index: int) -> dict[str, str]:
        """Return the formula, prototype and volume of a candidate."""
        (block,) = self.space.block(index, index + 1)
        prototype = self.space.prototypes[block.prototype]
        return {
            "formula": self.space.formula(block)[0],
            "prototype": prototype.tag,
            "volume": f"{block.scale[0]:g}",
        }
