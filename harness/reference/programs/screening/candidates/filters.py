"""Filters of candidates that need no model: chemistry (charge balance, noble gases, intermetallics), and duplicates."""

from __future__ import annotations

from functools import lru_cache
from itertools import product

import numpy as np
from numpy.typing import NDArray

from harness.reference.programs.screening.candidates.oxidation_states import (
    ELECTRONEGATIVITY,
    IS_METAL,
    IS_NOBLE_GAS,
    LARGEST_STATE,
    N_ROWS,
    STATES,
)
from harness.reference.programs.screening.candidates.prototype_space import PrototypeBlock
from harness.reference.programs.screening.candidates.prototypes import Prototype

Mask = NDArray[np.bool_]
WORD_BITS = 64
MAX_TABLES = 64  # cached pairs of tables of up to 1.4 MB each; a prototype with four species needs eight pairs


def is_duplicate(prototype: Prototype, block: PrototypeBlock) -> Mask:
    """Return for each candidate whether exchanging its elements gives the same crystal with smaller numbers first, [m].

    Of each set of equal crystals, only the first in the order of atomic numbers is not a duplicate.
    """
    result = np.zeros(len(block), dtype=bool)
    for order in prototype.exchanges:
        other = block.species[:, order]
        first = (other != block.species).argmax(axis=1)[:, None]
        result |= (np.take_along_axis(other, first, 1) < np.take_along_axis(block.species, first, 1))[:, 0]
    return result


def is_elemental(prototype: Prototype, block: PrototypeBlock) -> Mask:
    """Return for each candidate whether it has a single element, [m]."""
    return np.full(len(block), prototype.n_species == 1)


def has_noble_gas(prototype: Prototype, block: PrototypeBlock) -> Mask:
    """Return for each candidate whether one of its elements is a noble gas, [m]."""
    del prototype
    return np.asarray(IS_NOBLE_GAS[block.species].any(axis=1))


def is_intermetallic(prototype: Prototype, block: PrototypeBlock) -> Mask:
    """Return for each candidate whether it has several elements, all of which are metals, [m]."""
    return np.asarray(IS_METAL[block.species].all(axis=1) & (prototype.n_species > 1))


def is_charge_implausible(prototype: Prototype, block: PrototypeBlock) -> Mask:
    """Return for each candidate whether it is neither an element, nor an intermetallic, nor charge-balanced, [m]."""
    if prototype.n_species == 1:
        return np.zeros(len(block), dtype=bool)
    return ~(is_intermetallic(prototype, block) | is_charge_balanced(prototype, block))


def is_charge_balanced(prototype: Prototype, block: PrototypeBlock) -> Mask:
    """Return for each candidate whether common oxidation states can sum to zero, [m].

    In addition, cations must be less electronegative than anions. All atoms of an element have the same oxidation
    state, but one cation may have mixed valence: any mean between two adjacent states (Fe3O4: 8/3).
    """
    # candidates that differ only in volume are consecutive
    is_new = np.ones(len(block), dtype=bool)
    is_new[1:] = (block.species[1:] != block.species[:-1]).any(axis=1)
    counts = prototype.counts // np.gcd.reduce(prototype.counts)
    return _can_balance(tuple(counts.tolist()), block.species[is_new])[np.cumsum(is_new) - 1]


def describe_chemistry(prototype: Prototype, block: PrototypeBlock) -> list[str]:
    """Return for each candidate "element", "intermetallic", "charge-balanced" or "not charge-balanced", [m]."""
    if prototype.n_species == 1:
        return ["element"] * len(block)
    names = np.where(is_charge_balanced(prototype, block), "charge-balanced", "not charge-balanced")
    return np.where(is_intermetallic(prototype, block), "intermetallic", names).tolist()


