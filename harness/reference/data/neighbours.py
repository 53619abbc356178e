"""Neighbour lists of one structure or of a table of them, without torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import vesin
from numpy.typing import NDArray

from harness.reference.data.structure import Array, Structure
from harness.reference.data.structure_table import RejectedStructure, StructureTable
from harness.reference.errors import InputError

COINCIDENT_ANGSTROM = 1e-3  # structures with atoms or periodic images closer than this are rejected
SAME_SHELL_ANGSTROM = 1e-6  # distances that differ by less belong to one shell
SAME_IMAGE_ANGSTROM = 1e-6  # translations that differ by less are equal
# An adaptive cutoff R solves sum_j (1 - (r_ij / R)^3)^3 + N0 (R / r_cut)^9 = N0 over the atoms closer than R. The sum
# is a quarter of their number if density is uniform. As (1 - x^3)^3 has two continuous derivatives (it is the weight of
# Cleveland, J. Am. Stat. Assoc. 74, 829 (1979)), so has R. In R^-3, the equation is convex.
WEIGHT_PER_NEIGHBOUR = 0.25
ADAPTIVE_POWER = 3  # of R^3 / r_cut^3
MAX_ITERATIONS = 100
# R may be too large by this fraction, since neighbours beyond R have no effect
ADAPTIVE_TOLERANCE = 1e-3


@dataclass(frozen=True)
class NeighbourList:
    """A structure with the neighbours of its atoms: edges sorted by receiver, then by distance.

    Attributes:
        structure: The structure.
        receiver: [e] index of the atom whose neighbour the edge lists.
        sender: [e] index of the neighbour.
        shift: [e, 3] angstrom, Cartesian translation from the sender to its periodic image (0 in its own cell).
        n_dropped: Number of edges shorter than the cutoff that the limit on neighbours excludes; 0 for a list that is
            read from a store.
    """

    structure: Structure
    receiver: NDArray[np.int64]
    sender: NDArray[np.int64]
    shift: Array
    n_dropped: int = 0


@dataclass(frozen=True)
class NeighbourSpec:
    """The definition of neighbours.

    Attributes:
        cutoff: Neighbours are closer than this distance in angstrom.
        max_neighbours: Only this number of nearest neighbours counts; None for no limit.
        adaptive: Number of neighbours at uniform density, to which each atom's cutoff adapts; None for the same cutoff
            for all atoms. Further edges do not change what a model with such cutoffs predicts.
    """

    cutoff: float
    max_neighbours: int | None
    adaptive: float | None = None

    def build_list(self, structure: Structure) -> NeighbourList:
        """Return the neighbours of a structure; see `build_neighbour_list`."""
        return build_neighbour_list(
            structure, cutoff=self.cutoff, max_neighbours=self.max_neighbours, adaptive=self.adaptive
        )

    def trim(self, neighbours: NeighbourList) -> NeighbourList:
        """Return a list of all neighbours within the cutoff without those beyond an atom's adaptive cutoff."""
        if self.adaptive is None:
            return neighbours
        structure, receiver, sender = neighbours.structure, neighbours.receiver, neighbours.sender
        vector = structure.positions[sender] + neighbours.shift - structure.positions[receiver]
        ratio = np.linalg.norm(vector, axis=1) / self.cutoff
        is_near = select_adaptive(receiver, ratio, self.adaptive, len(structure))
        return replace(neighbours, receiver=receiver[is_near], sender=sender[is_near], shift=neighbours.shift[is_near])


