"""The checks of structures before they are written to a store, each for a whole table at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from harness.reference.data.structure import MAX_ATOMIC_NUMBER, Array
from harness.reference.data.structure_table import RejectedStructure, StructureTable
from harness.reference.datasets.catalog import DatasetSource
from harness.reference.datasets.parsing.plausibility import describe_implausible_lengths, find_implausible_energies
from harness.reference.errors import InputError

MAX_FORCE = 1000.0  # eV/angstrom: the bound of HydraGNN's preprocessing
COINCIDENT_ANGSTROM = 1e-4  # between atoms of one image; data/neighbours.py also checks images, at a larger distance
MIN_VOLUME = 1e-6  # angstrom^3; of a cell
MIN_LENGTH = 1e-6  # angstrom; of a lattice vector
MAX_LENGTH = 1e6  # angstrom; of a lattice vector, and of the distance from the origin
MIN_PLANE_DISTANCE = 0.1  # angstrom; between lattice planes of a periodic cell
MIN_ATOM_VOLUME = 0.1  # angstrom^3 per atom; metallic hydrogen has about 1
FORCE_BOUND = 1e5  # eV/angstrom; two carbon nuclei have such forces at 0.07 angstrom
STRESS_BOUND = 1e3  # eV/angstrom^3, 160,000 GPa
Mask = NDArray[np.bool_]
Finding = tuple[Mask, str, Callable[[int], str]]  # mask of faulty structures, kind, and reason for a structure's index


def check_structures(
    table: StructureTable, *, source: DatasetSource | None, max_force: float = MAX_FORCE
) -> tuple[StructureTable, list[RejectedStructure]]:
    """Check all structures of a table.

    A structure without an energy, or without forces in a table where others have forces, is rejected as "unlabelled";
    a stress may be absent.

    Args:
        table: The structures.
        source: The dataset, which defines the expected units and energies; None if these are not checked.
        max_force: Larger forces are rejected, eV/angstrom.

    Returns:
        The usable structures in their order, and for each other structure a rejection with its first fault.

    Raises:
        InputError: The shapes of columns do not match.
    """
    _check_shapes(table)
    faults: list[RejectedStructure] = []
    for stage in (
        _check_identity,
        lambda f: _check_bounds(f, max(FORCE_BOUND, max_force)),
        lambda f: _check_values(f, max_force),
        lambda f: _check_plausibility(f, source),
    ):
        if len(table):
            table, rejected = _reject(table, list(stage(table)))
            faults += rejected
    return table, faults


def _reject(table: StructureTable, findings: Sequence[Finding]) -> tuple[StructureTable, list[RejectedStructure]]:
    relevant = [finding for finding in findings if finding[0].any()]
    if not relevant:
        return table, []
    is_faulty: Mask = np.any([mask for mask, _, _ in relevant], axis=0)
    faults = []
    for k in np.flatnonzero(is_faulty).tolist():
        _, kind, reason = next(finding for finding in relevant if finding[0][k])
        faults.append(RejectedStructure(str(table.ids[k]), kind, reason(k)))
    return table[~is_faulty], faults


def _check_shapes(table: StructureTable) -> None:
    g, n = len(table), int(table.sizes.sum())
    expected = {
        "ids": (g,), "groups": (g,), "numbers": (n,), "positions": (n, 3), "energy": (g,), "cell": (g, 3, 3),
        "periodic": (g, 3), "charge": (g,), "multiplicity": (g,), "forces": (n, 3), "stress": (g, 3, 3),
    }  # fmt: skip
    for name, shape in expected.items():
        column = getattr(table, name)
        if column is not None and column.shape != shape:
            where = f"block from {table.ids[0]}" if len(table.ids) else "empty block"
            raise InputError(f"{where}: the shape of {name} is {column.shape}, expected {shape}")


def _check_identity(table: StructureTable) -> Iterator[Finding]:
    yield table.sizes <= 0, "empty", lambda k: "no atoms"
    ids = table.ids.tolist()
    if len(set(ids)) < len(ids):
        is_repeated = np.ones(len(ids), dtype=bool)
        is_repeated[np.unique(table.ids, return_index=True)[1]] = False
        yield is_repeated, "duplicate", lambda k: "an earlier structure has the same id"


def _check_bounds(table: StructureTable, max_force: float) -> Iterator[Finding]:
    """Find values that are so large that later checks would overflow; NaN is checked later."""
    starts = table.ends - table.sizes
    far = _exceeds(table.positions, MAX_LENGTH)
    if far.any():
        yield (
            _any_atom(far, starts),
            "out of bounds",
            lambda k: f"atom {_find_first_atom(table, far, k)} is farther than {MAX_LENGTH:g} angstrom from the origin",
        )
    cell_reason = f"a lattice vector of more than {MAX_LENGTH:g} angstrom"
    yield _exceeds(table.cell, MAX_LENGTH), "out of bounds", lambda k: cell_reason
    if table.forces is not None:
        yield (
            _any_atom(_exceeds(table.forces, max_force), starts),
            "out of bounds",
            lambda k: f"a force of more than {max_force:g} eV/angstrom; damaged, or in other units",
        )
    if table.stress is not None:
        reason = f"a stress of more than {STRESS_BOUND:g} eV/angstrom^3"
        yield _exceeds(table.stress, STRESS_BOUND), "out of bounds", lambda k: reason


def _exceeds(values: Array, bound: float) -> Mask:
    """Return for each row of [k, ...] whether it has a finite value beyond the bound, [k]."""
    return np.array((np.isfinite(values) & (np.abs(values) > bound)).reshape(len(values), -1).any(axis=1), dtype=bool)


def _find_first_atom(table: StructureTable, atoms: Mask, k: int) -> int:
    """Return the index, within structure k, of its first atom for which the mask is true."""
    stop = int(table.ends[k])
    return int(np.flatnonzero(atoms[stop - int(table.sizes[k]) : stop])[0])


def _check_values(table: StructureTable, max_force: float) -> Iterator[Finding]:
    starts = table.ends - table.sizes
    is_invalid = (table.numbers < 1) | (table.numbers > MAX_ATOMIC_NUMBER)
    if is_invalid.any():
        yield (
            _any_atom(is_invalid, starts),
            "atomic number",
            lambda k: f"{_find_invalid_number(table, k)} is not an atomic number (1..{MAX_ATOMIC_NUMBER})",
        )
    for name, values in (("position", table.positions), ("forces", table.forces)):
        if values is not None and not np.isfinite(values).all():
            yield from _check_finite(name, values, starts)
    yield np.isnan(table.energy), "unlabelled", lambda k: "no energy"
    yield np.isinf(table.energy), "not finite", lambda k: "the energy is not finite"
    yield _not_all(np.isfinite(table.cell)), "not finite", lambda k: "the cell is not finite"
    if table.stress is not None:
        some = _not_all(np.isnan(table.stress))
        yield _not_all(np.isfinite(table.stress)) & some, "not finite", lambda k: "the stress is not finite"
    if table.forces is not None:
        with np.errstate(over="ignore"):
            squared = np.einsum("ij,ij->i", table.forces, table.forces)
        if squared.max() >= max_force**2 or np.isnan(squared).any():
            largest = np.sqrt(np.maximum.reduceat(np.nan_to_num(squared, posinf=np.inf), starts))
            yield (
                largest >= max_force,
                "force norm",
                lambda k: f"a force of {largest[k]:.6g} eV/angstrom, {max_force:g} or more",
            )
    if table.periodic.any():
        yield _has_no_volume(table), "no volume", lambda k: "periodic, but its cell has no volume"
        yield (
            _is_crowded(table),
            "crowded",
            lambda k: f"its cell is flat, or has less than {MIN_ATOM_VOLUME:g} angstrom^3 per atom",
        )


def _find_invalid_number(table: StructureTable, k: int) -> int:
    """Return the first entry in the atomic numbers of structure k that is not an atomic number."""
    stop = int(table.ends[k])
    atoms = table.numbers[stop - int(table.sizes[k]) : stop]
    return int(atoms[(atoms < 1) | (atoms > MAX_ATOMIC_NUMBER)][0])


def _check_finite(name: str, values: Array, starts: NDArray[np.int64]) -> Iterator[Finding]:
    rows = _not_all(np.isfinite(values))
    if name == "forces":
        yield ~_any_atom(_not_all(np.isnan(values)), starts), "unlabelled", lambda k: "no forces"
    ends = np.append(starts[1:], len(rows))
    yield (
        _any_atom(rows, starts),
        "not finite",
        lambda k: f"{name} of atom {int(np.flatnonzero(rows[starts[k] : ends[k]])[0])}: not finite",
    )


def _not_all(values: Mask) -> Mask:
    """Return for each row of [k, ...] whether it has a false value, [k]."""
    return np.array(~values.reshape(len(values), -1).all(axis=1), dtype=bool)


def _any_atom(atoms: Mask, starts: NDArray[np.int64]) -> Mask:
    """Return whether the mask is true for any atom of each structure, [g]; no structure is empty."""
    return np.asarray(np.logical_or.reduceat(atoms, starts), dtype=bool)


def _has_no_volume(table: StructureTable) -> Mask:
    cell = np.nan_to_num(table.cell)
    volume = np.abs(np.linalg.det(cell))
    lengths = np.linalg.norm(cell, axis=2)
    short = ((lengths < MIN_LENGTH) & table.periodic).any(axis=1)
    return short | (table.periodic.all(axis=1) & (volume < MIN_VOLUME))


def _is_crowded(table: StructureTable) -> Mask:
    """Return for each periodic cell whether it is so small or flat that atoms have thousands of neighbours, [g]."""
    cell = np.nan_to_num(table.cell)
    volume = np.abs(np.linalg.det(cell))
    full = table.periodic.all(axis=1) & (volume >= MIN_VOLUME)
    faces = np.linalg.norm(np.cross(np.roll(cell, -1, axis=1), np.roll(cell, -2, axis=1)), axis=2)
    flat = (faces * MIN_PLANE_DISTANCE > volume[:, None]).any(axis=1)
    return np.asarray(full & (flat | (volume < MIN_ATOM_VOLUME * table.sizes)), dtype=bool)


def _check_plausibility(table: StructureTable, source: DatasetSource | None) -> Iterator[Finding]:
    yield (
        _find_coincident(table),
        "coincident",
        lambda k: f"two atoms within {COINCIDENT_ANGSTROM:g} angstrom of each other",
    )
    if source is None:
        return
    wrong, reason = find_implausible_energies(table, source)
    yield wrong, "units", reason
    lengths = describe_implausible_lengths(table, source) if source.molecular else None
    if lengths:
        yield np.ones(len(table), dtype=bool), "units", lambda k: lengths


def _find_coincident(table: StructureTable) -> Mask:
    """Return for each structure whether two of its atoms coincide, [g].

    Coincident atoms have the same projection on any line, so only structures with two nearly equal projections are
    searched pair by pair. Periodic images are not considered.
    """
    projection = table.positions @ np.array([0.5363, 0.6217, 0.5706])
    projection -= projection.min()
    span = float(projection.max()) + 1.0
    order = np.sort(table.owner * span + projection)
    near = np.flatnonzero(np.diff(order) < COINCIDENT_ANGSTROM)
    is_coincident = np.zeros(len(table), dtype=bool)
    for k in np.unique((order[near] // span).astype(np.int64)).tolist():
        stop = int(table.ends[k])
        points = table.positions[stop - int(table.sizes[k]) : stop]
        distances = np.linalg.norm(points[:, None] - points[None], axis=2)
        is_coincident[k] = bool((distances[np.triu_indices(len(points), 1)] < COINCIDENT_ANGSTROM).any())
    return is_coincident
