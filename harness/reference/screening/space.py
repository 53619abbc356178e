"""Candidates by number: prototypes x ordered choices of elements x volumes, none of them ever listed.

Candidate numbers run over the prototypes, within a prototype over the choices of elements, within these over volumes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from ase.data import chemical_symbols, covalent_radii, missing
from numpy.typing import NDArray

from harness.reference.errors import InputError
from harness.reference.screening.prototypes import Prototype
from harness.reference.screening.topology import closest
from harness.reference.structures import MAX_ATOMIC_NUMBER, Array, Structure

SCALES = (0.95, 1.05, 1.15, 1.25)


@dataclass(frozen=True)
class Run:
    """Candidates of one prototype. index: [m]. species: [m, k] atomic numbers. scale: [m] of the volume.

    stretch: [m], from the named compound's lengths to the candidate's.
    """

    prototype: int
    index: NDArray[np.int64]
    species: NDArray[np.int64]
    scale: Array
    stretch: Array

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, picked: slice | NDArray[np.bool_] | NDArray[np.int64]) -> Run:
        return Run(self.prototype, self.index[picked], self.species[picked], self.scale[picked], self.stretch[picked])


@dataclass(frozen=True)
class CandidateSpace:
    """All candidates. elements: atomic numbers. scales: volumes, 1 where the closest pair of atoms just touches, their
    radii being covalent (Cordero et al., Dalton Trans. 2832 (2008), as in ASE).

    Raises InputError where there is nothing to choose from.
    """

    prototypes: Sequence[Prototype]
    elements: tuple[int, ...]
    scales: tuple[float, ...] = SCALES

    def __post_init__(self) -> None:
        for z in self.elements:
            if not 1 <= z <= MAX_ATOMIC_NUMBER or covalent_radii[z] == missing:
                raise InputError(f"element {z}: no covalent radius is known of it")
        if list(self.elements) != sorted(set(self.elements)):
            raise InputError("elements: expected each once, by atomic number")
        if not self.scales or min(self.scales) <= 0:
            raise InputError(f"scales {list(self.scales)}: expected volumes above 0")
        if not len(self):
            raise InputError(f"no candidate: {len(self.prototypes)} prototypes, {len(self.elements)} elements")

    def __len__(self) -> int:
        return int(self.starts[-1])

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """Where the candidates of each prototype begin, and where the last one's end, [prototypes + 1]."""
        each = [math.perm(len(self.elements), p.species) * len(self.scales) for p in self.prototypes]
        return np.concatenate([[0], np.cumsum(np.array(each, dtype=np.int64))])

    @cached_property
    def _closest(self) -> dict[int, Array]:
        return {}

    def closest(self, number: int) -> Array:
        """The smallest distance between sites of two species of a prototype, [k, k], angstrom; inf: beyond others."""
        if number not in self._closest:
            self._closest[number] = closest(self.prototypes[number])
        return self._closest[number]

    def blocks(self, first: int, stop: int) -> Iterator[Run]:
        """The candidates from first to before stop, a run for each prototype among them."""
        if not 0 <= first <= stop <= len(self):
            raise InputError(f"candidates {first}..{stop - 1}: there are 0..{len(self) - 1}")
        number = int(np.searchsorted(self.starts, first, side="right")) - 1
        while first < stop:
            end = min(stop, int(self.starts[number + 1]))
            if end > first:
                yield self._run(number, np.arange(first, end, dtype=np.int64))
            first, number = end, number + 1

    def _run(self, number: int, index: NDArray[np.int64]) -> Run:
        prototype = self.prototypes[number]
        within, volume = np.divmod(index - self.starts[number], len(self.scales))
        species = np.array(self.elements)[unranked(within, len(self.elements), prototype.species)]
        scale = np.array(self.scales)[volume]
        return Run(number, index, species, scale, self.stretch(number, species, scale))

    def stretch(self, number: int, species: NDArray[np.int64], scale: Array) -> Array:
        """Species [m, k], scale [m] -> [m]: the closest pair just touches at a scale of 1."""
        radii = covalent_radii[species]
        least = self.closest(number)
        pairs = [(a, b) for a in range(len(least)) for b in range(a, len(least)) if np.isfinite(least[a, b])]
        touching = np.max([(radii[:, a] + radii[:, b]) / least[a, b] for a, b in pairs], axis=0)
        return np.asarray(touching * np.cbrt(scale))

    def index_of(self, number: int, species: Sequence[int], volume: int) -> int:
        """The candidate with these species (atomic numbers) and the volume of that place; raises InputError if none."""
        try:
            places = [self.elements.index(z) for z in species]
        except ValueError:
            raise InputError(f"species {list(species)}: not all among the {len(self.elements)} elements") from None
        if len(set(places)) < len(places) or len(places) != self.prototypes[number].species:
            raise InputError(f"species {list(species)}: expected {self.prototypes[number].species} different ones")
        rank = ranked(places, len(self.elements))
        return int(self.starts[number]) + rank * len(self.scales) + volume

    def structure(self, index: int) -> Structure:
        """One candidate."""
        (run,) = self.blocks(index, index + 1)
        prototype = self.prototypes[run.prototype]
        return Structure(
            name=f"candidate {index}",
            numbers=run.species[0][prototype.slots],
            positions=prototype.positions * run.stretch[0],
            cell=prototype.cell * run.stretch[0],
            periodic=(True, True, True),
        )

    def described(self, index: int) -> dict[str, str]:
        """Formula, prototype and volume of one candidate."""
        (run,) = self.blocks(index, index + 1)
        prototype = self.prototypes[run.prototype]
        parts = zip(run.species[0].tolist(), prototype.counts.tolist(), strict=True)
        formula = "".join(f"{chemical_symbols[z]}{n if n > 1 else ''}" for z, n in parts)
        return {"formula": formula, "prototype": prototype.tag, "like": prototype.like, "volume": f"{run.scale[0]:g}"}


def unranked(rank: NDArray[np.int64], n: int, k: int) -> NDArray[np.int64]:
    """The ordered choices of k out of n with these ranks in lexical order, [m, k] of 0 .. n - 1."""
    chosen = np.empty((len(rank), k), dtype=np.int64)
    left = rank
    for j in range(k):
        digit, left = np.divmod(left, math.perm(n - j - 1, k - j - 1))
        for before in np.sort(chosen[:, :j], axis=1).T:  # skip what is taken, smallest first
            digit = digit + (digit >= before)
        chosen[:, j] = digit
    return chosen


def ranked(chosen: Sequence[int], n: int) -> int:
    """The rank of one ordered choice out of n in lexical order."""
    rank = 0
    for j, place in enumerate(chosen):
        digit = place - sum(before < place for before in chosen[:j])
        rank += digit * math.perm(n - j - 1, len(chosen) - j - 1)
    return rank