def build_neighbour_list(
    structure: Structure, *, cutoff: float, max_neighbours: int | None = None, adaptive: float | None = None
) -> NeighbourList:
    """List all pairs of atoms closer than the cutoff, or only the nearest neighbours of each atom.

    A shell of equal distances that does not fit under max_neighbours is excluded whole, so that the list does not
    depend on the order or orientation of the atoms; a shell is cut only if it is the nearest one and does not fit. A
    model's energy is discontinuous where the order of distances changes at the limit, however smooth its cutoff is.

    Args:
        structure: The structure.
        cutoff: Angstrom.
        max_neighbours: The largest number of neighbours of an atom; None for no limit.
        adaptive: As in `NeighbourSpec`.

    Raises:
        InputError: The structure is unusable, or two of its atoms coincide.
    """
    structure.check()
    try:
        receiver, sender, images, distance = vesin.NeighborList(cutoff=cutoff, full_list=True, n_threads=1).compute(
            points=structure.positions, box=structure.cell, periodic=structure.periodic, quantities="ijSd"
        )
    except RuntimeError as error:  # a cell that cannot be inverted, or too thin for its cutoff
        raise InputError(f"structure {structure.name!r}: no neighbour list can be built ({error})") from None
    # An empty list comes back as floating point.
    receiver, sender = receiver.astype(np.int64), sender.astype(np.int64)
    if distance.size and distance.min() < COINCIDENT_ANGSTROM:
        edge = int(distance.argmin())
        raise InputError(
            f"structure {structure.name!r}: atoms {receiver[edge]} and {sender[edge]} coincide"
            f" ({distance[edge]:.1e} angstrom apart)"
        )
    n_within = len(distance)
    if adaptive is not None:
        is_near = select_adaptive(receiver, distance / cutoff, adaptive, len(structure))
        receiver, sender, images, distance = receiver[is_near], sender[is_near], images[is_near], distance[is_near]
        n_within = len(distance)
    order = _sort_edges(receiver, distance, max_neighbours, len(structure))
    shift = images[order].reshape(-1, 3).astype(np.float64) @ structure.cell
    return NeighbourList(structure, receiver[order], sender[order], shift, n_dropped=n_within - len(order))


def add_neighbours(
    table: StructureTable, *, cutoff: float, max_neighbours: int | None
) -> tuple[StructureTable, list[RejectedStructure]]:
    """Add the edges of `build_neighbour_list` to a table, without the structures that have coincident atoms.

    Args:
        table: Structures that have been checked.
        cutoff: Angstrom.
        max_neighbours: As in `build_neighbour_list`.

    Returns:
        The table with edges, and a rejection for each structure with coincident atoms.
    """
    search = vesin.NeighborList(cutoff=cutoff, full_list=True, n_threads=1)
    parts: list[tuple[Any, ...]] = []
    stop = 0
    for k, size in enumerate(table.sizes.tolist()):
        first, stop = stop, stop + size
        parts.append(
            search.compute(
                points=table.positions[first:stop], box=table.cell[k], periodic=table.periodic[k], quantities="ijSd"
            )
        )
    columns = zip(*parts, strict=True) if parts else (np.zeros((0, 3)),) * 4
    # An empty list comes back as floating point.
    receivers, senders, images, distance = map(np.concatenate, columns)
    receiver, sender = receivers.astype(np.int64), senders.astype(np.int64)
    owner = np.repeat(np.arange(len(table)), [len(part[3]) for part in parts])
    atom = receiver + (table.ends - table.sizes)[owner]
    order = _sort_edges(atom, distance, max_neighbours, int(table.sizes.sum()))
    owner, distance = owner[order], distance[order]
    table = replace(
        table,
        edge_counts=np.bincount(owner, minlength=len(table)),
        receiver=receiver[order],
        sender=sender[order],
        shift=np.einsum("ek,ekj->ej", images.reshape(-1, 3)[order].astype(np.float64), table.cell[owner]),
        distance=distance,
    )
    is_coincident = np.bincount(owner[distance < COINCIDENT_ANGSTROM], minlength=len(table)) > 0
    if not is_coincident.any():
        return table, []
    reason = f"two atoms within {COINCIDENT_ANGSTROM:g} angstrom of each other"
    rejected = [RejectedStructure(str(i), "coincident", reason) for i in table.ids[is_coincident]]
    return table[~is_coincident], rejected


def count_degrees(table: StructureTable) -> NDArray[np.int64]:
    """Return how many atoms of a table have 0, 1, 2, ... neighbours, [largest number of neighbours + 1]."""
    assert table.edge_counts is not None
    assert table.receiver is not None
    first = np.repeat(table.ends - table.sizes, table.edge_counts)
    return np.bincount(np.bincount(first + table.receiver, minlength=int(table.sizes.sum()))).astype(np.int64)


