"""The checks of every structure that goes into a store, for whole tables at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from harness.reference.data.structure import MAX_ATOMIC_NUMBER, Array
from harness.reference.data.structure_table import RejectedStructure, StructureTable
from harness.reference.datasets.catalog import DatasetSource
from harness.reference.datasets.parsing.plausibility import find_implausible_energies, find_implausible_lengths
from harness.reference.errors import InputError

MAX_FORCE = 1000.0  # eV/angstrom: the bound of the original preprocessing
COINCIDENT_ANGSTROM = 1e-4  # angstrom
MIN_VOLUME = 1e-6  # angstrom^3
MAX_LENGTH = 1e6  # angstrom from the origin, and of a lattice vector
MIN_PLANE_DISTANCE = 0.1  # angstrom between lattice planes of a periodic cell
MIN_ATOM_VOLUME = 0.1  # angstrom^3 for each atom; metallic hydrogen has about 1
FORCE_BOUND = 1e5  # eV/angstrom: carbon nuclei 0.07 angstrom apart
STRESS_BOUND = 1e3  # eV/angstrom^3, 160,000 GPa
Mask = NDArray[np.bool_]
Finding = tuple[Mask, str, Callable[[int], str]]  # structures at fault, kind, reason for one of them


def check_structures(
    frames: StructureTable, *, source: DatasetSource | None, max_force: float = MAX_FORCE
) -> tuple[StructureTable, list[RejectedStructure]]:
    """Return the usable structures in their order, and for each other one a rejection with its first fault.

    source: defines the expected units and energy scale; None: plausibility is not checked. A structure without an
    energy, or without forces in a block where others have them, is rejected with kind "unlabelled"; stress may be
    absent. Raises InputError for columns whose lengths disagree.
    """
    _check_shapes(frames)
    faults: list[RejectedStructure] = []
    for stage in (
        _check_identity,
        lambda f: _check_bounds(f, max(FORCE_BOUND, max_force)),
        lambda f: _check_values(f, max_force),
        lambda f: _check_plausibility(f, source),
    ):
        if len(frames):
            frames, rejected = _reject(frames, list(stage(frames)))
            faults += rejected
    return frames, faults


def _reject(frames: StructureTable, findings: Sequence[Finding]) -> tuple[StructureTable, list[RejectedStructure]]:
    relevant = [finding for finding in findings if finding[0].any()]
    if not relevant:
        return frames, []
    is_faulty: Mask = np.any([mask for mask, _, _ in relevant], axis=0)
    faults = []
    for k in np.flatnonzero(is_faulty).tolist():
        _, kind, reason = next(finding for finding in relevant if finding[0][k])
        faults.append(RejectedStructure(str(frames.ids[k]), kind, reason(k)))
    return frames[~is_faulty], faults


def _check_shapes(frames: StructureTable) -> None:
    g, n = len(frames), int(frames.sizes.sum())
    expected = {
        "ids": (g,), "groups": (g,), "numbers": (n,), "positions": (n, 3), "energy": (g,), "cell": (g, 3, 3),
        "periodic": (g, 3), "charge": (g,), "multiplicity": (g,), "forces": (n, 3), "stress": (g, 3, 3),
    }  # fmt: skip
    for name, shape in expected.items():
        column = getattr(frames, name)
        if column is not None and column.shape != shape:
            where = f"block from {frames.ids[0]}" if len(frames.ids) else "empty block"
            raise InputError(f"{where}: {name} have shape {column.shape}, expected {shape}")


def _check_identity(frames: StructureTable) -> Iterator[Finding]:
    yield frames.sizes <= 0, "empty", lambda k: "no atoms"
    ids = frames.ids.tolist()
    if len(set(ids)) < len(ids):
        is_repeated = np.ones(len(ids), dtype=bool)
        is_repeated[np.unique(frames.ids, return_index=True)[1]] = False
        yield is_repeated, "duplicate", lambda k: "the same id stands for an earlier structure"


def _check_bounds(frames: StructureTable, max_force: float) -> Iterator[Finding]:
    """Yield structures with values so large that later checks would overflow; NaN is checked later."""
    starts = frames.ends - frames.sizes
    far = _exceeds(frames.positions, MAX_LENGTH)
    if far.any():
        yield (
            _any_atom(far, starts),
            "out of bounds",
            lambda k: (
                f"atom {_find_first_atom(frames, far, k)} is farther than {MAX_LENGTH:g} angstrom from the origin"
            ),
        )
    wide = f"a lattice vector of more than {MAX_LENGTH:g} angstrom"
    yield _exceeds(frames.cell, MAX_LENGTH), "out of bounds", lambda k: wide
    if frames.forces is not None:
        yield (
            _any_atom(_exceeds(frames.forces, max_force), starts),
            "out of bounds",
            lambda k: f"a force of more than {max_force:g} eV/angstrom; damaged, or in other units",
        )
    if frames.stress is not None:
        reason = f"a stress of more than {STRESS_BOUND:g} eV/angstrom^3"
        yield _exceeds(frames.stress, STRESS_BOUND), "out of bounds", lambda k: reason


def _exceeds(values: Array, bound: float) -> Mask:
    """Return which rows of [k, ...] have a finite value beyond the bound, [k]."""
    return np.array((np.isfinite(values) & (np.abs(values) > bound)).reshape(len(values), -1).any(axis=1), dtype=bool)


def _find_first_atom(frames: StructureTable, atoms: Mask, k: int) -> int:
    """Return the first of structure k's atoms that the mask holds for, counted within it."""
    stop = int(frames.ends[k])
    return int(np.flatnonzero(atoms[stop - int(frames.sizes[k]) : stop])[0])


