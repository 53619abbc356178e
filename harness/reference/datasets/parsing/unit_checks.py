"""What every structure has to pass on its way into a store, whole blocks at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from harness.reference.data.structure import MAX_ATOMIC_NUMBER, Array
from harness.reference.data.structure_table import Fault, Frames
from harness.reference.datasets.catalog import Source
from harness.reference.datasets.parsing.plausibility import implausible_energies, implausible_lengths
from harness.reference.errors import InputError

MAX_FORCE = 1000.0  # eV/angstrom: the bound of the original preprocessing
SAME_PLACE = 1e-4  # angstrom
NO_VOLUME = 1e-6  # angstrom^3
FARTHEST = 1e6  # angstrom from the origin, and of a lattice vector
CLOSEST_PLANES = 0.1  # angstrom between lattice planes of a periodic cell
CLOSEST = 0.1  # angstrom^3 for each atom; metallic hydrogen has about 1
MOST_FORCE = 1e5  # eV/angstrom: carbon nuclei 0.07 angstrom apart
MOST_STRESS = 1e3  # eV/angstrom^3, 160,000 GPa
Mask = NDArray[np.bool_]
Finding = tuple[Mask, str, Callable[[int], str]]  # structures at fault, kind, reason for one of them


def check(frames: Frames, *, source: Source | None, max_force: float = MAX_FORCE) -> tuple[Frames, list[Fault]]:
    """Structures that can be used, in their order, and a fault for each of the others: the first thing wrong with it.

    source: whose units and energy scale are expected; None: plausibility is not judged. A structure without an energy,
    or without forces in a block where others have them, is a fault of kind "unlabelled"; stress may be absent.
    Raises InputError for columns whose lengths disagree.
    """
    _columns_agree(frames)
    faults: list[Fault] = []
    for stage in (
        _bookkeeping,
        lambda f: _within_bounds(f, max(MOST_FORCE, max_force)),
        lambda f: _numbers_in_order(f, max_force),
        lambda f: _plausible(f, source),
    ):
        if len(frames):
            frames, found = _sorted_out(frames, list(stage(frames)))
            faults += found
    return frames, faults


def _sorted_out(frames: Frames, findings: Sequence[Finding]) -> tuple[Frames, list[Fault]]:
    found = [finding for finding in findings if finding[0].any()]
    if not found:
        return frames, []
    bad: Mask = np.any([mask for mask, _, _ in found], axis=0)
    faults = []
    for k in np.flatnonzero(bad).tolist():
        _, kind, reason = next(finding for finding in found if finding[0][k])
        faults.append(Fault(str(frames.ids[k]), kind, reason(k)))
    return frames[~bad], faults


def _columns_agree(frames: Frames) -> None:
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


def _bookkeeping(frames: Frames) -> Iterator[Finding]:
    yield frames.sizes <= 0, "empty", lambda k: "no atoms"
    ids = frames.ids.tolist()
    if len(set(ids)) < len(ids):
        seen = np.ones(len(ids), dtype=bool)
        seen[np.unique(frames.ids, return_index=True)[1]] = False
        yield seen, "duplicate", lambda k: "the same id stands for an earlier structure"


def _within_bounds(frames: Frames, most_force: float) -> Iterator[Finding]:
    """What no structure can be, and what the arithmetic of later stages would not survive; NaN is theirs."""
    starts = frames.ends - frames.sizes
    far = _beyond(frames.positions, FARTHEST)
    if far.any():
        yield (
            _any(far, starts),
            "out of bounds",
            lambda k: f"atom {_first(frames, far, k)} is farther than {FARTHEST:g} angstrom from the origin",
        )
    wide = f"a lattice vector of more than {FARTHEST:g} angstrom"
    yield _beyond(frames.cell, FARTHEST), "out of bounds", lambda k: wide
    if frames.forces is not None:
        yield (
            _any(_beyond(frames.forces, most_force), starts),
            "out of bounds",
            lambda k: f"a force of more than {most_force:g} eV/angstrom; damaged, or in other units",
        )
    if frames.stress is not None:
        reason = f"a stress of more than {MOST_STRESS:g} eV/angstrom^3"
        yield _beyond(frames.stress, MOST_STRESS), "out of bounds", lambda k: reason


def _beyond(values: Array, bound: float) -> Mask:
    """Rows of [k, ...] with a finite value beyond the bound, [k]."""
    return np.array((np.isfinite(values) & (np.abs(values) > bound)).reshape(len(values), -1).any(axis=1), dtype=bool)


def _first(frames: Frames, atoms: Mask, k: int) -> int:
    """The first of structure k's atoms that the mask holds for, counted within it."""
    stop = int(frames.ends[k])
    return int(np.flatnonzero(atoms[stop - int(frames.sizes[k]) : stop])[0])


