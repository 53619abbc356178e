"""The paper's screening workload: atoms thrown at random into a box (arXiv 2604.15380, public screening script)."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count, islice

import numpy as np

from harness.reference.structures import Structure

BOX_ANGSTROM = 10.0
ELEMENTS = (1, 94)
SEED = 42


def random_structures(number: int, *, atoms: tuple[int, int], rank: int = 0) -> list[Structure]:
    """Isolated structures with atoms[0]..atoms[1] atoms, uniform positions and elements, seed 42 + rank."""
    return list(islice(drawn(atoms, rank=rank), number))


def drawn(atoms: tuple[int, int], *, rank: int = 0) -> Iterator[Structure]:
    """The same one after the other, without an end."""
    rng = np.random.default_rng(SEED + rank)
    for k in count():
        n = int(rng.integers(atoms[0], atoms[1] + 1))
        yield Structure(
            name=f"random/{k}",
            numbers=rng.integers(ELEMENTS[0], ELEMENTS[1] + 1, n),
            positions=rng.uniform(0.0, BOX_ANGSTROM, (n, 3)),
        )
