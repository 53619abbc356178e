"""What candidates may be asked to pass: charges that can balance, and not being another candidate turned round."""

from __future__ import annotations

from functools import cache
from itertools import permutations
from typing import Protocol

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols
from ase.utils.structure_comparator import SymmetryEquivalenceCheck
from numpy.typing import NDArray

from harness.reference.errors import InputError
from harness.reference.screening.prototypes import Prototype
from harness.reference.screening.space import Run
from harness.reference.screening.topology import closest
from harness.reference.structures import MAX_ATOMIC_NUMBER, Array

STAND_INS = ("H", "He", "Li", "Be")  # for species 0 to 3 when structures are compared
TIGHT = {"angle_tol": 0.1, "ltol": 0.005, "stol": 0.005, "vol_tol": 0.01}
SAME_ANGSTROM = 1e-3


class Filter(Protocol):
    """One question to candidates."""

    name: str

    def passes(self, prototype: Prototype, run: Run) -> NDArray[np.bool_]:
        """[m], of each candidate of a run."""
        ...


class ChargeBalance:
    """Oxidation states that occur in the ICSD can sum to zero, no cation being more electronegative than an anion.

    States and Pauling electronegativities are smact's (Davies et al., J. Open Source Softw. 4, 1361 (2019)); raises
    InputError where smact is not installed. A single element passes.
    """

    name = "charge_balance"

    def __init__(self) -> None:
        self.states, self.electronegativity = _smact_tables()

    def passes(self, prototype: Prototype, run: Run) -> NDArray[np.bool_]:
        """[m]; elements without known states balance nothing."""
        if prototype.species == 1:
            return np.ones(len(run), dtype=bool)
        chosen, back = np.unique(run.species, axis=0, return_inverse=True)
        return self._balanced(prototype.counts, chosen)[back.reshape(-1)]

    def _balanced(self, counts: NDArray[np.int64], species: NDArray[np.int64]) -> NDArray[np.bool_]:
        """counts [k], species [m, k] -> [m]: whether any choice of states will do."""
        m, k = species.shape
        shape = (m,) + (1,) * k
        total = np.zeros(shape)
        cation, anion = np.full(shape, -np.inf), np.full(shape, np.inf)
        for j in range(k):
            states = self.states[species[:, j]]  # [m, S], NaN where there are fewer
            along = (m,) + (1,) * j + (states.shape[1],) + (1,) * (k - j - 1)
            charge = states.reshape(along)
            strength = np.broadcast_to(self.electronegativity[species[:, j], None], states.shape).reshape(along)
            total = total + counts[j] * charge
            cation = np.maximum(cation, np.where(charge > 0, strength, -np.inf))
            anion = np.minimum(anion, np.where(charge < 0, strength, np.inf))
        found = (total == 0) & (cation <= anion) & np.isfinite(cation) & np.isfinite(anion)
        return np.asarray(found.reshape(m, -1).any(axis=1))


@cache
def _smact_tables() -> tuple[Array, Array]:
    """Oxidation states [119, S], NaN where an element has fewer, and electronegativities [119], NaN where unknown."""
    try:
        import smact
    except ImportError:
        raise InputError("the filter charge_balance needs smact: pip install 'gfm-harness[screening]'") from None
    known = smact.element_dictionary()
    listed = {z: known[s].oxidation_states or [] for z, s in enumerate(chemical_symbols) if s in known}
    states = np.full((MAX_ATOMIC_NUMBER + 1, max(map(len, listed.values()))), np.nan)
    strength = np.full(MAX_ATOMIC_NUMBER + 1, np.nan)
    for z, values in listed.items():
        states[z, : len(values)] = values
        value = known[chemical_symbols[z]].pauling_eneg
        strength[z] = np.nan if value is None else value
    return states, strength


class OncePerSymmetry:
    """Of candidates that are the same crystal, their species having changed places, the first in order passes."""

    name = "duplicates"

    def passes(self, prototype: Prototype, run: Run) -> NDArray[np.bool_]:
        """[m]."""
        first = np.ones(len(run), dtype=bool)
        for exchange in exchanges(prototype):
            other = run.species[:, exchange]
            differs = other != run.species
            place = differs.argmax(axis=1)
            rows = np.arange(len(run))
            first &= ~differs.any(axis=1) | (run.species[rows, place] < other[rows, place])
        return first


@cache
def exchanges(prototype: Prototype) -> tuple[tuple[int, ...], ...]:
    """Exchanges of species that leave the crystal as it is, up to a motion of space; without the trivial one."""
    least, counts = closest(prototype), prototype.counts
    found = []
    for exchange in permutations(range(prototype.species)):
        places = list(exchange)
        if places == sorted(places) or (counts[places] != counts).any():
            continue
        if not np.allclose(least[np.ix_(places, places)], least, atol=SAME_ANGSTROM):
            continue
        check = SymmetryEquivalenceCheck(**TIGHT)
        if check.compare(_atoms(prototype, prototype.slots), _atoms(prototype, np.array(places)[prototype.slots])):
            found.append(exchange)
    return tuple(found)


def _atoms(prototype: Prototype, slots: NDArray[np.int64]) -> Atoms:
    symbols = [STAND_INS[k] for k in slots]
    return Atoms(symbols, scaled_positions=prototype.fractions, cell=prototype.cell, pbc=True)


FILTERS: dict[str, type[ChargeBalance | OncePerSymmetry]] = {f.name: f for f in (ChargeBalance, OncePerSymmetry)}
