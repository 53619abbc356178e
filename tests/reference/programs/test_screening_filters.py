"""Filters of the screening: duplicates agree with ASE's comparison of crystals, charge balance with an enumeration."""

from __future__ import annotations

from itertools import pairwise, permutations, product

import numpy as np
import pytest
from ase import Atoms
from ase.data import atomic_numbers, chemical_symbols
from ase.formula import Formula
from ase.utils.structure_comparator import SymmetryEquivalenceCheck
from numpy.typing import NDArray

from harness.reference.programs.screening.candidates import filters, oxidation_states
from harness.reference.programs.screening.candidates.filters import is_duplicate
from harness.reference.programs.screening.candidates.oxidation_states import METALLOIDS, NOBLE_GASES, NONMETALS
from harness.reference.programs.screening.candidates.prototype_space import CandidateSpace, PrototypeBlock
from harness.reference.programs.screening.candidates.prototype_workload import FILTERS
from harness.reference.programs.screening.candidates.prototypes import Prototype, load_prototypes

ELEMENTS = tuple(z for z in range(1, 95) if z not in {43, 61, 84, 85, 86, 87, 88, 89, 91})


def find_prototype(name: str) -> Prototype:
    return next(p for p in load_prototypes() if p.name == name)


def build_atoms(space: CandidateSpace, index: int) -> Atoms:
    structure = space.structure(index)
    return Atoms(structure.numbers, positions=structure.positions, cell=structure.cell, pbc=True)


def is_same_crystal(a: Atoms, b: Atoms) -> bool:
    """Compare with the site tolerance of the shipped file, about 0.001 angstrom."""
    return bool(SymmetryEquivalenceCheck(angle_tol=0.1, ltol=0.005, stol=0.0005, vol_tol=0.01).compare(a, b))


@pytest.mark.parametrize(
    ("name", "classes_of_six"),
    [
        ("CsCl", 3),
        ("Halite, Rock Salt", 3),
        ("Zincblende, Sphalerite", 3),
        ("Wurtzite", 3),
        ("Tungsten Carbide", 3),
        ("Moissanite 9R", 3),
        ("Heusler", 3),
        ("half-Heusler", 3),
        ("(Cubic) Perovskite", 6),
        ("Fluorite", 6),
    ],
)
def test_one_candidate_of_each_class_of_equal_crystals_is_kept(name: str, classes_of_six: int) -> None:
    """Candidates assign two or three of three elements in six ways; candidates with equal crystals form a class."""
    prototype = find_prototype(name)
    space = CandidateSpace([prototype], (6, 11, 35), (1.0,))
    (block,) = space.block(0, len(space))
    is_kept = ~is_duplicate(prototype, block)
    crystals = [build_atoms(space, k) for k in range(len(space))]
    same = np.array([[is_same_crystal(a, b) for b in crystals] for a in crystals])
    assert (same.T & same == same).all()
    assert (same[:, is_kept].sum(axis=1) == 1).all(), "each candidate equals exactly one kept candidate"
    assert len(block) == 6
    assert is_kept.sum() == classes_of_six


def test_exchanges_list_exactly_the_permutations_that_preserve_the_crystal() -> None:
    """Permutations that change the atom counts or the closest distances are skipped, as they change the crystal."""
    compared = 0
    for prototype in load_prototypes():
        for order in permutations(range(prototype.n_species)):
            permutation = np.array(order)
            if list(order) == sorted(order) or (prototype.counts[permutation] != prototype.counts).any():
                continue
            closest = prototype.closest
            if order not in prototype.exchanges and not np.allclose(
                closest[np.ix_(permutation, permutation)], closest, atol=1e-3
            ):
                continue
            elements = [11 + 6 * slot for slot in range(prototype.n_species)]
            original, other = (
                Atoms([elements[k] for k in slots], scaled_positions=prototype.fractions, cell=prototype.cell, pbc=True)
                for slots in (prototype.slots, permutation[prototype.slots])
            )
            assert is_same_crystal(original, other) == (order in prototype.exchanges), prototype.tag
            compared += 1
    assert compared >= 20


def test_equal_candidates_have_equal_volumes_and_the_first_is_kept() -> None:
    prototype = find_prototype("half-Heusler")
    space = CandidateSpace([prototype], (35, 6, 11), (1.0, 1.1))
    (block,) = space.block(0, len(space))
    is_repeated = is_duplicate(prototype, block)
    first_species = {tuple(row) for row in block[~is_repeated].species.tolist()}
    for row, scale in zip(block[is_repeated].species.tolist(), block[is_repeated].scale.tolist(), strict=True):
        first = min(tuple(row[k] for k in order) for order in prototype.exchanges)
        assert first in first_species
        ends = [space.index_of(0, species, scale) for species in (row, first)]
        assert block.stretch[ends[0]] == pytest.approx(block.stretch[ends[1]], abs=1e-9)


def sample_block(space: CandidateSpace, number: int, seed: int, count: int) -> PrototypeBlock:
    """Return consecutive candidates starting at a random index."""
    low, high = space.starts[number : number + 2].tolist()
    start = int(np.random.default_rng([seed, number]).integers(low, max(low + 1, high - count)))
    return space.block(start, min(high, start + count))[0]


def test_oxidation_states_are_among_those_of_known_crystals() -> None:
    """smact lists the oxidation states that occur in the ICSD; it lacks some radioactive elements."""
    smact = pytest.importorskip("smact")
    dictionary = smact.element_dictionary()
    missing = {"Pm", "Po", "At", "Fr", "Ra"}
    for symbol in set(chemical_symbols[1:97]) - missing:
        states = set((np.flatnonzero(oxidation_states.STATES[atomic_numbers[symbol]]) - 7).tolist())
        assert states <= set(dictionary[symbol].oxidation_states or []), symbol
        assert states or symbol in {"He", "Ne", "Ar", "Rn"}, symbol


