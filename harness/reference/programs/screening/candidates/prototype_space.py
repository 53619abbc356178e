"""The space of crystal candidates, which are built from their number: prototypes x permutations of elements x volumes.

The volume varies fastest, then the permutation of elements in lexical order, then the prototype.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from ase.data import atomic_numbers, chemical_symbols, covalent_radii
from numpy.typing import NDArray

from harness.reference.data.structure import Array, Structure
from harness.reference.errors import InputError
from harness.reference.programs.screening.candidates.prototypes import Prototype

SCALES = (0.94, 1.0, 1.06, 1.12)
LAST_RADIUS = 96  # the last element with a radius by Cordero et al.; ASE's radii of later ones are placeholders


@dataclass(frozen=True)
class PrototypeBlock:
    """m candidates of one prototype with k species.

    Attributes:
        prototype: Index of the prototype.
        index: [m] numbers of the candidates.
        species: [m, k] atomic number of each slot.
        scale: [m] volume, relative to the volume at which the closest atoms touch.
        stretch: [m] angstrom per unit of length of the prototype.
    """

    prototype: int
    index: NDArray[np.int64]
    species: NDArray[np.int64]
    scale: Array
    stretch: Array

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, selection: slice | NDArray[np.bool_] | NDArray[np.int64]) -> PrototypeBlock:
        return PrototypeBlock(
            self.prototype,
            self.index[selection],
            self.species[selection],
            self.scale[selection],
            self.stretch[selection],
        )


@dataclass(frozen=True, eq=False)
class CandidateSpace:
    """All candidates: prototypes with elements on their slots, at several volumes.

    Radii are covalent (Cordero et al., Dalton Trans. 2832 (2008), as in ASE).

    Attributes:
        prototypes: The structure types.
        elements: Atomic numbers.
        scales: Relative volumes; at 1, the closest pair of atoms touches.

    Raises:
        InputError: An element has no radius, elements or scales are not distinct, or the space is empty or too large.
    """

    prototypes: Sequence[Prototype]
    elements: tuple[int, ...]
    scales: tuple[float, ...] = SCALES

    def __post_init__(self) -> None:
        for z in self.elements:
            if not 1 <= z <= LAST_RADIUS:
                raise InputError(f"element {z}: it has no known covalent radius, expected 1 to {LAST_RADIUS}")
        if len(set(self.elements)) < len(self.elements):
            raise InputError("elements of the candidates: expected each once")
        if len(set(self.scales)) < len(self.scales) or not all(0 < s < math.inf for s in self.scales):
            raise InputError(f"scales {list(self.scales)}: expected different volumes above 0")
        total = sum(self._sizes)
        if not 0 < total <= np.iinfo(np.int64).max:
            parts = f"{len(self.prototypes)} prototypes, {len(self.elements)} elements, {len(self.scales)} scales"
            raise InputError(f"{total} candidates of {parts}: expected 1 or more, to be counted in 64 bits")

    @cached_property
    def _sizes(self) -> list[int]:
        return [math.perm(len(self.elements), p.n_species) * len(self.scales) for p in self.prototypes]

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """The first candidate of each prototype, and the number of all candidates, [prototypes + 1]."""
        return np.concatenate([[0], np.cumsum(self._sizes, dtype=np.int64)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def block(self, start: int, stop: int) -> list[PrototypeBlock]:
        """Return the candidates start .. stop - 1, one block per prototype; raise InputError if not all exist."""
        if not 0 <= start <= stop <= len(self):
            raise InputError(f"candidates {start} to {stop}: expected 0 to {len(self)}, in this order")
        first = int(np.searchsorted(self.starts, start, side="right")) - 1
        last = int(np.searchsorted(self.starts, stop, side="left"))
        blocks = []
        for number in range(first, last):
            low, high = max(start, int(self.starts[number])), min(stop, int(self.starts[number + 1]))
            if low < high:
                blocks.append(self._build_block(number, low, high))
        return blocks

    def _build_block(self, number: int, start: int, stop: int) -> PrototypeBlock:
        """Build the block of the candidates start .. stop - 1; radii are evaluated once for all volumes."""
        volumes, before = len(self.scales), int(self.starts[number])
        index = np.arange(start, stop, dtype=np.int64)
        first, last = (start - before) // volumes, (stop - 1 - before) // volumes
        chosen = unrank_permutations(np.arange(first, last + 1), len(self.elements), self.prototypes[number].n_species)
        species = np.array(self.elements)[chosen]
        choice, volume = np.divmod(index - (before + first * volumes), volumes)
        scale = np.array(self.scales)[volume]
        contact_stretch = self.compute_contact_stretch(number, species)
        return PrototypeBlock(
            number, index, species[choice], scale, contact_stretch[choice] * np.cbrt(self.scales)[volume]
        )

    def compute_contact_stretch(self, number: int, species: NDArray[np.int64]) -> Array:
        """Return the stretch at which the closest pair of atoms touches, [m], for species [m, k] in a prototype."""
        radii = covalent_radii[species].T
        closest = self.prototypes[number].closest
        largest = np.zeros(len(species))
        for a, b in zip(*np.triu_indices(len(closest)), strict=True):
            np.maximum(largest, (radii[a] + radii[b]) / closest[a, b], out=largest)
        return largest

    def smallest_stretch(self, number: int) -> float:
        """Return a lower bound of the stretch of all candidates of a prototype."""
        radius = min(covalent_radii[z] for z in self.elements)
        return float(2 * radius / self.prototypes[number].closest.min() * np.cbrt(min(self.scales)))

    def index_of(self, number: int, species: Sequence[int], scale: float) -> int:
        """Return the number of the candidate with these atomic numbers on the slots of a prototype, at a volume.

        Raises:
            InputError: There is no such candidate.
        """
        if not 0 <= number < len(self.prototypes):
            raise InputError(f"prototype {number}: expected 0 to {len(self.prototypes) - 1}")
        slots = self.prototypes[number].n_species
        if len(species) != slots or len(set(species)) < slots or not set(species) <= set(self.elements):
            raise InputError(
                f"species {list(species)} of prototype {self.prototypes[number].tag}:"
                f" expected {slots}, different and among the {len(self.elements)} elements of the candidates"
            )
        if scale not in self.scales:
            raise InputError(f"scale {scale}: expected one of {', '.join(map(str, self.scales))}")
        rank = rank_permutation([self.elements.index(z) for z in species], len(self.elements))
        return int(self.starts[number]) + rank * len(self.scales) + self.scales.index(scale)

    def structure(self, index: int) -> Structure:
        """Return the candidate with this index."""
        (block,) = self.block(index, index + 1)
        prototype = self.prototypes[block.prototype]
        return Structure(
            name=f"candidate {index}",
            numbers=block.species[0][prototype.slots],
            positions=prototype.positions * block.stretch[0],
            cell=prototype.cell * block.stretch[0],
            periodic=(True, True, True),
            group=self.formula(block)[0],
        )

    def formula(self, block: PrototypeBlock) -> list[str]:
        """Return the formula of each candidate, with its elements in the order of the slots, [m]."""
        counts = ["" if n == 1 else str(n) for n in self.prototypes[block.prototype].counts.tolist()]
        rows = block.species.tolist()
        return ["".join(chemical_symbols[z] + n for z, n in zip(row, counts, strict=True)) for row in rows]


def parse_element_symbols(symbols: Sequence[str]) -> tuple[int, ...]:
    """Return the atomic numbers of chemical symbols; raise InputError for an unknown symbol."""
    for symbol in symbols:
        if symbol not in chemical_symbols[1:]:
            matches = difflib.get_close_matches(symbol.capitalize(), chemical_symbols[1:], n=1)
            hint = f"; did you mean {matches[0]}?" if matches else ""
            raise InputError(f"{symbol!r} is not the symbol of an element{hint}")
    return tuple(atomic_numbers[symbol] for symbol in symbols)


def unrank_permutations(rank: NDArray[np.int64], n: int, k: int) -> NDArray[np.int64]:
    """Return the k-permutations of n that have the ranks [m] in lexical order, [m, k] of 0 .. n - 1."""
    chosen = np.empty((len(rank), k), dtype=np.int64)
    remainder = rank
    for j in range(k):
        digit, remainder = np.divmod(remainder, math.perm(n - j - 1, k - j - 1))
        # The digit counts unused elements, so skip the used ones, smallest first.
        for element in np.sort(chosen[:, :j], axis=1).T:
            digit += digit >= element
        chosen[:, j] = digit
    return chosen


def rank_permutation(chosen: Sequence[int], n: int) -> int:
    """Return the rank in lexical order of one permutation of some of the n elements 0 .. n - 1."""
    rank = 0
    for j, element in enumerate(chosen):
        free = element - sum(before < element for before in chosen[:j])
        rank = rank * (n - j) + free
    return rank
