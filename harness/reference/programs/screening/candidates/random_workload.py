"""The workload of the paper: random structures in vacuum, from one random stream for each rank of the paper's run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist  # type: ignore[import-untyped]

from harness.reference.data.neighbours import COINCIDENT_ANGSTROM, SAME_SHELL_ANGSTROM, NeighbourSpec, select_adaptive
from harness.reference.data.structure import Array, Structure
from harness.reference.datasets.random_structures import BOX_ANGSTROM, ELEMENTS, SEED
from harness.reference.errors import InputError
from harness.reference.programs.screening.candidates.workload import (
    CandidateBatch,
    GraphArrays,
    build_batch_from_arrays,
)

PER_RANK = 15_000


def iter_random_structures(rank: int, atoms: tuple[int, int], first: int = 0) -> Iterator[Structure]:
    """Yield the structures first, first + 1, ... of the endless stream of a rank (see `random_structures`).

    All structures of a rank share one random generator, so the random numbers of earlier structures are drawn too.

    Args:
        rank: The rank of the paper's workload.
        atoms: Minimum and maximum number of atoms.
        first: Number of the first structure.
    """
    rng = np.random.default_rng(SEED + rank)
    unused = np.empty(3 * atoms[1])
    for _ in range(first):
        n = int(rng.integers(atoms[0], atoms[1] + 1))
        rng.integers(ELEMENTS[0], ELEMENTS[1] + 1, n)
        rng.random(out=unused[: 3 * n])
    for k in count(first):
        n = int(rng.integers(atoms[0], atoms[1] + 1))
        numbers = rng.integers(ELEMENTS[0], ELEMENTS[1] + 1, n)
        yield Structure(f"random/{k}", numbers, rng.uniform(0.0, BOX_ANGSTROM, (n, 3)))


@dataclass(frozen=True)
class RandomSpace:
    """The candidates: candidate r * per_rank + k is structure k of rank r.

    Attributes:
        ranks: Number of ranks of the paper's run.
        per_rank: Number of structures of each rank.
        atoms: Minimum and maximum number of atoms of a structure.

    Raises:
        InputError: The space is empty.
    """

    ranks: int
    per_rank: int = PER_RANK
    atoms: tuple[int, int] = (2, 500)

    def __post_init__(self) -> None:
        if self.ranks < 1 or self.per_rank < 1:
            raise InputError(f"{self.ranks} ranks of {self.per_rank} random structures: expected 1 or more of each")
        if not 1 <= self.atoms[0] <= self.atoms[1]:
            raise InputError(
                f"{self.atoms[0]} to {self.atoms[1]} atoms: expected a minimum of at least 1 and a maximum"
            )

    def __len__(self) -> int:
        return self.ranks * self.per_rank

    def block(self, start: int, stop: int) -> Iterator[Structure]:
        """Yield the candidates start .. stop - 1; raise InputError if not all exist."""
        if not 0 <= start <= stop <= len(self):
            raise InputError(f"candidates {start} to {stop}: expected 0 to {len(self)}, in this order")
        while start < stop:
            rank, first = divmod(start, self.per_rank)
            number = min(stop - start, self.per_rank - first)
            yield from islice(iter_random_structures(rank, self.atoms, first), number)
            start += number

    def structure(self, index: int) -> Structure:
        """Return one candidate; raise InputError if it does not exist."""
        if not 0 <= index < len(self):
            raise InputError(f"candidate {index}: expected 0 to {len(self) - 1}")
        return next(self.block(index, index + 1))


DISTANCE_CHUNK = 1 << 15  # number of distances that fit into the cache of the processor
NO_NEIGHBOUR = np.array(np.inf).view(np.int64)
MIN_PARTITION = 64  # shorter rows are sorted faster without a partition


def build_vacuum_arrays(
    structures: Sequence[Structure],
    *,
    cutoff: float,
    max_neighbours: int | None = None,
    adaptive: float | None = None,
) -> GraphArrays:
    """Build the edges of small structures in vacuum from all pairs of atoms, which is faster than a grid or tree.

    The edges are those of `build_neighbour_list`, up to the order of equal distances.

    Args:
        structures: The structures.
        cutoff: Cutoff in angstrom.
        max_neighbours: Maximum number of neighbours of an atom, or None.
        adaptive: As in `NeighbourSpec`.

    Raises:
        InputError: There are no structures, one is periodic or invalid, or atoms coincide.
    """
    if not structures:
        raise InputError("a batch needs at least one structure")
    for structure in structures:
        structure.check()
        if any(structure.periodic):
            raise InputError(f"structure {structure.name!r} is periodic: expected structures in vacuum")
    atoms = np.array([len(s) for s in structures])
    graph = np.repeat(np.arange(len(atoms)), atoms)
    before = np.cumsum(atoms) - atoms
    largest = int(atoms.max())
    positions = [s.positions for s in structures]
    if adaptive is None:
        limit = largest if max_neighbours is None else max_neighbours
        sender, distance = _find_nearest(positions, min(limit + 1, largest), largest)
        keep = _select_edges(distance, cutoff, limit)
    else:
        sender, distance, keep = _find_adaptive(positions, cutoff, adaptive, largest)
    receiver = np.repeat(np.arange(len(graph)), keep.sum(axis=1))
    closest = distance[:, 0]
    if closest.min() < COINCIDENT_ANGSTROM:
        atom = int(closest.argmin())
        structure = structures[graph[atom]]
        first = before[graph[atom]]
        raise InputError(
            f"structure {structure.name!r}: atoms {atom - first} and {sender[atom, 0]} coincide"
            f" ({closest[atom]:.1e} angstrom apart)"
        )
    edge_graph = graph[receiver]
    return GraphArrays(
        numbers=np.concatenate([s.numbers for s in structures]),
        positions=np.concatenate([s.positions for s in structures]),
        receiver=receiver,
        sender=sender[keep] + before[edge_graph],
        shift=np.zeros((len(receiver), 3)),
        graph=graph,
        edge_graph=edge_graph,
        cell=np.stack([s.cell for s in structures]),
        atoms=atoms,
        edges=np.bincount(edge_graph, minlength=len(atoms)),
    )


def _find_nearest(positions: Sequence[Array], width: int, max_atoms: int) -> tuple[NDArray[np.int64], Array]:
    """Return the nearest other atoms of each atom, and their distances (inf if there are no more), [n, width] each.

    The bits of positive floating-point numbers sort like integers. The last bits of squared distances are replaced by
    the index of the other atom, so that one sort orders both; for up to 4096 atoms, the relative error of a distance is
    below 1e-12.
    """
    number_bits = np.int64((1 << max_atoms.bit_length()) - 1)
    nearest = np.full((sum(map(len, positions)), width), NO_NEIGHBOUR)
    row = 0
    for x in positions:
        numbers = np.arange(len(x))
        chunk = max(1, DISTANCE_CHUNK // len(x))
        for first in range(0, len(x), chunk):
            rows = numbers[first : first + chunk]
            squares = cdist(x[rows], x, "sqeuclidean")
            squares[rows - first, rows] = np.inf
            keys = squares.view(np.int64)
            keys &= ~number_bits
            keys |= numbers
            if len(x) > max(width, MIN_PARTITION):
                keys.partition(width - 1, axis=1)
                keys = keys[:, :width]
            keys.sort(axis=1)
            nearest[row : row + len(rows), : len(x)] = keys[:, :width]
            row += len(rows)
    return nearest & number_bits, np.sqrt((nearest & ~number_bits).view(np.float64))


def _select_edges(distance: Array, cutoff: float, limit: int) -> NDArray[np.bool_]:
    """Return which distances, ascending in each row [n, width], are edges: at most `limit` per row, in whole shells."""
    keep = distance < cutoff
    if distance.shape[1] <= limit:
        return keep
    too_many = keep[:, limit]
    bound = np.where(too_many, distance[:, limit] - SAME_SHELL_ANGSTROM, np.inf)
    whole = keep & (distance < bound[:, None])
    first_shell = keep & ~whole.any(axis=1, keepdims=True)
    keep = whole | first_shell
    keep[:, limit:] = False
    return keep


def _find_adaptive(
    positions: Sequence[Array], cutoff: float, adaptive: float, max_atoms: int
) -> tuple[NDArray[np.int64], Array, NDArray[np.bool_]]:
    """Return the result of `_find_nearest`, and which distances are below the adaptive cutoff of their atom."""
    width = min(2 * int(adaptive), max_atoms)
    while True:
        sender, distance = _find_nearest(positions, width, max_atoms)
        keep = distance < cutoff
        rows = np.nonzero(keep)[0]
        keep[keep] = select_adaptive(rows, distance[keep] / cutoff, adaptive, len(distance))
        if width == max_atoms or not keep[:, -1].any():
            return sender, distance, keep
        width = min(2 * width, max_atoms)


class RandomWorkload:
    """The workload "random". A stream is always generated from its start, so each part should be one whole stream.

    Args:
        space: The candidates.
        spec: The definition of neighbours.
    """

    name = "random"

    def __init__(self, space: RandomSpace, spec: NeighbourSpec) -> None:
        self.space, self.spec = space, spec
        self.total = len(space)
        self.facts: dict[str, object] = {
            "streams": space.ranks, "per_stream": space.per_rank, "atoms": list(space.atoms),
            "cutoff_angstrom": spec.cutoff, "max_neighbours": spec.max_neighbours,
        }  # fmt: skip

    def batches(self, first: int, stop: int, edges: int) -> Iterator[CandidateBatch]:
        """Yield batches as in `Workload`; their numbers of atoms are limited, and so their numbers of edges."""
        max_atoms = max(1, edges // int(self.spec.max_neighbours or self.spec.adaptive or 50))
        source = self.space.block(first, stop)
        index = first
        carried: list[Structure] = []
        while structures := _take_structures(source, carried, max_atoms):
            arrays, valid = self._build_valid_arrays(structures)
            numbers = index + np.flatnonzero(valid)
            left_out = {"coincident atoms": int((~valid).sum())} if not valid.all() else {}
            yield CandidateBatch(numbers, None if arrays is None else build_batch_from_arrays(arrays), left_out)
            index += len(structures)

    def _build_valid_arrays(
        self, structures: list[Structure]
    ) -> tuple[GraphArrays | None, np.ndarray[tuple[int], np.dtype[np.bool_]]]:
        """Build the edges of the structures without coincident atoms, and return the mask of these structures."""
        valid = np.ones(len(structures), dtype=bool)
        try:
            return self._build_arrays(structures), valid
        except InputError:
            for k, structure in enumerate(structures):
                try:
                    self._build_arrays([structure])
                except InputError:
                    valid[k] = False
        remaining = [s for s, is_valid in zip(structures, valid, strict=True) if is_valid]
        return (self._build_arrays(remaining) if remaining else None), valid

    def _build_arrays(self, structures: list[Structure]) -> GraphArrays:
        spec = self.spec
        return build_vacuum_arrays(
            structures, cutoff=spec.cutoff, max_neighbours=spec.max_neighbours, adaptive=spec.adaptive
        )

    def structure(self, index: int) -> Structure:
        """Return the candidate with this index."""
        return self.space.structure(index)

    def describe(self, index: int) -> dict[str, str]:
        """Return the stream and the number of atoms of a candidate."""
        return {"stream": str(index // self.space.per_rank), "atoms": str(len(self.structure(index)))}


def _take_structures(source: Iterator[Structure], carried: list[Structure], max_atoms: int) -> list[Structure]:
    """Return the next structures with at most max_atoms in total, or a single larger one.

    `carried` holds a structure that was taken from the source but did not fit.
    """
    structures, n_atoms = list(carried), sum(map(len, carried))
    carried.clear()
    for structure in source:
        if structures and n_atoms + len(structure) > max_atoms:
            carried.append(structure)
            break
        structures.append(structure)
        n_atoms += len(structure)
    return structures
