"""Crystal structure types whose sites can have any element, from the AFLOW library (`prototypes.json.gz`)."""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import vesin
from numpy.typing import NDArray

from harness.reference.data.structure import Array
from harness.reference.errors import InputError

FILE = Path(__file__).with_name("prototypes.json.gz")
INITIAL_RADIUS_ANGSTROM = 4.0
GROWTH = 1.4


@dataclass(frozen=True)
class AtomPairs:
    """Directed pairs of atoms and periodic images, ordered by receiver, then by distance.

    Attributes:
        receiver: [p] indices of atoms.
        sender: [p] indices of atoms.
        image: [p, 3] translation from the sender to its periodic image, in lattice vectors.
        distance: [p] distance in the unit of the cell.
    """

    receiver: NDArray[np.int64]
    sender: NDArray[np.int64]
    image: NDArray[np.int64]
    distance: Array


@dataclass(frozen=True, eq=False)
class Prototype:
    """A structure type, with the geometry of the compound after which it is named.

    Attributes:
        tag: AFLOW's label.
        name: Mineral or compound.
        strukturbericht: Strukturbericht symbol, "" if there is none.
        spacegroup: Space group of the sites.
        fractions: [n, 3] fractional coordinates.
        cell: [3, 3] primitive cell, rows are lattice vectors.
        slots: [n] index of the slot, a set of sites with the same element, of each site.
        exchanges: Permutations of the slots, other than the identity, that give the same crystal.
    """

    tag: str
    name: str
    strukturbericht: str
    spacegroup: int
    fractions: Array
    cell: Array
    slots: NDArray[np.int64]
    exchanges: tuple[tuple[int, ...], ...] = ()

    def __len__(self) -> int:
        return len(self.slots)

    @property
    def n_species(self) -> int:
        """The number of slots, and so of elements."""
        return int(self.slots.max()) + 1

    @property
    def counts(self) -> NDArray[np.int64]:
        """The number of sites of each slot, [n_species]."""
        return np.bincount(self.slots)

    @property
    def positions(self) -> Array:
        """The positions of the sites, [n, 3]."""
        return self.fractions @ self.cell

    def pairs(self, radius: float) -> AtomPairs:
        """Return all pairs closer than a radius."""
        receiver, sender, image, distance = vesin.NeighborList(cutoff=radius, full_list=True, n_threads=1).compute(
            points=self.positions, box=self.cell, periodic=True, quantities="ijSd"
        )
        order = np.lexsort((distance, receiver))
        image = image.reshape(-1, 3)[order].astype(np.int64)
        return AtomPairs(receiver[order].astype(np.int64), sender[order].astype(np.int64), image, distance[order])

    @cached_property
    def closest(self) -> Array:
        """The smallest distance between sites of two slots, including periodic images, [species, species]."""
        radius = INITIAL_RADIUS_ANGSTROM
        while True:
            pairs = self.pairs(radius)
            smallest = np.full((self.n_species, self.n_species), np.inf)
            np.minimum.at(smallest, (self.slots[pairs.receiver], self.slots[pairs.sender]), pairs.distance)
            if np.isfinite(smallest).all():
                return np.minimum(smallest, smallest.T)
            radius *= GROWTH


@cache
def load_source_notes() -> dict[str, Any]:
    """Return the source, licence and attribution of the prototypes, and the number of excluded ones by reason."""
    return {key: value for key, value in _read(FILE).items() if key != "prototypes"}


@cache
def load_prototypes() -> tuple[Prototype, ...]:
    """Return the shipped prototypes by number of species, then by tag; raise InputError if the file is unreadable."""
    return tuple(
        Prototype(
            tag=row["tag"],
            name=row["name"],
            strukturbericht=row["strukturbericht"],
            spacegroup=row["spacegroup"],
            fractions=np.array(row["fractions"]),
            cell=np.array(row["cell"]),
            slots=np.array(row["slots"], dtype=np.int64),
            exchanges=tuple(map(tuple, row["exchanges"])),
        )
        for row in _read(FILE)["prototypes"]
    )


def _read(file: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(gzip.decompress(file.read_bytes()))
    except (OSError, EOFError, ValueError) as error:
        raise InputError(f"{file}: not the file of prototypes ({error})") from None
    return content
