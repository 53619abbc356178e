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
MAX_TABLES = 64  # number of cached tables, up to 0.7 MB each; a prototype with four species needs eight


def is_duplicate(prototype: Prototype, block: PrototypeBlock) -> NDArray[np.bool_]:
    """Return for each candidate whether an exchange of its elements gives the same crystal and an earlier order, [m].

    Of each set of equal crystals, only the first in the order of atomic numbers is not a duplicate.
    """
    result = np.zeros(len(block), dtype=bool)
    for order in prototype.exchanges:
        other = block.species[:, order]
        first = (other != block.species).argmax(axis=1)[:, None]
        result |= (np.take_along_axis(other, first, 1) < np.take_along_axis(block.species, first, 1))[:, 0]
    return result


def is_charge_balanced(prototype: Prototype, block: PrototypeBlock) -> NDArray[np.bool_]:
    """Return for each candidate whether known oxidation states can sum to zero, [m].

    In addition, cations must be less electronegative than anions.

    Each element has one oxidation state; a single element is balanced. Oxidation states (ICSD, 2024) and Pauling
    electronegativities come from smact; a candidate with an element that lacks one of them is not balanced. Sources:
    Davies et al., Chem 1, 617 (2016); smact, J. Open Source Softw. 4, 1361 (2019).

    Raises:
        InputError: smact is not installed.
    """
    if prototype.species == 1:
        return np.ones(len(block), dtype=bool)
    # candidates that differ only in volume are consecutive
    is_new = np.ones(len(block), dtype=bool)
    is_new[1:] = (block.species[1:] != block.species[:-1]).any(axis=1)
    counts = prototype.counts // np.gcd.reduce(prototype.counts)
    return _can_balance(tuple(counts.tolist()), block.species[is_new])[np.cumsum(is_new) - 1]


def _can_balance(counts: tuple[int, ...], species: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return whether oxidation states can balance, [m], for the numbers of sites of each slot and species [m, k].

    The charges that the first half of the slots can have are compared with those that the second half needs.
    """
    half = len(counts) // 2
    reach = LARGEST_STATE * max(sum(counts[:half]), sum(counts[half:]))
    electronegativity = _load_ions().electronegativity[species]
    balanced = np.zeros(len(species), dtype=bool)
    for signs in product((1, -1), repeat=len(counts)):
        cation = np.array(signs) > 0
        if cation.all() or not cation.any():
            continue
        # NaN, for an unknown electronegativity, compares as False.
        ordered = electronegativity[:, cation].max(axis=1) < electronegativity[:, ~cation].min(axis=1)
        rows = np.flatnonzero(ordered & ~balanced)
        reachable = _list_charge_sums(counts[:half], signs[:half], 1, reach)[tuple(species[rows, :half].T)]
        required = _list_charge_sums(counts[half:], signs[half:], -1, reach)[tuple(species[rows, half:].T)]
        balanced[rows] = (reachable & required).any(axis=1)
    return balanced


@lru_cache(maxsize=MAX_TABLES)
def _list_charge_sums(counts: tuple[int, ...], signs: tuple[int, ...], sense: int, reach: int) -> NDArray[np.uint64]:
    """Return the possible charges of one or two slots for all elements on them.

    Args:
        counts: Number of sites of each slot.
        signs: The sign of the oxidation state of each slot.
        sense: 1 for the charges, -1 for the charges that balance them.
        reach: Bound of the absolute charge.

    Returns:
        [119, words] or [119, 119, words] bits; bit `charge + reach` is set if the charge is possible.
    """
    ions = _load_ions()
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
        states: [119, 19] whether each oxidation state -9 .. 9 of an element is known.
        electronegativity: [119] on Pauling's scale, NaN if it is unknown.
    """

    states: NDArray[np.bool_]
    electronegativity: Array

    def has(self, state: int) -> NDArray[np.bool_]:
        """Return for each element whether an oxidation state is known, [119]."""
        return self.states[:, state + LARGEST_STATE]


@cache
def _load_ions() -> Ions:
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