def _numbers_in_order(frames: Frames, max_force: float) -> Iterator[Finding]:
    starts = frames.ends - frames.sizes
    alien = (frames.numbers < 1) | (frames.numbers > MAX_ATOMIC_NUMBER)
    if alien.any():
        yield (
            _any(alien, starts),
            "atomic number",
            lambda k: f"{_atoms(frames, k)[_alien(frames, k)][0]} is not an atomic number (1..{MAX_ATOMIC_NUMBER})",
        )
    for name, values in (("position", frames.positions), ("forces", frames.forces)):
        if values is not None and not np.isfinite(values).all():
            yield from _not_finite(name, values, starts)
    yield np.isnan(frames.energy), "unlabelled", lambda k: "no energy"
    yield np.isinf(frames.energy), "not finite", lambda k: "the energy is not finite"
    yield _odd(np.isfinite(frames.cell)), "not finite", lambda k: "the cell is not finite"
    if frames.stress is not None:
        some = _odd(np.isnan(frames.stress))
        yield _odd(np.isfinite(frames.stress)) & some, "not finite", lambda k: "the stress is not finite"
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
        yield _flat(frames), "no volume", lambda k: "periodic, but its cell has no volume"
        yield (
            _crowded(frames),
            "crowded",
            lambda k: f"its cell is flat, or has less than {CLOSEST:g} angstrom^3 an atom",
        )


def _atoms(frames: Frames, k: int) -> NDArray[np.uint8]:
    stop = int(frames.ends[k])
    return frames.numbers[stop - int(frames.sizes[k]) : stop]


def _alien(frames: Frames, k: int) -> Mask:
    atoms = _atoms(frames, k)
    return (atoms < 1) | (atoms > MAX_ATOMIC_NUMBER)


def _not_finite(name: str, values: Array, starts: NDArray[np.int64]) -> Iterator[Finding]:
    rows = _odd(np.isfinite(values))
    if name == "forces":
        yield ~_any(_odd(np.isnan(values)), starts), "unlabelled", lambda k: "no forces"
    ends = np.append(starts[1:], len(rows))
    yield (
        _any(rows, starts),
        "not finite",
        lambda k: f"{name} of atom {int(np.flatnonzero(rows[starts[k] : ends[k]])[0])} not finite",
    )


def _odd(values: Mask) -> Mask:
    """Rows of [k, ...] that do not hold throughout, [k]."""
    return np.array(~values.reshape(len(values), -1).all(axis=1), dtype=bool)


def _any(atoms: Mask, starts: NDArray[np.int64]) -> Mask:
    """Whether it holds for any atom of each structure, [g]; no structure is empty."""
    return np.asarray(np.logical_or.reduceat(atoms, starts), dtype=bool)


def _flat(frames: Frames) -> Mask:
    cell = np.nan_to_num(frames.cell)
    volume = np.abs(np.linalg.det(cell))
    along = np.linalg.norm(cell, axis=2)
    short = ((along < NO_VOLUME) & frames.periodic).any(axis=1)
    return short | (frames.periodic.all(axis=1) & (volume < NO_VOLUME))


def _crowded(frames: Frames) -> Mask:
    """Periodic cells so small or so flat that every atom would have thousands of neighbours, [g]."""
    cell = np.nan_to_num(frames.cell)
    volume = np.abs(np.linalg.det(cell))
    full = frames.periodic.all(axis=1) & (volume >= NO_VOLUME)
    faces = np.linalg.norm(np.cross(np.roll(cell, -1, axis=1), np.roll(cell, -2, axis=1)), axis=2)
    flat = (faces * CLOSEST_PLANES > volume[:, None]).any(axis=1)
    return np.asarray(full & (flat | (volume < CLOSEST * frames.sizes)), dtype=bool)


def _plausible(frames: Frames, source: Source | None) -> Iterator[Finding]:
    yield _coincident(frames), "coincident", lambda k: f"two atoms within {SAME_PLACE:g} angstrom of each other"
    if source is None:
        return
    wrong, reason = implausible_energies(frames, source)
    yield wrong, "units", reason
    lengths = implausible_lengths(frames, source) if source.molecular else None
    if lengths:
        yield np.ones(len(frames), dtype=bool), "units", lambda k: lengths


def _coincident(frames: Frames) -> Mask:
    """Structures with two atoms in one place, [g].

    Atoms in one place have one projection on any line, so neighbours in the sorted projections are the only candidates.
    """
    along = frames.positions @ np.array([0.5363, 0.6217, 0.5706])
    along -= along.min()
    span = float(along.max()) + 1.0
    order = np.sort(frames.owner * span + along)
    near = np.flatnonzero(np.diff(order) < SAME_PLACE)
    found = np.zeros(len(frames), dtype=bool)
    for k in np.unique((order[near] // span).astype(np.int64)).tolist():
        stop = int(frames.ends[k])
        points = frames.positions[stop - int(frames.sizes[k]) : stop]
        apart = np.linalg.norm(points[:, None] - points[None], axis=2)
        found[k] = bool((apart[np.triu_indices(len(points), 1)] < SAME_PLACE).any())
    return found
