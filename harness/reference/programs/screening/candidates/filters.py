"""What can be asked of candidates before any model: whether charges balance, and whether they are there twice."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import product

import numpy as np
from ase.data import chemical_symbols
from numpy.typing import NDArray

from harness.reference.data.structure import MAX_ATOMIC_NUMBER, Array
from harness.reference.errors import InputError
from harness.reference.programs.screening.candidates.prototype_space import Run
from harness.reference.programs.screening.candidates.prototypes import Prototype

ELEMENTS = MAX_ATOMIC_NUMBER + 1
LARGEST_STATE = 9
WORD_BITS = 64
KEPT_TABLES = 64  # of up to 0.7 MB; a prototype of four species needs eight


def duplicate(prototype: Prototype, run: Run) -> NDArray[np.bool_]:
    """Whether a candidate is the same crystal as one with its elements in an earlier order, [m].

    Of each set of equals just one, the first by atomic numbers, is no duplicate.
    """
    found = np.zeros(len(run), dtype=bool)
    for order in prototype.exchanges:
        other = run.species[:, order]
        place = (other != run.species).argmax(axis=1)[:, None]
        found |= (np.take_along_axis(other, place, 1) < np.take_along_axis(run.species, place, 1))[:, 0]
    return found


def charge_balanced(prototype: Prototype, run: Run) -> NDArray[np.bool_]:
    """Whether oxidation states known of the elements can sum to zero, cations less electronegative than anions, [m].

    One state an element; a single element balances itself. States (ICSD, 2024) and Pauling electronegativities are
    those of smact; an element without either balances nothing. Raises InputError if smact is not installed. Source:
    Davies et al., Chem 1, 617 (2016); smact, J. Open Source Softw. 4, 1361 (2019).
    """
    if prototype.species == 1:
        return np.ones(len(run), dtype=bool)
    # Volumes of one choice of elements stand side by side.
    new = np.ones(len(run), dtype=bool)
    new[1:] = (run.species[1:] != run.species[:-1]).any(axis=1)
    counts = prototype.counts // np.gcd.reduce(prototype.counts)
    return _balanced(tuple(counts.tolist()), run.species[new])[np.cumsum(new) - 1]


def _balanced(counts: tuple[int, ...], species: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Meet in the middle: the sums that half of the slots can have against what the others need, as sets of bits."""
    half = len(counts) // 2
    reach = LARGEST_STATE * max(sum(counts[:half]), sum(counts[half:]))
    electronegativity = _ions().electronegativity[species]
    found = np.zeros(len(species), dtype=bool)
    for signs in product((1, -1), repeat=len(counts)):
        cation = np.array(signs) > 0
        if cation.all() or not cation.any():
            continue
        # NaN, where one is not known, is less than nothing.
        ordered = electronegativity[:, cation].max(axis=1) < electronegativity[:, ~cation].min(axis=1)
        rows = np.flatnonzero(ordered & ~found)
        here = _sums(counts[:half], signs[:half], 1, reach)[tuple(species[rows, :half].T)]
        there = _sums(counts[half:], signs[half:], -1, reach)[tuple(species[rows, half:].T)]
        found[rows] = (here & there).any(axis=1)
    return found


@lru_cache(maxsize=KEPT_TABLES)
def _sums(counts: tuple[int, ...], signs: tuple[int, ...], sense: int, reach: int) -> NDArray[np.uint64]:
    """The charges, times sense, that one or two slots with ions of given signs can have, for any elements on them.

    [119, words] or [119, 119, words]; bit `charge + reach` is set of the charges that occur.
    """
    ions = _ions()
    table = np.zeros((ELEMENTS,) * len(counts) + (2 * reach // WORD_BITS + 1,), dtype=np.uint64)
    for states in product(range(1, LARGEST_STATE + 1), repeat=len(counts)):
        charges = np.multiply(signs, states)
        elements = [np.flatnonzero(ions.has(charge)) for charge in charges.tolist()]
        word, bit = divmod(sense * int(charges @ counts) + reach, WORD_BITS)
        table[..., word][np.ix_(*elements)] |= np.uint64(1 << bit)
    return table


@dataclass(frozen=True, eq=False)
class Ions:
    """states: [119, 19] whether an element is known with -9 .. 9. electronegativity: [119] Pauling's, or NaN."""

    states: NDArray[np.bool_]
    electronegativity: Array

    def has(self, state: int) -> NDArray[np.bool_]:
        """[119] by atomic number."""
        return self.states[:, state + LARGEST_STATE]


@cache
def _ions() -> Ions:
    try:
        import smact
    except ImportError:
        raise InputError("the charge-balance filter needs smact (pip install 'gfm-harness[screening]')") from None
    states = np.zeros((ELEMENTS, 2 * LARGEST_STATE + 1), dtype=bool)
    electronegativity = np.full(ELEMENTS, np.nan)
    for symbol, element in smact.element_dictionary().items():
        number = chemical_symbols.index(symbol)
        states[number, np.array(element.oxidation_states or [], dtype=int) + LARGEST_STATE] = True
        if element.pauling_eneg is not None:
            electronegativity[number] = element.pauling_eneg
    return Ions(states, electronegativity)
