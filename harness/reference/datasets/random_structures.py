"""The paper's screening workload: atoms at random positions in a box (arXiv 2604.15380, public screening script)."""

from __future__ import annotations

import numpy as np

from harness.reference.data.structure import Structure

BOX_ANGSTROM = 10.0
ELEMENTS = (1, 94)
SEED = 42


def make_random_structures(count: int, *, atoms: tuple[int, int], rank: int = 0) -> list[Structure]:
    """Return isolated structures with uniformly distributed positions and elements, for the seed 42 + rank.

    Args:
        count: Number of structures.
        atoms: The smallest and the largest number of atoms.
        rank: The rank.
    """
    rng = np.random.default_rng(SEED + rank)
    structures = []
    for k in range(count):
        n = int(rng.integers(atoms[0], atoms[1] + 1))
        structures.append(
            Structure(
                name=f"random/{k}",
                numbers=rng.integers(ELEMENTS[0], ELEMENTS[1] + 1, n),
                positions=rng.uniform(0.0, BOX_ANGSTROM, (n, 3)),
            )
        )
    return structures
