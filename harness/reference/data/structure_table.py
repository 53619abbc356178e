"""A table of many structures: what readers yield, checks examine and stores hold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.reference.data.structure import Array, Structure

ATOM_COLUMNS = frozenset({"numbers", "positions", "forces"})
EDGE_COLUMNS = ("receiver", "sender", "shift", "distance")
# Each optional label, with a column of the same shape; `concatenate` fills the label with NaN for tables without it.
FILL_SHAPES = {"forces": "positions", "stress": "cell"}


@dataclass(frozen=True)
class StructureTable:
    """A table of g structures with n atoms in all.

    If neighbour lists have been added (`add_neighbours`), there are e edges, sorted by structure, receiver and
    distance; otherwise the last five columns are None.

    Attributes:
        ids: [g] text, unique within a dataset.
        groups: [g] text, the molecule, material, reaction or trajectory; all structures of a group are in one split.
        sizes: [g] number of atoms of each structure.
        numbers: [n] atomic numbers.
        positions: [n, 3] angstrom.
        energy: [g] eV, NaN where the source gives none.
        cell: [g, 3, 3] angstrom; rows are lattice vectors.
        periodic: [g, 3] whether each structure is periodic along each lattice vector.
        charge: [g] elementary charges.
        multiplicity: [g] 2S + 1, 0 where the source gives none.
        forces: [n, 3] eV/angstrom; None if no structure of the table has forces.
        stress: [g, 3, 3] eV/angstrom^3, tension is positive; None if no structure of the table has a stress.
        edge_counts: [g] number of edges of each structure.
        receiver: [e] index of an atom within its structure.
        sender: [e] index of its neighbour within the same structure.
        shift: [e, 3] angstrom, translation from the sender to its periodic image.
        distance: [e] angstrom.
    """

    ids: NDArray[np.str_]
    groups: NDArray[np.str_]
    sizes: NDArray[np.int64]
    numbers: NDArray[np.uint8]
    positions: Array
    energy: Array
    cell: Array
    periodic: NDArray[np.bool_]
    charge: NDArray[np.int64]
    multiplicity: NDArray[np.int64]
    forces: Array | None = None
    stress: Array | None = None
    edge_counts: NDArray[np.int64] | None = None
    receiver: NDArray[np.int64] | None = None
    sender: NDArray[np.int64] | None = None
    shift: Array | None = None
    distance: Array | None = None

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def ends(self) -> NDArray[np.int64]:
        """The index one past the last atom of each structure, [g]."""
        return np.cumsum(self.sizes)

    @property
    def owner(self) -> NDArray[np.int64]:
        """The index of the structure to which each atom belongs, [n]."""
        return np.repeat(np.arange(len(self)), self.sizes)

    def __getitem__(self, selection: slice | NDArray[np.bool_] | NDArray[np.int64]) -> StructureTable:
        """Return the selected structures in the order of the selection; a slice with step 1 copies nothing."""
        if isinstance(selection, slice):
            first, stop, step = selection.indices(len(self))
            if step == 1:
                stop = max(first, stop)
                bounds = (_slice_rows(counts, first, stop) for counts in (self.sizes, self.edge_counts))
                return self._select(slice(first, stop), *bounds)
        rows = np.arange(len(self))[selection]
        return self._select(rows, *(_list_rows(counts, rows) for counts in (self.sizes, self.edge_counts)))

    def _select(self, rows: Any, atoms: Any, edges: Any) -> StructureTable:
        columns: dict[str, Any] = {}
        for name, column in ((f.name, getattr(self, f.name)) for f in fields(self)):
            index = atoms if name in ATOM_COLUMNS else edges if name in EDGE_COLUMNS else rows
            columns[name] = None if column is None else column[index]
        return StructureTable(**columns)

    def select_edges(self, mask: NDArray[np.bool_]) -> StructureTable:
        """Return all structures, with the edges for which the mask [e] is True."""
        assert self.edge_counts is not None
        owner = np.repeat(np.arange(len(self)), self.edge_counts)
        columns: dict[str, Any] = {name: getattr(self, name)[mask] for name in EDGE_COLUMNS}
        return replace(self, edge_counts=np.bincount(owner[mask], minlength=len(self)), **columns)

    def structures(self, head: int = -1) -> Iterator[Structure]:
        """Yield each structure without its neighbours.

        Args:
            head: The head of all structures (index in HEADS), -1 if there is none.
        """
        stop = 0
        for k, size in enumerate(self.sizes.tolist()):
            first, stop = stop, stop + size
            yield Structure(
                name=str(self.ids[k]),
                numbers=self.numbers[first:stop].astype(np.int64),
                positions=self.positions[first:stop],
                cell=self.cell[k],
                periodic=tuple(self.periodic[k].tolist()),
                head=head,
                energy=None if np.isnan(self.energy[k]) else float(self.energy[k]),
                forces=None if self.forces is None else self.forces[first:stop],
                stress=None if self.stress is None else self.stress[k],
                charge=int(self.charge[k]),
                multiplicity=int(self.multiplicity[k]),
                group=str(self.groups[k]),
            )


def _slice_rows(counts: NDArray[np.int64] | None, first: int, stop: int) -> slice:
    """Return the rows of atoms (or edges) of the structures first..stop - 1, given how many each structure has."""
    if counts is None:
        return slice(0)
    ends = np.concatenate([[0], np.cumsum(counts)])
    return slice(ends[first], ends[stop])


def _list_rows(counts: NDArray[np.int64] | None, structures: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the rows of atoms (or edges) of the listed structures, given how many each structure has."""
    if counts is None:
        return np.zeros(0, dtype=np.int64)
    selected = counts[structures]
    before = np.cumsum(selected) - selected
    return np.arange(selected.sum()) + np.repeat((np.cumsum(counts) - counts)[structures] - before, selected)


