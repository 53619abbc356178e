"""Reference energies: one energy per element, fitted to the energies of a dataset in constant memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any

import numpy as np
from ase.data import chemical_symbols
from numpy.typing import NDArray

from harness.reference.data.structure import MAX_ATOMIC_NUMBER, Array
from harness.reference.data.structure_table import StructureTable
from harness.reference.errors import InputError

ELEMENT_SLOTS = MAX_ATOMIC_NUMBER + 1
# Singular values below this fraction of the largest one count as zero. Columns are scaled to length 1 first, so that
# rare elements do not fall below it. Rounding errors are about 1e-13, real differences of compositions above 1e-6.
RANK_CUTOFF = 1e-6
# An element is undetermined if the norm of its components along directions with singular value zero exceeds this.
UNDETERMINED_SHARE = 1e-4


class ElementState(IntEnum):
    """How well a dataset determines an element's energy: not at all, only in sums with other elements, or uniquely."""

    ABSENT = 0
    UNDETERMINED = 1
    FITTED = 2


def count_elements(table: StructureTable) -> NDArray[np.int64]:
    """Return the number of atoms of each element in each structure, [g, 119], by atomic number."""
    bins = table.owner * ELEMENT_SLOTS + table.numbers
    return np.bincount(bins, minlength=len(table) * ELEMENT_SLOTS).reshape(-1, ELEMENT_SLOTS)


@dataclass(frozen=True)
class References:
    """Reference energies, whose sum over the atoms of a structure approximates its energy.

    Attributes:
        energy_ev: [119] by atomic number, NaN if the element is absent. The energies of undetermined elements are those
            of smallest norm; only their sums over compositions that occur in the data are meaningful.
        state: [119] ElementState of each element.
        rank: Number of independent compositions.
        structures: Number of structures with energies.
        rmse_ev_per_atom: Root mean square error of these structures; NaN if total energies were fitted.
        mae_ev_per_atom: Mean absolute error of these structures; NaN unless the data were read a second time.
    """

    energy_ev: Array
    state: NDArray[np.int64]
    rank: int
    structures: int
    rmse_ev_per_atom: float
    mae_ev_per_atom: float = float("nan")

    def sum_energies(self, table: StructureTable) -> Array:
        """Return the sum of the reference energies over the atoms of each structure, [g] eV.

        The sum is NaN if an element has no reference energy.
        """
        owner, value = table.owner, self.energy_ev[table.numbers]
        return np.asarray(np.bincount(owner, weights=value, minlength=len(table)), dtype=np.float64)

    def residual(self, table: StructureTable) -> Array:
        """Return the energy minus the reference energies, per atom, [g] eV/atom; NaN if one of them is missing."""
        return (table.energy - self.sum_energies(table)) / table.sizes

    def knows(self, numbers: NDArray[np.int64]) -> bool:
        """Return whether all of these elements occur in the dataset."""
        return bool((self.state[numbers] > ElementState.ABSENT).all())

    def elements(self, state: ElementState) -> list[str]:
        """Return the symbols of the elements in a state, in the order of atomic numbers."""
        return [chemical_symbols[z] for z in np.flatnonzero(self.state[1:] == state) + 1]

    def to_json(self) -> dict[str, Any]:
        """Return plain data: energies by symbol, and the elements whose energies are undetermined."""
        present = np.flatnonzero(self.state > ElementState.ABSENT)
        mae, rmse = (None if np.isnan(x) else x for x in (self.mae_ev_per_atom, self.rmse_ev_per_atom))
        return {
            "energy_ev": {chemical_symbols[z]: float(self.energy_ev[z]) for z in present},
            "undetermined": self.elements(ElementState.UNDETERMINED),
            "absent_count": MAX_ATOMIC_NUMBER - len(present),
            "rank": self.rank,
            "structures": self.structures,
            "mae_ev_per_atom": mae,
            "rmse_ev_per_atom": rmse,
        }