@pytest.mark.parametrize(
    ("formula", "balanced"),
    [
        *((f, True) for f in ("NaCl", "CaTiO3", "Fe3O4", "Mn3O4", "SbO2", "FeS2", "CoSb3", "LiFePO4", "Cs2PtI6")),
        *((f, False) for f in ("CsNa", "MgCl", "NaO", "BaO2", "MgB2", "ArO", "Fe3O5")),
    ],
)
def test_charge_balance_of_well_known_compounds(formula: str, balanced: bool) -> None:
    """Magnetite needs mixed valence, pyrite and skutterudite anions with bonds among themselves."""
    counts = Formula(formula).count()
    species = np.array([[atomic_numbers[symbol] for symbol in counts]])
    assert filters._can_balance(tuple(counts.values()), species).tolist() == [balanced]


@pytest.mark.parametrize(
    ("name", "species", "chemistry", "removing"),
    [
        ("CsCl", (17, 55), "charge-balanced", set()),
        ("CsCl", (55, 17), "charge-balanced", {"no_duplicates"}),
        ("CsCl", (28, 13), "intermetallic", {"no_intermetallics", "no_duplicates"}),
        ("CsCl", (12, 17), "not charge-balanced", {"charge_balance"}),
        ("CsCl", (8, 54), "charge-balanced", {"no_noble_gases"}),
        ("Copper", (29,), "element", {"no_elements"}),
        ("Copper", (36,), "element", {"no_elements", "no_noble_gases"}),
    ],
)
def test_each_filter_removes_what_it_names(
    name: str, species: tuple[int, ...], chemistry: str, removing: set[str]
) -> None:
    prototype = find_prototype(name)
    space = CandidateSpace([prototype], tuple(range(1, 95)), (1.0,))
    index = space.index_of(0, species, 1.0)
    (block,) = space.block(index, index + 1)
    assert filters.describe_chemistry(prototype, block) == [chemistry]
    assert {name for name, removes in FILTERS.items() if removes(prototype, block)[0]} == removing


def test_every_element_is_in_one_class() -> None:
    """Metals, metalloids, nonmetals and noble gases are disjoint, and every element up to curium is in one class."""
    other = [s for names in (NOBLE_GASES, NONMETALS, METALLOIDS) for s in names.split()]
    assert len(set(other)) == len(other)
    metals = [chemical_symbols[z] for z in np.flatnonzero(oxidation_states.IS_METAL)]
    assert sorted([*metals, *other]) == sorted(chemical_symbols[1:97])


def test_filtering_a_block_equals_filtering_each_candidate() -> None:
    space = CandidateSpace(load_prototypes(), ELEMENTS)
    for number in (3, 100, 230, 249):
        block = sample_block(space, number, 1, 40)
        for removes in FILTERS.values():
            one_by_one = [removes(space.prototypes[number], block[k : k + 1])[0] for k in range(len(block))]
            assert removes(space.prototypes[number], block).tolist() == one_by_one
            assert len(removes(space.prototypes[number], block[:0])) == 0


def test_charge_balance_matches_enumeration(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ions are random; the enumeration tries every combination of oxidation states for two to four slots."""
    rng = np.random.default_rng(0)
    states = rng.random(oxidation_states.STATES.shape) < 0.2
    states[:, oxidation_states.LARGEST_STATE] = False
    electronegativity = rng.integers(1, 12, len(states)).astype(float)
    electronegativity[5] = np.nan
    monkeypatch.setattr(filters, "STATES", states)
    monkeypatch.setattr(filters, "ELECTRONEGATIVITY", electronegativity)
    filters._list_charge_sums.cache_clear()
    answers = []
    try:
        for counts in ((1, 1), (2, 3), (1, 2, 5), (4, 1, 1), (1, 1, 1, 1), (3, 11, 1, 2)):
            species = rng.permuted(np.tile(np.arange(1, 30), (40, 1)), axis=1)[:, : len(counts)]
            expected = [is_balanced_by_enumeration(counts, row, states, electronegativity) for row in species.tolist()]
            assert filters._can_balance(counts, species).tolist() == expected
            answers += expected
    finally:
        filters._list_charge_sums.cache_clear()
    assert 0.1 < np.mean(answers) < 0.9


def is_balanced_by_enumeration(
    counts: tuple[int, ...], row: list[int], states: NDArray[np.bool_], electronegativity: NDArray[np.float64]
) -> bool:
    """Try every total charge of each slot; at most one slot may be between two adjacent positive states."""

    def list_totals(slot: int) -> list[tuple[int, int, bool]]:
        """Return (sign, total charge, whether the valence is mixed) of a slot."""
        known = (np.flatnonzero(states[row[slot]]) - oxidation_states.LARGEST_STATE).tolist()
        totals = [(1 if q > 0 else -1, q * counts[slot], False) for q in known]
        positive = [q for q in known if q > 0]
        for low, high in pairwise(positive):
            totals += [(1, q, True) for q in range(low * counts[slot] + 1, high * counts[slot])]
        return totals

    for choice in product(*(list_totals(slot) for slot in range(len(counts)))):
        if sum(total for _, total, _ in choice) or sum(mixed for _, _, mixed in choice) > 1:
            continue
        values = electronegativity[row]
        signs = np.array([sign for sign, _, _ in choice])
        if values[signs > 0].max(initial=-1) < values[signs < 0].min(initial=99):
            return True
    return False
