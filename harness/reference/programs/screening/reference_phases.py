"""The reference phases of the convex hull: shipped structures or a file, and simple crystals of each element."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase.formula import Formula

from harness.protocol.programs.screening import ScreeningHull
from harness.reference.data.structure import Array, Structure
from harness.reference.datasets.catalog import HEADS
from harness.reference.datasets.shipped_sets import find_shipped_set, load_structures
from harness.reference.datasets.user_files import read_structures
from harness.reference.errors import InputError
from harness.reference.inference.batched_relaxation import RelaxedStructure, relax_structures
from harness.reference.inference.calculator import resolve_head
from harness.reference.models.foundation import FoundationModel
from harness.reference.programs.screening.candidates.prototype_space import CandidateSpace, parse_element_symbols
from harness.reference.programs.screening.candidates.prototypes import load_prototypes
from harness.reference.programs.screening.convex_hull import Composition, ConvexHull, find_composition

SHIPPED_PHASES = ("alexandria", "mptrj")
SHIPPED_SOURCE = "shipped samples of Alexandria and MPTrj"
# AFLOW's labels of fcc, bcc, hcp, simple cubic and diamond
ELEMENTAL_PROTOTYPES = ("A_cF4_225_a", "A_cI2_229_a", "A_hP2_194_c", "A_cP1_221_a", "A_cF8_227_a")
ELEMENTAL_STEPS = 100
COLUMNS = ["formula", "energy_ev_per_atom"]
MAX_COUNT = 10**9  # structures read from a file, in effect without a limit


@dataclass(frozen=True)
class ReferencePhases:
    """The reference phases of a hull.

    Attributes:
        head: Index of the head that evaluates structures.
        structures: Phases whose energies are those of the head, without relaxation, so that systematic errors cancel.
        energies: Compositions and energies of other phases in eV/atom, at the level of theory of the head.
        source: Name of the file, or of the shipped crystals.
    """

    head: int
    structures: Sequence[Structure] = ()
    energies: Sequence[tuple[Composition, float]] = ()
    source: str = SHIPPED_SOURCE

    @classmethod
    def load(cls, head_name: str, file: str | None) -> ReferencePhases:
        """Load the phases of a file, or the shipped ones; raise InputError if the head or the file cannot be used."""
        head = resolve_head(head_name)
        if file is None:
            return cls(head, [s for name in SHIPPED_PHASES for s in load_structures(find_shipped_set(name))])
        path = Path(file)
        if path.suffix == ".csv":
            return cls(head, energies=read_energies(path), source=path.name)
        return cls(head, read_crystals(path), source=path.name)

    def describe(self) -> ScreeningHull:
        """Return the head, source and number of the phases for the report, without the simple crystals of elements."""
        phases = len(self.structures) + len(self.energies)
        return ScreeningHull(head=HEADS[self.head], reference_phases=self.source, phases=phases)

    def build_hull(self, model: FoundationModel, elements: Iterable[int]) -> ConvexHull:
        """Return the hull of the phases that have only these elements.

        Simple crystals of each element, relaxed with the model, are added, so that the hull covers all compositions,
        unless none of an element can be relaxed.
        """
        allowed, hull = set(elements), ConvexHull()
        for composition, energy in self.energies:
            if {z for z, _ in composition} <= allowed:
                hull.add(composition, energy)
        phases = [s for s in self.structures if set(s.numbers.tolist()) <= allowed]
        for structures, steps in ((phases, 0), (list_elemental_crystals(allowed), ELEMENTAL_STEPS)):
            for composition, energy in compute_energies(model, self.head, structures, steps):
                hull.add(composition, energy)
        return hull

    def compute_energies_above_hull(self, model: FoundationModel, structures: Sequence[Structure]) -> Array:
        """Return the energies of structures above the hull, eV/atom, [k]; NaN if the energy or the hull is unknown."""
        hull = self.build_hull(model, {z for s in structures for z in s.numbers.tolist()})
        values = np.full(len(structures), np.nan)
        for index, result in relax_structures(model, structures, head=self.head, max_steps=0):
            energy = hull.compute_energy(find_composition(structures[index].numbers))
            if isinstance(result, RelaxedStructure) and energy is not None:
                values[index] = result.energy_ev / len(structures[index]) - energy
        return values


def compute_energies(
    model: FoundationModel, head: int, structures: Sequence[Structure], steps: int
) -> Iterator[tuple[Composition, float]]:
    """Yield composition and energy, eV/atom, of each structure that can be relaxed, after at most `steps` steps."""
    for index, result in relax_structures(model, structures, head=head, max_steps=steps):
        if isinstance(result, RelaxedStructure):
            yield find_composition(structures[index].numbers), result.energy_ev / len(structures[index])


def read_crystals(path: Path) -> list[Structure]:
    """Read the phases of a file in a format of ASE; raise InputError if one is not periodic in three directions."""
    structures = read_structures(path, MAX_COUNT)
    for structure in structures:
        if not all(structure.periodic):
            raise InputError(
                f"{path}: structure {structure.name!r} is not periodic in three directions, expected a crystal"
            )
    return structures


def list_elemental_crystals(elements: Iterable[int]) -> list[Structure]:
    """Return fcc, bcc, hcp, simple cubic and diamond crystals of each element, whose closest atoms touch."""
    prototypes = [p for p in load_prototypes() if p.tag in ELEMENTAL_PROTOTYPES]
    space = CandidateSpace(prototypes, tuple(sorted(elements)), (1.0,))
    return [space.structure(k) for k in range(len(space))]


def read_energies(path: Path) -> list[tuple[Composition, float]]:
    """Read a table of phases with the columns formula and energy_ev_per_atom.

    Raises:
        InputError: The file cannot be read, or a row is invalid; the message names the invalid line.
    """
    try:
        # spreadsheets may begin a file with a byte-order mark
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            missing = [name for name in COLUMNS if name not in (reader.fieldnames or [])]
            if missing:
                raise InputError(f"{path}:1: no column {missing[0]!r}, expected {', '.join(COLUMNS)}")
            return [_parse_row(row, f"{path}:{reader.line_num}") for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read as a table of reference phases ({error})") from None


def _parse_row(row: dict[str, str | None], place: str) -> tuple[Composition, float]:
    formula, text = (str(row[name] or "") for name in COLUMNS)
    try:
        counts = Formula(formula).count()
    except ValueError:
        counts = {}
    if not counts:
        raise InputError(f"{place}: formula is {formula!r}, expected one such as Fe2O3")
    try:
        energy = float(text)
    except ValueError:
        energy = math.nan
    if not math.isfinite(energy):
        raise InputError(f"{place}: energy_ev_per_atom is {text!r}, expected a number")
    try:
        numbers = parse_element_symbols(list(counts))
    except InputError as error:
        raise InputError(f"{place}: {error}") from None
    total = sum(counts.values())
    fractions = {z: n / total for z, n in zip(numbers, counts.values(), strict=True)}
    return tuple(sorted(fractions.items())), energy
