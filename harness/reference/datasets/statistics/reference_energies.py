"""Reference energies: the part of a dataset's energies that its compositions explain, fitted in constant memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any

import numpy as np
from ase.data import chemical_symbols
from numpy.typing import NDArray

from harness.reference.data.structure import MAX_ATOMIC_NUMBER, Array
from harness.reference.data.structure_table import Frames
from harness.reference.errors import InputError

ELEMENTS = MAX_ATOMIC_NUMBER + 1
# Of singular values to the largest, the columns having been scaled to length 1: an element is not cut for being rare.
# Rounding reaches 1e-13; compositions that differ at all differ by more than 1e-6 of their length.
RANK_CUTOFF = 1e-6
# Share of an element in the directions cut, above which its own energy is open.
OPEN_SHARE = 1e-4


class State(IntEnum):
    """What a dataset says of an element's energy: nothing, only sums with others', or its value."""

    ABSENT = 0
    UNDETERMINED = 1
    FITTED = 2


def compositions(frames: Frames) -> NDArray[np.int64]:
    """Atoms of each element in each structure, [g, 119], by atomic number."""
    places = frames.owner * ELEMENTS + frames.numbers
    return np.bincount(places, minlength=len(frames) * ELEMENTS).reshape(-1, ELEMENTS)


@dataclass(frozen=True)
class References:
    """Energies of elements that add up to a structure's, as well as they can.

    energy_ev: [119], NaN where absent; of undetermined elements the smallest that fit, right only in sums as the data
    has them. state: [119]. rank: directions of composition that the data tells apart. structures: those with energies.
    rmse_ev_per_atom: over all of them. mae_ev_per_atom: the same, NaN unless they were gone through twice.
    """

    energy_ev: Array
    state: NDArray[np.int64]
    rank: int
    structures: int
    rmse_ev_per_atom: float
    mae_ev_per_atom: float = float("nan")

    def of(self, frames: Frames) -> Array:
        """The sum of the references of each structure, [g], eV; NaN where an element has none."""
        owner, value = frames.owner, self.energy_ev[frames.numbers]
        return np.asarray(np.bincount(owner, weights=value, minlength=len(frames)), dtype=np.float64)

    def residual(self, frames: Frames) -> Array:
        """Energy per atom beyond the references, [g], eV/atom; NaN where there is no energy or no reference."""
        return (frames.energy - self.of(frames)) / frames.sizes

    def knows(self, numbers: NDArray[np.int64]) -> bool:
        """Whether the dataset holds all of these elements."""
        return bool((self.state[numbers] > State.ABSENT).all())

    def elements(self, state: State) -> list[str]:
        """Symbols of the elements in a state, by atomic number."""
        return [chemical_symbols[z] for z in np.flatnonzero(self.state[1:] == state) + 1]

    def as_json(self) -> dict[str, Any]:
        """Plain data: energies by symbol, and which of them are not determined by themselves."""
        present = np.flatnonzero(self.state > State.ABSENT)
        mae, rmse = (None if np.isnan(x) else x for x in (self.mae_ev_per_atom, self.rmse_ev_per_atom))
        return {
            "energy_ev": {chemical_symbols[z]: float(self.energy_ev[z]) for z in present},
            "undetermined": self.elements(State.UNDETERMINED),
            "absent_count": MAX_ATOMIC_NUMBER - len(present),
            "rank": self.rank,
            "structures": self.structures,
            "mae_ev_per_atom": mae,
            "rmse_ev_per_atom": rmse,
        }


def from_json(plain: dict[str, Any]) -> References:
    """The references that as_json told of."""
    energy, state = np.full(ELEMENTS, np.nan), np.zeros(ELEMENTS, dtype=np.int64)
    for symbol, value in plain["energy_ev"].items():
        z = chemical_symbols.index(symbol)
        energy[z] = value
        state[z] = State.UNDETERMINED if symbol in plain["undetermined"] else State.FITTED
    rmse, mae = (np.nan if plain[f"{k}_ev_per_atom"] is None else plain[f"{k}_ev_per_atom"] for k in ("rmse", "mae"))
    return References(energy, state, plain["rank"], plain["structures"], rmse, mae)


class Fit:
    """Least squares of energy per atom on composition per atom, block by block.

    What is kept is the triangular factor of all rows so far, at most [120, 120]: normal equations would square the
    condition. Any order and any division into blocks or workers gives the same up to rounding. Source: Demmel,
    Grigori, Hoemmen and Langou, SIAM J. Sci. Comput. 34, A206 (2012) (TSQR).
    """

    def __init__(self, *, per_atom: bool = True) -> None:
        """per_atom: whether both are divided by the atoms; False: large structures weigh more, as in HydraGNN's fit."""
        self.factor: Array = np.zeros((0, ELEMENTS + 1))
        self.structures = 0
        self._per_atom = per_atom

    def add(self, frames: Frames) -> None:
        """Take in a block; structures without an energy are passed over, composition and all."""
        known = np.isfinite(frames.energy)
        rows = np.column_stack([compositions(frames), frames.energy])[known]
        self._append(rows / frames.sizes[known, None] if self._per_atom else rows, int(known.sum()))

    def merge(self, other: Fit) -> None:
        """Take in what another worker has."""
        self._append(other.factor, other.structures)

    def _append(self, rows: Array, structures: int) -> None:
        both = np.concatenate([self.factor, rows])
        used = both.any(axis=0)  # a few of 120 columns, in most datasets
        small = np.linalg.qr(both[:, used], mode="r")
        self.factor = np.zeros((len(small), ELEMENTS + 1))
        self.factor[:, used] = small
        self.structures += structures

    def solved(self) -> References:
        """The references; raises InputError if no structure had an energy."""
        if not self.structures:
            raise InputError("reference energies: no structure has an energy")
        length = np.linalg.norm(self.factor[:, :ELEMENTS], axis=0)
        present = np.flatnonzero(length > 0)
        scaled, energy = self.factor[:, present] / length[present], self.factor[:, ELEMENTS]
        left, values, right = np.linalg.svd(scaled, full_matrices=True)
        rank = int((values > RANK_CUTOFF * values[0]).sum())
        solution = right[:rank].T @ ((left[:, :rank].T @ energy) / values[:rank]) / length[present]
        cut = right[rank:].T
        open_directions = cut / length[present, None]
        # Of all solutions that fit alike, the smallest: cut directions are free to move along.
        solution -= open_directions @ np.linalg.lstsq(open_directions, solution, rcond=None)[0]
        state = np.full(ELEMENTS, State.ABSENT, dtype=np.int64)
        state[present] = np.where(np.linalg.norm(cut, axis=1) > OPEN_SHARE, State.UNDETERMINED, State.FITTED)
        energies = np.full(ELEMENTS, np.nan)
        energies[present] = solution
        missed = np.linalg.norm(self.factor[:, present] @ solution - energy)
        return References(energies, state, rank, self.structures, float(missed / np.sqrt(self.structures)))


def fit(blocks: Callable[[], Iterable[Frames]]) -> References:
    """The references of all blocks, which are gone through twice: to fit, and for the mean absolute error."""
    found = Fit()
    for frames in blocks():
        found.add(frames)
    references = found.solved()
    total = 0.0
    for frames in blocks():
        total += float(np.nansum(np.abs(references.residual(frames))))
    return replace(references, mae_ev_per_atom=total / references.structures)
