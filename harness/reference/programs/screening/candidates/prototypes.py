"""Crystal structure types whose sites are open to any element, from the AFLOW library (`prototypes.json.gz`)."""

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
FIRST_REACH_ANGSTROM = 4.0
GROWTH = 1.4


@dataclass(frozen=True)
class Pairs:
    """Directed pairs of atoms and periodic images, by receiver, then by distance.

    receiver, sender: [p]. image: [p, 3] lattice vectors that the sender is away. distance: [p].
    """

    receiver: NDArray[np.int64]
    sender: NDArray[np.int64]
    image: NDArray[np.int64]
    distance: Array


@dataclass(frozen=True, eq=False)
class Prototype:
    """A structure type in the geometry of the compound it is named after, which is its unit of length.

    tag: AFLOW's label. name: mineral or compound. strukturbericht: "" where there is none. spacegroup: of the sites.
    fractions: [n, 3]. cell: [3, 3] primitive, rows are lattice vectors. slots: [n] which species stands on a site,
    numbered by first appearance. exchanges: orders of the slots, but the first, that make the same crystal.
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
    def species(self) -> int:
        """Slots for elements."""
        return int(self.slots.max()) + 1

    @property
    def counts(self) -> NDArray[np.int64]:
        """Sites of each slot, [species]."""
        return np.bincount(self.slots)

    @property
    def positions(self) -> Array:
        """[n, 3]."""
        return self.fractions @ self.cell

    def pairs(self, reach: float) -> Pairs:
        """All pairs closer than reach."""
        receiver, sender, image, distance = vesin.NeighborList(cutoff=reach, full_list=True, n_threads=1).compute(
            points=self.positions, box=self.cell, periodic=True, quantities="ijSd"
        )
        order = np.lexsort((distance, receiver))
        image = image.reshape(-1, 3)[order].astype(np.int64)
        return Pairs(receiver[order].astype(np.int64), sender[order].astype(np.int64), image, distance[order])

    @cached_property
    def closest(self) -> Array:
        """The smallest distance between sites of two slots, periodic images among them, [species, species]."""
        reach = FIRST_REACH_ANGSTROM
        while True:
            found = self.pairs(reach)
            least = np.full((self.species, self.species), np.inf)
            np.minimum.at(least, (self.slots[found.receiver], self.slots[found.sender]), found.distance)
            if np.isfinite(least).all():
                return np.minimum(least, least.T)
            reach *= GROWTH


@cache
def about() -> dict[str, Any]:
    """Source, licence, attribution, and how many were left out for what."""
    return {key: value for key, value in _read(FILE).items() if key != "prototypes"}


@cache
def prototypes() -> tuple[Prototype, ...]:
    """All that are shipped, by number of species, then by tag; raises InputError if the file cannot be read."""
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