def _sort_edges(receiver: NDArray[np.int64], distance: Array, limit: int | None, n_atoms: int) -> NDArray[np.int64]:
    """Return the indices that sort edges by receiver and distance, without those of edges beyond the limit."""
    order = np.lexsort((distance, receiver))
    if limit is None:
        return order
    return order[select_nearest(receiver[order], distance[order], limit, n_atoms)]


def select_nearest(receiver: NDArray[np.int64], distance: Array, limit: int, n_atoms: int) -> NDArray[np.bool_]:
    """Return which edges to keep, [e]: whole shells, at most `limit` per receiver.

    The edges must be sorted by receiver and distance.
    """
    degree = np.bincount(receiver, minlength=n_atoms)
    first = np.concatenate([[0], np.cumsum(degree)[:-1]])
    rank = np.arange(len(receiver)) - first[receiver]
    bound = np.full(n_atoms, np.inf)
    is_full = degree > limit
    bound[is_full] = distance[first[is_full] + limit] - SAME_SHELL_ANGSTROM
    keep = distance < bound[receiver]
    has_no_whole_shell = np.bincount(receiver, weights=keep, minlength=n_atoms) == 0
    return (keep | has_no_whole_shell[receiver]) & (rank < limit)


def solve_adaptive_cutoffs(
    receiver: NDArray[np.int64], ratio: Array, adaptive: float, n_atoms: int, *, tolerance: float
) -> Array:
    """Return (r_cut / R)^3 of each atom, [n], from below, by Newton's method, which is monotone for a convex function.

    Args:
        receiver: [e] the atom of each edge, in any order.
        ratio: [e] distance of each edge divided by r_cut.
        adaptive: Number of neighbours at uniform density.
        n_atoms: Number of atoms.
        tolerance: Relative change at which the iteration ends.
    """
    cubes, total, power = ratio**3, WEIGHT_PER_NEIGHBOUR * adaptive, ADAPTIVE_POWER
    scale = np.ones(n_atoms)
    for _ in range(MAX_ITERATIONS):
        rest = np.maximum(1.0 - cubes * scale[receiver], 0.0)
        excess = np.bincount(receiver, rest**3, n_atoms) + total * (scale**-power - 1.0)
        slope = np.bincount(receiver, 3.0 * cubes * rest**2, n_atoms) + total * power * scale ** (-power - 1)
        step = excess / slope
        scale += step
        if (step <= tolerance * scale).all():
            break
    return scale


def select_adaptive(receiver: NDArray[np.int64], ratio: Array, adaptive: float, n_atoms: int) -> NDArray[np.bool_]:
    """Return which edges are shorter than the adaptive cutoff of their receiver, [e]; see `solve_adaptive_cutoffs`."""
    scale = solve_adaptive_cutoffs(receiver, ratio, adaptive, n_atoms, tolerance=ADAPTIVE_TOLERANCE)
    return np.asarray(ratio**3 * scale[receiver] < 1.0)


def find_triplets(neighbours: NeighbourList) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the pairs of edges k -> j and j -> i, [t] each, without pairs of an edge and its reverse.

    k may be a periodic image of i; only the edge back from the same image counts as the reverse. Pairs are sorted by
    their first edge.
    """
    receiver, sender, shift = neighbours.receiver, neighbours.sender, neighbours.shift
    by_sender = np.argsort(sender, kind="stable")
    degree = np.bincount(sender, minlength=len(neighbours.structure))
    first = np.cumsum(degree) - degree
    count = degree[receiver]
    incoming = np.repeat(np.arange(len(receiver)), count)
    rank = np.arange(len(incoming)) - np.repeat(np.cumsum(count) - count, count)
    outgoing = by_sender[first[receiver[incoming]] + rank]
    round_trip = shift[incoming] + shift[outgoing]
    is_reverse = (sender[incoming] == receiver[outgoing]) & (np.abs(round_trip).max(1) < SAME_IMAGE_ANGSTROM)
    return incoming[~is_reverse], outgoing[~is_reverse]
