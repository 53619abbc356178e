"""Filters of the screening: duplicates agree with ASE's comparison of crystals, charge balance agrees with smact."""

from __future__ import annotations

import sys
from itertools import combinations, permutations

import numpy as np
import pytest
from ase import Atoms
from ase.utils.structure_comparator import SymmetryEquivalenceCheck

from harness.reference.errors import InputError
from harness.reference.programs.screening.candidates import filters
from harness.reference.programs.screening.candidates.filters import is_charge_balanced, is_duplicate
from harness.reference.programs.screening.candidates.prototype_space import CandidateSpace, PrototypeBlock
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
        for order in permutations(range(prototype.species)):
            permutation = np.array(order)
            if list(order) == sorted(order) or (prototype.counts[permutation] != prototype.counts).any():
                continue
            closest = prototype.closest
            if order not in prototype.exchanges and not np.allclose(
                closest[np.ix_(permutation, permutation)], closest, atol=1e-3
            ):
                continue
            elements = [11 + 6 * slot for slot in range(prototype.species)]
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


def test_charge_balance_agrees_with_smact() -> None:
    screening = pytest.importorskip("smact.screening")
    space = CandidateSpace(load_prototypes(), ELEMENTS)
    answers = []
    for number in range(0, len(space.prototypes), 3):
        block = sample_block(space, number, 0, 40)
        is_balanced = is_charge_balanced(space.prototypes[number], block)
        for k in (0, 13, 26, len(block) - 1):
            (formula,) = space.formula(block[k : k + 1])
            expected = screening.smact_validity(formula, include_alloys=False, oxidation_states_set="icsd24")
            assert is_balanced[k] == expected, formula
            answers.append(expected)
    assert 0.1 < np.mean(answers) < 0.9


@pytest.mark.parametrize(
    ("name", "species", "balanced"),
    [
        ("CsCl", (55, 17), True),
        ("CsCl", (17, 55), True),
        ("CsCl", (55, 11), False),
        ("Halite, Rock Salt", (12, 8), True),
        ("Halite, Rock Salt", (12, 17), False),
        ("Halite, Rock Salt", (18, 8), False),
        ("(Cubic) Perovskite", None, True),
    ],
)
def test_charge_balance_of_well_known_compounds(name: str, species: tuple[int, ...] | None, balanced: bool) -> None:
    pytest.importorskip("smact")
    prototype = find_prototype(name)
    if species is None:  # calcium titanate: oxygen takes the slot with three atoms
        metals = iter((20, 22))
        species = tuple(8 if n == 3 else next(metals) for n in prototype.counts.tolist())
    space = CandidateSpace([prototype], ELEMENTS + ((18,) if 18 not in ELEMENTS else ()), (1.0,))
    index = space.index_of(0, species, 1.0)
    assert is_charge_balanced(prototype, space.block(index, index + 1)[0]).tolist() == [balanced]


def test_filtering_a_block_equals_filtering_each_candidate() -> None:
    pytest.importorskip("smact")
    space = CandidateSpace(load_prototypes(), ELEMENTS)
    for number in (3, 100, 230, 249):
        block = sample_block(space, number, 1, 40)
        one_by_one = [is_charge_balanced(space.prototypes[number], block[k : k + 1])[0] for k in range(len(block))]
        assert is_charge_balanced(space.prototypes[number], block).tolist() == one_by_one
        assert len(is_charge_balanced(space.prototypes[number], block[:0])) == 0


def test_charge_balance_matches_enumeration(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ions are random; the enumeration tries every combination of oxidation states for two to four slots."""
    rng = np.random.default_rng(0)
    states = rng.random((filters.ELEMENTS, 2 * filters.LARGEST_STATE + 1)) < 0.15
    states[:, filters.LARGEST_STATE] = False
    electronegativity = rng.integers(1, 12, filters.ELEMENTS).astype(float)
    electronegativity[5] = np.nan
    ions = filters.Ions(states, electronegativity)
    monkeypatch.setattr(filters, "_load_ions", lambda: ions)
    filters._list_charge_sums.cache_clear()
    try:
        for counts in ((1, 1), (2, 3), (1, 2, 5), (4, 1, 1), (1, 1, 1, 1), (3, 11, 1, 2)):
            species = rng.permuted(np.tile(np.arange(1, 30), (40, 1)), axis=1)[:, : len(counts)]
            expected = [is_balanced_by_enumeration(counts, row, ions) for row in species.tolist()]
            assert filters._can_balance(counts, species).tolist() == expected
    finally:
        filters._list_charge_sums.cache_clear()


def is_balanced_by_enumeration(counts: tuple[int, ...], row: list[int], ions: filters.Ions) -> bool:
    def has_solution(charges: list[int]) -> bool:
        if len(charges) < len(row):
            allowed = np.flatnonzero(ions.states[row[len(charges)]]) - filters.LARGEST_STATE
            return any(has_solution([*charges, q]) for q in allowed.tolist())
        if np.dot(counts, charges):
            return False
        pairs = combinations(zip(charges, ions.electronegativity[row].tolist(), strict=True), 2)
        return all(p * q > 0 or (e < f if p > 0 else f < e) for (p, e), (q, f) in pairs)

    return has_solution([])


def test_charge_filter_names_smact_if_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "smact", None)
    filters._load_ions.cache_clear()
    filters._list_charge_sums.cache_clear()
    space = CandidateSpace([find_prototype("CsCl")], (11, 17))
    with pytest.raises(InputError, match=r"needs smact \(pip install 'gfm-harness\[screening\]'\)"):
        is_charge_balanced(space.prototypes[0], space.block(0, 4)[0])
