"""The paper's workload as a space of candidates: one stream of random structures for each of its ranks."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from harness.reference.batches import collate
from harness.reference.datasets.random_box import drawn
from harness.reference.errors import InputError
from harness.reference.graphs import Graph, neighbour_graph
from harness.reference.screening.workload import Made
from harness.reference.structures import Structure

PER_STREAM = 15_000


class RandomStreams:
    """The workload "random": candidate r * per_stream + k is the k-th structure of the stream with seed 42 + r.

    A stream can only be followed from its start, so a part of the index space is best one stream.
    """

    name = "random"

    def __init__(
        self, streams: int, per_stream: int, atoms: tuple[int, int], *, cutoff: float, limit: int | None
    ) -> None:
        if streams < 1 or per_stream < 1 or not 1 <= atoms[0] <= atoms[1]:
            raise InputError(f"{streams} streams of {per_stream}, atoms {atoms}: expected 1 or more, fewest to most")
        self.streams, self.per_stream, self.atoms = streams, per_stream, atoms
        self.cutoff, self.limit = cutoff, limit
        self.total = streams * per_stream
        self.facts: dict[str, object] = {
            "streams": streams, "per_stream": per_stream, "atoms": list(atoms), "cutoff_angstrom": cutoff,
            "max_neighbours": limit,
        }  # fmt: skip

    def batches(self, first: int, stop: int, edges: int) -> Iterator[Made]:
        """As Workload asks."""
        pending: list[Graph] = []
        index: list[int] = []
        count = 0
        for number, structure in self._from(first, stop):
            graph = neighbour_graph(structure, cutoff=self.cutoff, max_neighbours=self.limit)
            if pending and count + len(graph.receiver) > edges:
                yield Made(np.array(index), collate(pending))
                pending, index, count = [], [], 0
            pending.append(graph)
            index.append(number)
            count += len(graph.receiver)
        if pending:
            yield Made(np.array(index), collate(pending))

    def _from(self, first: int, stop: int) -> Iterator[tuple[int, Structure]]:
        while first < stop:
            stream, begin = divmod(first, self.per_stream)
            end = min(self.per_stream, begin + stop - first)
            for k, structure in enumerate(drawn(self.atoms, rank=stream)):
                if k >= end:
                    break
                if k >= begin:
                    yield stream * self.per_stream + k, structure
            first += end - begin

    def structure(self, index: int) -> Structure:
        """One candidate."""
        return next(structure for _, structure in self._from(index, index + 1))

    def described(self, index: int) -> dict[str, str]:
        """Its stream and size."""
        return {"stream": str(index // self.per_stream), "atoms": str(len(self.structure(index)))}
