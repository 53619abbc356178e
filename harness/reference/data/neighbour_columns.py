"""Neighbour lists of many structures as columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import vesin
from numpy.typing import NDArray

from harness.reference.data.neighbours import COINCIDENT_ANGSTROM, nearest
from harness.reference.data.structure import Array
from harness.reference.data.structure_table import Fault, Frames


@dataclass(frozen=True)
class Edges:
    """Who is near whom in g structures, e pairs in all: by structure, then receiver, then distance.

    counts: [g] pairs of each. receiver, sender: [e] atoms, counted within their structure. shift: [e, 3] angstrom, the
    periodic image of the sender. distance: [e] angstrom.
    """

    counts: NDArray[np.int64]
    receiver: NDArray[np.int64]
    sender: NDArray[np.int64]
    shift: Array
    distance: Array

    def without(self, left_out: NDArray[np.bool_]) -> Edges:
        """Those of the other structures; left_out: [g]."""
        kept = np.repeat(~left_out, self.counts)
        return Edges(
            self.counts[~left_out], self.receiver[kept], self.sender[kept], self.shift[kept], self.distance[kept]
        )


def neighbours(frames: Frames, *, cutoff: float, max_neighbours: int | None) -> tuple[Frames, Edges, list[Fault]]:
    """Edges as of neighbour_graph for all structures at once; those with coincident atoms are left out as faults."""
    search = vesin.NeighborList(cutoff=cutoff, full_list=True, n_threads=1)
    found: list[tuple[Any, ...]] = []
    counts = []
    stop = 0
    for k, size in enumerate(frames.sizes.tolist()):
        first, stop = stop, stop + size
        found.append(
            search.compute(
                points=frames.positions[first:stop],
                box=frames.cell[k],
                periodic=frames.periodic[k],
                quantities="ijSd",
            )
        )
        counts.append(len(found[-1][3]))
    parts = zip(*found, strict=True) if found else (np.zeros((0, 3)),) * 4
    # An empty list comes back as floating point.
    ends, starts, images, distance = map(np.concatenate, parts)
    receiver, sender = ends.astype(np.int64), starts.astype(np.int64)
    owner = np.repeat(np.arange(len(frames)), counts)
    first_atom = (frames.ends - frames.sizes)[owner]
    order = np.lexsort((distance, receiver + first_atom))
    if max_neighbours is not None:
        atoms = int(frames.sizes.sum())
        order = order[nearest((receiver + first_atom)[order], distance[order], max_neighbours, atoms)]
    owner = owner[order]
    shift = np.einsum("ek,ekj->ej", images.reshape(-1, 3)[order].astype(np.float64), frames.cell[owner])
    edges = Edges(np.bincount(owner, minlength=len(frames)), receiver[order], sender[order], shift, distance[order])
    close = np.bincount(owner[edges.distance < COINCIDENT_ANGSTROM], minlength=len(frames)) > 0
    if not close.any():
        return frames, edges, []
    faults = [Fault(str(i), "coincident atoms", "two atoms at one place") for i in frames.ids[close]]
    return frames[~close], edges.without(close), faults
