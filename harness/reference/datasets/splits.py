"""Splits by hashes of group names, and fingerprints of structures, a composition and nine lengths, to find equal ones.

The lengths do not change under rotation, translation, reflection (a mirror image has the same energy) and exchange of
equal atoms, nor, in a periodic structure, with the origin, the choice of lattice vectors and the size of the supercell.
Charge and multiplicity are part of the composition, because they are input of a model.

Each atom has values that depend on its distances to other atoms. Sorted by element and size, the values of all atoms
define a step function on 0 .. 1; the lengths are its coefficients in Legendre polynomials, which do not change if atoms
are exchanged or the cell is repeated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
from numpy.polynomial import Legendre
from numpy.typing import NDArray

from harness.reference.data.structure import MAX_ATOMIC_NUMBER, Array
from harness.reference.data.structure_table import StructureTable
from harness.reference.datasets.reference_energies import count_elements
from harness.reference.storage.sampling.permutations import hash_key, splitmix64

SPLIT_NAMES = {"trainset": "train", "valset": "validation", "testset": "test"}  # by the label in stores, HydraGNN's
SPLITS = tuple(SPLIT_NAMES)
SHARES = (0.9, 0.05, 0.05)
SEED = 17  # with this seed, every shipped set (the smallest has 15 groups) has groups in every split


def hash_texts(texts: NDArray[np.str_], salt: str = "") -> NDArray[np.uint64]:
    """Return a 64-bit hash of each text, [k], the same on every machine."""
    key = salt.encode()
    joined = b"".join(
        blake2b(text.encode("utf-8", "backslashreplace"), digest_size=8, key=key).digest() for text in texts.tolist()
    )
    return np.frombuffer(joined, dtype="<u8")


def hash_groups(groups: NDArray[np.str_], *, seed: int = SEED) -> NDArray[np.uint64]:
    """Return the hash of the name of each group and the seed, [k], uniform in 0 .. 2**64."""
    names, position = np.unique(groups, return_inverse=True)
    return hash_texts(names, f"split {seed}")[position]


def assign_by_hash(hashes: NDArray[np.uint64], shares: Sequence[float] = SHARES) -> NDArray[np.int64]:
    """Return the split of each group, as a position in SPLITS, [k], by its hash from `hash_groups`, [k]."""
    return np.searchsorted(np.cumsum(shares)[:-1], hashes.astype(np.float64) / 2.0**64, side="right")


def assign_by_name(
    groups: NDArray[np.str_], *, shares: Sequence[float] = SHARES, seed: int = SEED
) -> NDArray[np.int64]:
    """Return the split of each group, as a position in SPLITS, [k]; it depends on its name and the seed alone."""
    return assign_by_hash(hash_groups(groups, seed=seed), shares)


N_LENGTHS = 9
RADIUS = 4.0  # angstrom; the radius of an atom's environment
MAX_ALL_PAIRS = 1024  # in molecules with more atoms, only pairs within RADIUS are measured
MAX_PAIRS = 200_000  # number of pairs that are measured at a time, which fit into the cache
MIN_SPACING = 0.25  # angstrom; the atoms of a denser periodic structure have too many neighbours to measure
MAX_LENGTH = 1000.0  # angstrom
_ELEMENTS = np.arange(MAX_ATOMIC_NUMBER + 1, dtype=np.uint64)
_CODES = splitmix64(_ELEMENTS)
# Three weights of each element, between 1 and 2.
WEIGHTS: Array = 1.0 + np.stack([splitmix64(_CODES + np.uint64(k)) for k in range(3)], axis=1) / 2.0**64
# Antiderivatives on 0 .. 1 of the polynomials, which are orthonormal there.
_INTEGRALS = [Legendre.basis(k, domain=[0, 1]).integ(lbnd=0) * (2 * k + 1) ** 0.5 for k in range(4)]


@dataclass(frozen=True)
class StructureShapes:
    """What fingerprints of g structures compare: the composition, and lengths that describe the geometry.

    Attributes:
        composition: [g] hash of the composition, charge, multiplicity and number of periodic directions.
        lengths: [g, 9] angstrom, NaN if a structure is too dense to be measured.
    """

    composition: NDArray[np.uint64]
    lengths: NDArray[np.float32]


def measure_shapes(table: StructureTable) -> StructureShapes:
    """Measure every structure; if interatomic distances change by t, the lengths change by at most about t."""
    periodic = np.asarray(table.periodic.any(axis=1))
    is_small = ~periodic & (table.sizes <= MAX_ALL_PAIRS)
    lengths = np.full((len(table), N_LENGTHS), np.nan)
    if is_small.any():
        lengths[is_small] = _measure_molecules(table[is_small])
    if not is_small.all():
        lengths[~is_small] = _measure_surroundings(table[~is_small])
    return StructureShapes(_hash_compositions(table, periodic), lengths.astype(np.float32))


def _hash_compositions(table: StructureTable, periodic: NDArray[np.bool_]) -> NDArray[np.uint64]:
    """Hash composition (in lowest terms if periodic), charge, multiplicity and number of periodic directions, [g]."""
    counts = count_elements(table)
    counts[periodic] //= np.gcd.reduce(counts[periodic], axis=1, keepdims=True)
    elements = (counts.astype(np.uint64) @ _CODES).view(np.int64)
    return hash_key(elements, table.charge, table.multiplicity, table.periodic.sum(axis=1))


def _measure_molecules(table: StructureTable) -> Array:
    """Return the lengths of small molecules, computed from all pairs of atoms, [g, 9]."""
    values = np.empty((len(table.numbers), 3))
    starts = table.ends - table.sizes
    for size in np.unique(table.sizes).tolist():
        rows = np.flatnonzero(table.sizes == size)
        step = max(1, MAX_PAIRS // size**2)
        for first in range(0, len(rows), step):
            atoms = starts[rows[first : first + step], None] + np.arange(size)
            values[atoms] = _measure_all_pairs(table.positions[atoms], WEIGHTS[table.numbers[atoms]])
    return np.column_stack([_expand_in_polynomials(values[:, k], table, degrees=3) for k in range(3)])


def _measure_all_pairs(positions: Array, weights: Array) -> Array:
    """Return three values of each atom, [m, n, 3], for positions and weights [m, n, 3] of m molecules of n atoms."""
    centred = positions - positions.mean(axis=1, keepdims=True)
    squares = np.einsum("mik,mik->mi", centred, centred)
    squared = squares[:, :, None] + squares[:, None, :] - 2.0 * (centred @ centred.swapaxes(1, 2))
    np.maximum(squared, 0.0, out=squared)
    diagonal = np.arange(squared.shape[1])
    near = np.maximum(1.0 - squared / RADIUS**2, 0.0)
    near[:, diagonal, diagonal] = 0.0
    near *= near
    far = np.sqrt(1.0 + squared) @ (weights[..., 2:] / weights[..., 2:].sum(axis=1, keepdims=True))
    return np.concatenate(
        [_convert_to_length(near @ weights[..., :1]), _convert_to_length(near**3 @ weights[..., 1:2]), far], axis=-1
    )


def _measure_surroundings(table: StructureTable) -> Array:
    """Return the lengths of periodic or large structures, computed from pairs within RADIUS, [g, 9]."""
    spacing = _measure_spacings(table)
    is_measured = spacing > MIN_SPACING
    i, j, vector = _find_near_pairs(table, is_measured)
    count, weights = len(table.numbers), WEIGHTS[table.numbers]
    near = np.maximum(1.0 - np.einsum("ek,ek->e", vector, vector) / RADIUS**2, 0.0) ** 2
    close = near * near * near
    to_i, to_j = close * weights[j, 1], close * weights[i, 1]
    around = np.asarray(
        np.bincount(i, near * weights[j, 0], count) + np.bincount(j, near * weights[i, 0], count), float
    )
    nearest = np.asarray(np.bincount(i, to_i, count) + np.bincount(j, to_j, count), float)
    # On a symmetric site, a small displacement of the atom does not change the sums above, but it changes this one.
    asymmetry = [np.bincount(i, to_i * x, count) - np.bincount(j, to_j * x, count) for x in vector.T]
    off_centre = np.sqrt(asymmetry[0] ** 2 + asymmetry[1] ** 2 + asymmetry[2] ** 2) / (1.0 + nearest)
    lengths = [
        spacing,
        *_expand_in_polynomials(_convert_to_length(around), table, degrees=3).T,
        *_expand_in_polynomials(_convert_to_length(nearest), table, degrees=2).T,
        *_expand_in_polynomials(off_centre, table, degrees=3).T,
    ]
    return np.where(is_measured[:, None], np.column_stack(lengths), np.nan)


def _convert_to_length(neighbours: Array) -> Array:
    """Convert a weighted number of neighbours into a length that changes by about as much as the distances."""
    return RADIUS / 4.0 * np.log1p(neighbours)


def _expand_in_polynomials(values: Array, table: StructureTable, *, degrees: int) -> Array:
    """Sort the values [n] of each structure by element and size; return Legendre coefficients, [g, degrees]."""
    owner, stops = table.owner, table.ends
    offset = (owner * len(_ELEMENTS) + table.numbers) * (2.0 * MAX_LENGTH)
    ordered = np.sort(np.minimum(values, MAX_LENGTH) + offset) - np.sort(offset)
    position = np.arange(len(values)) - (stops - table.sizes)[owner]
    before, after = position / table.sizes[owner], (position + 1) / table.sizes[owner]
    parts = [ordered * (integral(after) - integral(before)) for integral in _INTEGRALS[:degrees]]
    return np.asarray(np.add.reduceat(np.column_stack(parts), stops - table.sizes, axis=0))


def _find_near_pairs(
    table: StructureTable, is_measured: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.int64], Array]:
    """Return both atoms of each pair within RADIUS, and the vector from the first to the second, [e, 3]."""
    import vesin  # imported here because it imports torch, which takes seconds

    search = vesin.NeighborList(cutoff=RADIUS, full_list=False, n_threads=1)
    starts, ends = (table.ends - table.sizes).tolist(), table.ends.tolist()
    pairs = [(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), np.zeros((0, 3)))]
    for k in np.flatnonzero(is_measured).tolist():
        i, j, vector = search.compute(
            points=table.positions[starts[k] : ends[k]],
            box=table.cell[k],
            periodic=table.periodic[k],
            quantities="ijD",
        )
        pairs.append((i.astype(np.int64) + starts[k], j.astype(np.int64) + starts[k], vector))
    i, j, vector = map(np.concatenate, zip(*pairs, strict=True))
    return i, j, vector


def _measure_spacings(table: StructureTable) -> Array:
    """Return the typical spacing of atoms along the periodic directions, or the radius of a large molecule, [g]."""
    spacings = np.cbrt(np.abs(np.linalg.det(table.cell)) / table.sizes)
    for k in np.flatnonzero(~table.periodic.all(axis=1)).tolist():
        size, stop, vectors = int(table.sizes[k]), int(table.ends[k]), table.cell[k][table.periodic[k]]
        if len(vectors):
            spacings[k] = (max(np.linalg.det(vectors @ vectors.T), 0.0) ** 0.5 / size) ** (1.0 / len(vectors))
        else:
            positions = table.positions[stop - size : stop]
            spacings[k] = np.sqrt(((positions - positions.mean(axis=0)) ** 2).sum(axis=1).mean())
    return spacings