def _can_balance(counts: tuple[int, ...], species: NDArray[np.int64]) -> Mask:
    """Return whether oxidation states can balance, [m], for the numbers of sites of each slot and species [m, k].

    The charges that the first half of the slots can have are compared with those that the second half needs.
    """
    half = len(counts) // 2
    reach = LARGEST_STATE * max(sum(counts[:half]), sum(counts[half:]))
    electronegativity = ELECTRONEGATIVITY[species]
    balanced = np.zeros(len(species), dtype=bool)
    for signs in product((1, -1), repeat=len(counts)):
        cation = np.array(signs) > 0
        if cation.all() or not cation.any():
            continue
        # NaN, an unknown electronegativity, compares as False, so such candidates are never balanced.
        ordered = electronegativity[:, cation].max(axis=1) < electronegativity[:, ~cation].min(axis=1)
        rows = np.flatnonzero(ordered & ~balanced)
        first, second = tuple(species[rows, :half].T), tuple(species[rows, half:].T)
        pure, mixed = (table[first] for table in _list_charge_sums(counts[:half], signs[:half], 1, reach))
        needed, mixed_needed = (table[second] for table in _list_charge_sums(counts[half:], signs[half:], -1, reach))
        balanced[rows] = ((mixed & needed) | (pure & mixed_needed)).any(axis=1)
    return balanced


@lru_cache(maxsize=MAX_TABLES)
def _list_charge_sums(
    counts: tuple[int, ...], signs: tuple[int, ...], sense: int, reach: int
) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Return the possible charges of one or two slots for all elements on them.

    Args:
        counts: Number of sites of each slot.
        signs: The sign of the oxidation state of each slot.
        sense: 1 for the charges, -1 for the charges that balance them.
        reach: Bound of the absolute charge.

    Returns:
        Two tables [119, words] or [119, 119, words] of bits, in which bit `charge + reach` is set if the charge is
        possible: without mixed valence, and with mixed valence of at most one slot.
    """
    pure, mixed = _list_slot_charges(counts[0], signs[0], reach)
    if len(counts) == 2:
        other_pure, other_mixed = _list_slot_charges(counts[1], signs[1], reach)
        mixed = _add_charges(mixed, other_pure) | _add_charges(pure, other_mixed)
        pure = _add_charges(pure, other_pure)
    return _pack_bits(pure[..., ::sense]), _pack_bits(mixed[..., ::sense])


def _list_slot_charges(count: int, sign: int, reach: int) -> tuple[Mask, Mask]:
    """Return the possible charges of one slot, [119, 2 reach + 1] each, without and with mixed valence."""
    charges = np.arange(1, LARGEST_STATE + 1) * sign
    known = STATES[:, charges + LARGEST_STATE]
    pure = np.zeros((N_ROWS, 2 * reach + 1), dtype=bool)
    pure[:, charges * count + reach] = known
    mixed = pure.copy()
    for low, high in zip(*np.triu_indices(LARGEST_STATE, 1), strict=True):
        is_adjacent = known[:, low] & known[:, high] & ~known[:, low + 1 : high].any(axis=1)
        if sign > 0:
            mixed[is_adjacent, reach + count * (low + 1) : reach + count * (high + 1)] = True
    return pure, mixed


def _add_charges(first: Mask, second: Mask) -> Mask:
    """Return the possible sums of the charges of two slots, [119, 119, 2 reach + 1]."""
    width = first.shape[1]
    reach = width // 2
    sums = np.zeros((N_ROWS, N_ROWS, width), dtype=bool)
    for column in np.flatnonzero(first.any(axis=0)).tolist():
        shift = column - reach
        low, high = max(0, shift), min(width, width + shift)
        sums[first[:, column], :, low:high] |= second[:, low - shift : high - shift]
    return sums


def _pack_bits(table: Mask) -> NDArray[np.uint64]:
    words = -(-table.shape[-1] // WORD_BITS)
    padding = [(0, 0)] * (table.ndim - 1) + [(0, words * WORD_BITS - table.shape[-1])]
    return np.packbits(np.pad(table, padding), axis=-1).view(np.uint64)
