"""Crystal structure types whose sites are open to any element, from the AFLOW library, as in prototypes.json.gz."""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.reference.structures import Array

FILE = Path(__file__).with_name("prototypes.json.gz")
MOST_ATOMS, MOST_SPECIES = 20, 4


@dataclass(frozen=True, eq=False)
class Prototype:
    """tag: AFLOW's label. like: the compound it is named after. fractions: [n, 3]. slots: [n], which of the species
    stands on a site, numbered by first appearance. cell: [3, 3], rows are lattice vectors of the named compound,
    angstrom."""

    tag: str
    like: str
    fractions: Array
    slots: NDArray[np.int64]
    cell: Array

    @property
    def species(self) -> int:
        """How many different ones."""
        return int(self.slots.max()) + 1

    @property
    def counts(self) -> NDArray[np.int64]:
        """Sites of each species, [species]."""
        return np.bincount(self.slots)

    @property
    def positions(self) -> Array:
        """Of the named compound, [n, 3], angstrom."""
        return self.fractions @ self.cell


@cache
def about() -> dict[str, Any]:
    """Source, licence, attribution, and what was left out."""
    return {k: v for k, v in _content().items() if k != "prototypes"}


@cache
def prototypes() -> tuple[Prototype, ...]:
    """Those with at most MOST_ATOMS atoms in their primitive cell and at most MOST_SPECIES species."""
    return tuple(
        Prototype(
            row["tag"], row["like"], np.array(row["fractions"]), np.array(row["slots"], dtype=np.int64),
            np.array(row["cell"]),
        )
        for row in _content()["prototypes"]
    )  # fmt: skip


@cache
def _content() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(gzip.decompress(FILE.read_bytes()))
    return content