def from_json(plain: dict[str, Any]) -> References:
    """Return the references that to_json wrote."""
    energy, state = np.full(ELEMENT_SLOTS, np.nan), np.zeros(ELEMENT_SLOTS, dtype=np.int64)
    for symbol, value in plain["energy_ev"].items():
        z = chemical_symbols.index(symbol)
        energy[z] = value
        state[z] = ElementState.UNDETERMINED if symbol in plain["undetermined"] else ElementState.FITTED
    rmse, mae = (np.nan if plain[f"{k}_ev_per_atom"] is None else plain[f"{k}_ev_per_atom"] for k in ("rmse", "mae"))
    return References(
        energy, state, plain["rank"], structures=plain["structures"], rmse_ev_per_atom=rmse, mae_ev_per_atom=mae
    )


class StreamingLeastSquares:
    """The least-squares fit of energy per atom to composition per atom, table by table.

    The state is the triangular factor R of a QR decomposition of all rows so far, at most [120, 120]; the normal
    equations would square the condition number. Up to rounding, the result depends neither on the order of the tables
    nor on their division among workers.
    Source: Demmel, Grigori, Hoemmen and Langou, SIAM J. Sci. Comput. 34, A206 (2012) (TSQR).
    """

    def __init__(self, *, per_atom: bool = True) -> None:
        """Start a fit without structures.

        Args:
            per_atom: Whether energies per atom are fitted; otherwise total energies, as HydraGNN does, in whose fit
                large structures have more weight.
        """
        self.factor: Array = np.zeros((0, ELEMENT_SLOTS + 1))
        self.structures = 0
        self._per_atom = per_atom

    def add(self, table: StructureTable) -> None:
        """Add a table; structures without an energy are ignored, including their composition."""
        known = np.isfinite(table.energy)
        rows = np.column_stack([count_elements(table), table.energy])[known]
        self._append(rows / table.sizes[known, None] if self._per_atom else rows, int(known.sum()))

    def merge(self, other: StreamingLeastSquares) -> None:
        """Add the fit of another worker."""
        self._append(other.factor, other.structures)

    def _append(self, rows: Array, structures: int) -> None:
        both = np.concatenate([self.factor, rows])
        used = both.any(axis=0)  # most datasets use only a few of the 120 columns
        compact = np.linalg.qr(both[:, used], mode="r")
        self.factor = np.zeros((len(compact), ELEMENT_SLOTS + 1))
        self.factor[:, used] = compact
        self.structures += structures

    def solve(self) -> References:
        """Return the reference energies; raises InputError if no structure has an energy."""
        if not self.structures:
            raise InputError("reference energies: no structure has an energy")
        length = np.linalg.norm(self.factor[:, :ELEMENT_SLOTS], axis=0)
        present = np.flatnonzero(length > 0)
        scaled, energy = self.factor[:, present] / length[present], self.factor[:, ELEMENT_SLOTS]
        left_vectors, values, right_vectors = np.linalg.svd(scaled, full_matrices=True)
        rank = int((values > RANK_CUTOFF * values[0]).sum())
        solution = right_vectors[:rank].T @ ((left_vectors[:, :rank].T @ energy) / values[:rank]) / length[present]
        null_space = right_vectors[rank:].T
        directions = null_space / length[present, None]
        # Of all solutions that fit equally well, take the one of smallest norm.
        solution -= directions @ np.linalg.lstsq(directions, solution, rcond=None)[0]
        state = np.full(ELEMENT_SLOTS, ElementState.ABSENT, dtype=np.int64)
        state[present] = np.where(
            np.linalg.norm(null_space, axis=1) > UNDETERMINED_SHARE, ElementState.UNDETERMINED, ElementState.FITTED
        )
        energies = np.full(ELEMENT_SLOTS, np.nan)
        energies[present] = solution
        norm = np.linalg.norm(self.factor[:, present] @ solution - energy)
        rmse = float(norm / np.sqrt(self.structures)) if self._per_atom else float("nan")
        return References(energies, state, rank, self.structures, rmse)


def fit(read_tables: Callable[[], Iterable[StructureTable]]) -> References:
    """Fit reference energies to tables, which are read twice: for the fit, and for the mean absolute error."""
    solver = StreamingLeastSquares()
    for table in read_tables():
        solver.add(table)
    references = solver.solve()
    total = 0.0
    for table in read_tables():
        total += float(np.nansum(np.abs(references.residual(table))))
    return replace(references, mae_ev_per_atom=total / references.structures)
