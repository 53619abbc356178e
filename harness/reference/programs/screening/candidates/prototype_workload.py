"""The workload of crystals: prototypes with elements on their sites; each batch has one prototype."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
from ase.data import chemical_symbols
from numpy.typing import NDArray

from harness.reference.data.neighbours import NeighbourSpec
from harness.reference.data.structure import Structure
from harness.reference.programs.screening.candidates.filters import (
    describe_chemistry,
    has_noble_gas,
    is_charge_implausible,
    is_duplicate,
    is_elemental,
    is_intermetallic,
)
from harness.reference.programs.screening.candidates.oxidation_states import ELECTRONEGATIVITY
from harness.reference.programs.screening.candidates.prototype_neighbours import Topologies
from harness.reference.programs.screening.candidates.prototype_space import CandidateSpace, PrototypeBlock
from harness.reference.programs.screening.candidates.prototypes import Prototype
from harness.reference.programs.screening.candidates.workload import (
    CandidateBatch,
    build_batch_from_arrays,
    split_by_count,
)

CHUNK = 8192  # number of candidates that are filtered, and whose edges are counted, at a time


# For each filter, the function that returns which candidates of a block it removes, [m].
FILTERS: Mapping[str, Callable[[Prototype, PrototypeBlock], NDArray[np.bool_]]] = {
    "no_elements": is_elemental,
    "no_noble_gases": has_noble_gas,
    "charge_balance": is_charge_implausible,
    "no_intermetallics": is_intermetallic,
    "no_duplicates": is_duplicate,
}


class CrystalWorkload:
    """The workload "prototypes".

    Args:
        space: The candidates.
        filters: Names of FILTERS, applied in this order.
        spec: The definition of neighbours.
    """

    name = "prototypes"

    def __init__(self, space: CandidateSpace, filters: tuple[str, ...], spec: NeighbourSpec) -> None:
        self.space, self.filters = space, filters
        self.topologies = Topologies(space, spec.cutoff, spec.max_neighbours, spec.adaptive)
        self.total = len(space)
        self.facts: dict[str, object] = {
            "prototypes": len(space.prototypes), "elements": list(space.elements), "volumes": list(space.scales),
            "filters": list(filters), "cutoff_angstrom": spec.cutoff, "max_neighbours": spec.max_neighbours,
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
            is_removed = FILTERS[name](self.space.prototypes[block.prototype], block)
            left_out[name] = int(is_removed.sum())
            block = block[~is_removed]
        return block, left_out

    def structure(self, index: int) -> Structure:
        """Return the candidate with this index."""
        return self.space.structure(index)

    def describe(self, index: int) -> dict[str, str]:
        """Return the reduced formula, chemistry, prototype and volume of a candidate."""
        (block,) = self.space.block(index, index + 1)
        prototype = self.space.prototypes[block.prototype]
        return {
            "formula": format_formula(block.species[0], prototype.counts),
            "chemistry": describe_chemistry(prototype, block)[0],
            "prototype": prototype.tag,
            "volume": f"{block.scale[0]:g}",
        }


def format_formula(elements: NDArray[np.int64], counts: NDArray[np.int64]) -> str:
    """Return the reduced formula with the elements in the order of their electronegativity."""
    reduced = counts // np.gcd.reduce(counts)
    order = np.argsort(np.nan_to_num(ELECTRONEGATIVITY[elements]), kind="stable")
    return "".join(chemical_symbols[elements[k]] + (str(reduced[k]) if reduced[k] > 1 else "") for k in order)
