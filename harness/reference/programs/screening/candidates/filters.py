"""Filters of candidates that need no model: charge balance, and duplicates."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import product

import numpy as np
from ase.data import chemical_symbols
from numpy.typing import NDArray

from harness.reference.data.structure import MAX_ATOMIC_NUMBER, Array
from harness.reference.errors import InputError
from harness.reference.programs.screening.candidates.prototype_space import PrototypeBlock
from harness.reference.programs.screening.candidates.prototypes import Prototype

ELEMENTS = MAX_ATOMIC_NUMBER + 1
LARGEST_STATE = 9
WORD_BITS = 64
MAX_TABLES = 64  # tables in memory, up to 0.7 MB each; a prototype of four species needs eight


def is_duplicate(prototype: Prototype, run: PrototypeBlock) -> NDArray[np.bool_]:
    """Return [m] whether a candidate is the same crystal as one with its elements in an earlier order.

    Of each set of equal crystals only the first by atomic numbers is not a duplicate.
    """
    result = np.zeros(len(run), dtype=bool)
    for order in prototype.exchanges:
        other = run.species[:, order]
        first = (other != run.species).argmax(axis=1)[:, None]
        result |= (np.take_along_axis(other, first, 1) < np.take_along_axis(run.species, first, 1))[:, 0]
    return result


def is_charge_balanced(prototype: Prototype, run: PrototypeBlock) -> NDArray[np.bool_]:
    """Return [m] whether known oxidation states can sum to zero with cations less electronegative than anions.

    Each element has one state; a single element is balanced. States (ICSD, 2024) and Pauling electronegativities are
    those of smact; an element without either balances nothing. Sources: Davies et al., Chem 1, 617 (2016); smact, J.
    Open Source Softw. 4, 1361 (2019).

    Raises:
        InputError: smact is not installed.
    """
    if prototype.species == 1:
        return np.ones(len(run), dtype=bool)
    # Candidates that differ in volume alone are consecutive.
    new = np.ones(len(run), dtype=bool)
    new[1:] = (run.species[1:] != run.species[:-1]).any(axis=1)
    counts = prototype.counts // np.gcd.reduce(prototype.counts)
    return _can_balance(tuple(counts.tolist()), run.species[new])[np.cumsum(new) - 1]


def _can_balance(counts: tuple[int, ...], species: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Meet in the middle: compare the sums that half of the slots can reach with those that the rest needs."""
    half = len(counts) // 2
    reach = LARGEST_STATE * max(sum(counts[:half]), sum(counts[half:]))
    electronegativity = _ions().electronegativity[species]
    balanced = np.zeros(len(species), dtype=bool)
    for signs in product((1, -1), repeat=len(counts)):
        cation = np.array(signs) > 0
        if cation.all() or not cation.any():
            continue
        # NaN, for an unknown electronegativity, compares as False.
        ordered = electronegativity[:, cation].max(axis=1) < electronegativity[:, ~cation].min(axis=1)
        rows = np.flatnonzero(ordered & ~balanced)
        reachable = _charge_sums(counts[:half], signs[:half], 1, reach)[tuple(species[rows, :half].T)]
        required = _charge_sums(counts[half:], signs[half:], -1, reach)[tuple(species[rows, half:].T)]
        balanced[rows] = (reachable & required).any(axis=1)
    return balanced


@lru_cache(maxsize=MAX_TABLES)
def _charge_sums(counts: tuple[int, ...], signs: tuple[int, ...], sense: int, reach: int) -> NDArray[np.uint64]:
    """Return the charges, times sense, of one or two slots with ions of given signs, for all elements on them.

    Returns:
        [119, words] or [119, 119, words] bits; bit `charge + reach` is set if the charge occurs.
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
    """The ions of smact.

    Attributes:
        states: [119, 19] whether an element is known with oxidation state -9 .. 9.
        electronegativity: [119] Pauling's, or NaN.
    """

    states: NDArray[np.bool_]
    electronegativity: Array

    def has(self, state: int) -> NDArray[np.bool_]:
        """Return [119] whether each element is known with an oxidation state."""
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