def _check_values(frames: StructureTable, max_force: float) -> Iterator[Finding]:
    starts = frames.ends - frames.sizes
    is_invalid = (frames.numbers < 1) | (frames.numbers > MAX_ATOMIC_NUMBER)
    if is_invalid.any():
        yield (
            _any_atom(is_invalid, starts),
            "atomic number",
            lambda k: f"{_find_invalid_number(frames, k)} is not an atomic number (1..{MAX_ATOMIC_NUMBER})",
        )
    for name, values in (("position", frames.positions), ("forces", frames.forces)):
        if values is not None and not np.isfinite(values).all():
            yield from _check_finite(name, values, starts)
    yield np.isnan(frames.energy), "unlabelled", lambda k: "no energy"
    yield np.isinf(frames.energy), "not finite", lambda k: "the energy is not finite"
    yield _not_all(np.isfinite(frames.cell)), "not finite", lambda k: "the cell is not finite"
    if frames.stress is not None:
        some = _not_all(np.isnan(frames.stress))
        yield _not_all(np.isfinite(frames.stress)) & some, "not finite", lambda k: "the stress is not finite"
    if frames.forces is not None:
        with np.errstate(over="ignore"):
            squared = np.einsum("ij,ij->i", frames.forces, frames.forces)
        if squared.max() >= max_force**2 or np.isnan(squared).any():
            largest = np.sqrt(np.maximum.reduceat(np.nan_to_num(squared, posinf=np.inf), starts))
            yield (
                largest >= max_force,
                "force norm",
                lambda k: f"a force of {largest[k]:.6g} eV/angstrom, {max_force:g} or more",
            )
    if frames.periodic.any():
        yield _has_no_volume(frames), "no volume", lambda k: "periodic, but its cell has no volume"
        yield (
            _is_crowded(frames),
            "crowded",
            lambda k: f"its cell is flat, or has less than {MIN_ATOM_VOLUME:g} angstrom^3 an atom",
        )


