"""The paper's workload: random structures, a stream for each of its ranks."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from harness.reference.data.structure import Structure
from harness.reference.errors import InputError
from harness.reference.programs.screening.candidates.dense_neighbours import isolated_arrays
from harness.reference.programs.screening.candidates.graph_arrays import GraphArrays
from harness.reference.programs.screening.candidates.random_space import RandomSpace
from harness.reference.programs.screening.candidates.workload import Made, batch_of


class RandomBoxes:
    """The workload "random". A stream can only be followed from its start, so that a part is best a stream."""

    name = "random"

    def __init__(self, space: RandomSpace, *, cutoff: float, max_neighbours: int | None) -> None:
        self.space, self.cutoff, self.max_neighbours = space, cutoff, max_neighbours
        self.total = len(space)
        self.facts: dict[str, object] = {
            "streams": space.ranks, "per_stream": space.per_rank, "atoms": list(space.atoms),
            "cutoff_angstrom": cutoff, "max_neighbours": max_neighbours,
        }  # fmt: skip

    def batches(self, first: int, stop: int, edges: int) -> Iterator[Made]:
        """As Workload asks; atoms are bounded so that edges are, every atom having at most max_neighbours."""
        most = max(1, edges // (self.max_neighbours or 50))
        source = self.space.block(first, stop)
        index = first
        held: list[Structure] = []
        while structures := _upto(source, held, most):
            arrays, kept = self._made(structures)
            numbers = index + np.flatnonzero(kept)
            left_out = {"coincident atoms": int((~kept).sum())} if not kept.all() else {}
            yield Made(numbers, None if arrays is None else batch_of(arrays), left_out)
            index += len(structures)

    def _made(
        self, structures: list[Structure]
    ) -> tuple[GraphArrays | None, np.ndarray[tuple[int], np.dtype[np.bool_]]]:
        """Neighbours of all structures, or of those whose atoms are apart, and which these are."""
        kept = np.ones(len(structures), dtype=bool)
        try:
            return self._arrays(structures), kept
        except InputError:
            for k, structure in enumerate(structures):
                try:
                    self._arrays([structure])
                except InputError:
                    kept[k] = False
        apart = [s for s, good in zip(structures, kept, strict=True) if good]
        return (self._arrays(apart) if apart else None), kept

    def _arrays(self, structures: list[Structure]) -> GraphArrays:
        return isolated_arrays(structures, cutoff=self.cutoff, max_neighbours=self.max_neighbours)

    def structure(self, index: int) -> Structure:
        """One candidate."""
        return self.space.structure(index)

    def described(self, index: int) -> dict[str, str]:
        """Its stream and size."""
        return {"stream": str(index // self.space.per_rank), "atoms": str(len(self.structure(index)))}


def _upto(source: Iterator[Structure], held: list[Structure], atoms: int) -> list[Structure]:
    """The next structures with at most so many atoms together, or a single larger one; `held` carries one over."""
    taken, count = list(held), sum(map(len, held))
    held.clear()
    for structure in source:
        if taken and count + len(structure) > atoms:
            held.append(structure)
            break
        taken.append(structure)
        count += len(structure)
    return taken