def concatenate(tables: Sequence[StructureTable]) -> StructureTable:
    """Concatenate tables; a label that only some of them have is NaN in the others."""
    columns: dict[str, Any] = {}
    for name in (f.name for f in fields(StructureTable)):
        parts = [getattr(table, name) for table in tables]
        if name in FILL_SHAPES and any(part is not None for part in parts):
            blanks = (np.full_like(getattr(table, FILL_SHAPES[name]), np.nan) for table in tables)
            parts = [blank if part is None else part for part, blank in zip(parts, blanks, strict=True)]
        columns[name] = None if any(part is None for part in parts) else np.concatenate(parts)
    return StructureTable(**columns)


def tabulate(structures: Sequence[Structure]) -> StructureTable:
    """Return a table of structures, whose names become the ids."""
    return concatenate(
        [
            StructureTable(
                ids=np.array([s.name]),
                groups=np.array([s.group or s.name]),
                sizes=np.array([len(s)], dtype=np.int64),
                numbers=s.numbers.astype(np.uint8),
                positions=s.positions,
                energy=np.array([np.nan if s.energy is None else s.energy]),
                cell=s.cell[None],
                periodic=np.array([s.periodic]),
                charge=np.array([s.charge]),
                multiplicity=np.array([s.multiplicity]),
                forces=s.forces,
                stress=None if s.stress is None else s.stress[None],
            )
            for s in structures
        ]
    )


@dataclass(frozen=True)
class RejectedStructure:
    """A structure that a reader or a check excludes, with its location and the reason.

    Attributes:
        where: The file and line, or the id of the structure.
        kind: Category under which rejections are counted, such as "not finite", "duplicate" or "force norm".
        reason: The problem, as a message to users.
        count: Number of structures that this rejection stands for.
    """

    where: str
    kind: str
    reason: str
    count: int = 1


@dataclass(frozen=True)
class Remark(RejectedStructure):  # a subclass, as readers yield both in one stream
    """A note on structures that are used nevertheless: a label under another name, an assumed unit.

    Attributes:
        kind: The name of the label, or "units".
        count: Number of structures that the note concerns; none of them is excluded.
    """