def _find_invalid_number(frames: StructureTable, k: int) -> int:
    """Return the first atomic number of structure k that is not an element's."""
    stop = int(frames.ends[k])
    atoms = frames.numbers[stop - int(frames.sizes[k]) : stop]
    return int(atoms[(atoms < 1) | (atoms > MAX_ATOMIC_NUMBER)][0])


def _check_finite(name: str, values: Array, starts: NDArray[np.int64]) -> Iterator[Finding]:
    rows = _not_all(np.isfinite(values))
    if name == "forces":
        yield ~_any_atom(_not_all(np.isnan(values)), starts), "unlabelled", lambda k: "no forces"
    ends = np.append(starts[1:], len(rows))
    yield (
        _any_atom(rows, starts),
        "not finite",
        lambda k: f"{name} of atom {int(np.flatnonzero(rows[starts[k] : ends[k]])[0])} not finite",
    )


def _not_all(values: Mask) -> Mask:
    """Return which rows of [k, ...] are not all true, [k]."""
    return np.array(~values.reshape(len(values), -1).all(axis=1), dtype=bool)


def _any_atom(atoms: Mask, starts: NDArray[np.int64]) -> Mask:
    """Return whether the mask is true for any atom of each structure, [g]; no structure is empty."""
    return np.asarray(np.logical_or.reduceat(atoms, starts), dtype=bool)


def _has_no_volume(frames: StructureTable) -> Mask:
    cell = np.nan_to_num(frames.cell)
    volume = np.abs(np.linalg.det(cell))
    along = np.linalg.norm(cell, axis=2)
    short = ((along < MIN_VOLUME) & frames.periodic).any(axis=1)
    return short | (frames.periodic.all(axis=1) & (volume < MIN_VOLUME))


def _is_crowded(frames: StructureTable) -> Mask:
    """Return which periodic cells are so small or flat that every atom has thousands of neighbours, [g]."""
    cell = np.nan_to_num(frames.cell)
    volume = np.abs(np.linalg.det(cell))
    full = frames.periodic.all(axis=1) & (volume >= MIN_VOLUME)
    faces = np.linalg.norm(np.cross(np.roll(cell, -1, axis=1), np.roll(cell, -2, axis=1)), axis=2)
    flat = (faces * MIN_PLANE_DISTANCE > volume[:, None]).any(axis=1)
    return np.asarray(full & (flat | (volume < MIN_ATOM_VOLUME * frames.sizes)), dtype=bool)


def _check_plausibility(frames: StructureTable, source: DatasetSource | None) -> Iterator[Finding]:
    yield (
        _find_coincident(frames),
        "coincident",
        lambda k: f"two atoms within {COINCIDENT_ANGSTROM:g} angstrom of each other",
    )
    if source is None:
        return
    wrong, reason = find_implausible_energies(frames, source)
    yield wrong, "units", reason
    lengths = find_implausible_lengths(frames, source) if source.molecular else None
    if lengths:
        yield np.ones(len(frames), dtype=bool), "units", lambda k: lengths


def _find_coincident(frames: StructureTable) -> Mask:
    """Return structures with two atoms in one place, [g].

    Coincident atoms have the same projection on any line, so only neighbours in the sorted projections are compared.
    """
    along = frames.positions @ np.array([0.5363, 0.6217, 0.5706])
    along -= along.min()
    span = float(along.max()) + 1.0
    order = np.sort(frames.owner * span + along)
    near = np.flatnonzero(np.diff(order) < COINCIDENT_ANGSTROM)
    is_coincident = np.zeros(len(frames), dtype=bool)
    for k in np.unique((order[near] // span).astype(np.int64)).tolist():
        stop = int(frames.ends[k])
        points = frames.positions[stop - int(frames.sizes[k]) : stop]
        apart = np.linalg.norm(points[:, None] - points[None], axis=2)
        is_coincident[k] = bool((apart[np.triu_indices(len(points), 1)] < COINCIDENT_ANGSTROM).any())
    return is_coincident
