"""Many structures side by side as columns: what readers yield, checks look at and stores are written from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.reference.data.structure import Array, Structure

PER_ATOM = frozenset({"numbers", "positions", "forces"})


@dataclass(frozen=True)
class Frames:
    """g structures of n atoms in all; eV, angstrom, eV/angstrom, eV/angstrom^3 (tension positive).

    ids: [g] text, unique within a dataset. groups: [g] text, the molecule, material, reaction or trajectory; frames of
    one group never fall on both sides of a split. sizes: [g] atoms of each. numbers: [n]. positions: [n, 3].
    energy: [g], NaN where the source has none. cell: [g, 3, 3], rows are lattice vectors. periodic: [g, 3].
    charge: [g] elementary charges. multiplicity: [g] 2S + 1, 0 where the source does not say. forces: [n, 3].
    stress: [g, 3, 3]. None: no structure of these has the label.
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

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def ends(self) -> NDArray[np.int64]:
        """One past the last atom of each structure, [g]."""
        return np.cumsum(self.sizes)

    @property
    def owner(self) -> NDArray[np.int64]:
        """The structure of each atom, [n]."""
        return np.repeat(np.arange(len(self)), self.sizes)

    def __getitem__(self, picked: slice | NDArray[np.bool_] | NDArray[np.int64]) -> Frames:
        """Some of the structures, in the order asked for; consecutive ones without a copy."""
        if isinstance(picked, slice):
            first, stop, step = picked.indices(len(self))
            if step == 1:
                edges = np.concatenate([[0], self.ends])
                stop = max(first, stop)
                return self._mapped(slice(first, stop), slice(edges[first], edges[stop]))
        rows = np.arange(len(self))[picked]
        sizes = self.sizes[rows]
        before = np.cumsum(sizes) - sizes
        atoms = np.arange(sizes.sum()) + np.repeat((self.ends - self.sizes)[rows] - before, sizes)
        return self._mapped(rows, atoms)

    def _mapped(self, rows: slice | NDArray[np.int64], atoms: slice | NDArray[np.int64]) -> Frames:
        columns: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        columns = {n: c if c is None else c[atoms if n in PER_ATOM else rows] for n, c in columns.items()}
        return Frames(**columns)

    def structures(self, head: int = -1) -> Iterator[Structure]:
        """Each structure by itself."""
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


def joined(parts: Sequence[Frames]) -> Frames:
    """Frames one after the other; where only some of them have a label, it is NaN in the others."""
    columns: dict[str, Any] = {}
    for name, like in ((f.name, {"forces": "positions", "stress": "cell"}.get(f.name)) for f in fields(Frames)):
        found = [getattr(part, name) for part in parts]
        if like and any(c is not None for c in found):
            blank = [np.full_like(getattr(part, like), np.nan) for part in parts]
            found = [empty if c is None else c for c, empty in zip(found, blank, strict=True)]
        columns[name] = None if found[0] is None else np.concatenate(found)
    return Frames(**columns)


def from_structures(structures: Sequence[Structure]) -> Frames:
    """Columns of structures, whose names become the ids."""
    return joined(
        [
            Frames(
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
class Fault:
    """A structure that a reader or a check leaves out, where it stands, and why.

    kind: one of a few words to count by, as in "not finite", "duplicate", "missing key", "truncated", "force norm".
    count: structures, where one fault stands for several.
    """

    where: str
    kind: str
    reason: str
    count: int = 1


@dataclass(frozen=True)
class Remark(Fault):
    """What users should know of structures that are used all the same: a label under another name, an assumed unit.

    kind: the label, or "units". count: structures that it is about; none of them is left out.
    """
