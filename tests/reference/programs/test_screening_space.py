"""Candidates of a prototype space by index: each occurs once, in order and from any start; and their geometry."""

from __future__ import annotations

from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest
from ase.data import covalent_radii
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.reference.data.neighbours import build_neighbour_list
from harness.reference.errors import InputError
from harness.reference.programs.screening.candidates import prototypes as shipped
from harness.reference.programs.screening.candidates.prototype_space import (
    SCALES,
    CandidateSpace,
    parse_element_symbols,
    rank_permutation,
    unrank_permutations,
)
from harness.reference.programs.screening.candidates.prototypes import Prototype, load_prototypes, load_source_notes

# The paper screens as many elements.
ELEMENTS = tuple(z for z in range(1, 95) if z not in {43, 61, 84, 85, 86, 87, 88, 89, 91})
FULL = CandidateSpace(load_prototypes(), ELEMENTS)


def select_first_prototypes(*species: int) -> tuple[Prototype, ...]:
    """Return the first prototype with each number of species."""
    return tuple(next(p for p in load_prototypes() if p.n_species == k) for k in species)


spaces = st.builds(
    lambda species, elements, scales: CandidateSpace(select_first_prototypes(*species), tuple(elements), tuple(scales)),
    st.lists(st.integers(1, 4), min_size=1, max_size=4),
    st.lists(st.sampled_from(ELEMENTS), min_size=4, max_size=6, unique=True),
    st.lists(st.sampled_from([0.9, 1.0, 1.1, 1.5]), min_size=1, max_size=3, unique=True),
)


@given(spaces)
@settings(max_examples=25, deadline=None)
def test_every_candidate_occurs_once_in_the_documented_order(space: CandidateSpace) -> None:
    expected = [
        (k, species, scale)
        for k, prototype in enumerate(space.prototypes)
        for species, scale in product(permutations(space.elements, prototype.n_species), space.scales)
    ]
    blocks = space.block(0, len(space))
    rows = [zip(map(tuple, r.species.tolist()), r.scale.tolist(), strict=True) for r in blocks]
    candidates = [(r.prototype, *row) for r, part in zip(blocks, rows, strict=True) for row in part]
    assert candidates == expected
    assert len(space) == len(expected)
    assert np.array_equal(np.concatenate([r.index for r in blocks]), np.arange(len(space)))


@given(spaces, st.data())
@settings(max_examples=40, deadline=None)
def test_block_is_a_slice_of_the_whole_space(space: CandidateSpace, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(space)))
    stop = data.draw(st.integers(start, len(space)))
    parts, whole_space = space.block(start, stop), space.block(0, len(space))
    assert sum(map(len, parts)) == stop - start
    for part in parts:
        assert len(part)
        block = whole_space[[r.prototype for r in whole_space].index(part.prototype)]
        rows = slice(int(part.index[0] - block.index[0]), int(part.index[-1] - block.index[0]) + 1)
        for name in ("index", "species", "scale", "stretch"):
            assert np.array_equal(getattr(part, name), getattr(block[rows], name)), name


def test_full_space_has_more_than_a_billion_candidates() -> None:
    assert len(ELEMENTS) == 85
    assert len(FULL) > 1_265_000_000
    assert FULL.starts.dtype == np.int64


@given(st.integers(0, len(FULL) - 1))
@settings(max_examples=200, deadline=None)
def test_index_of_a_candidate_is_recovered_from_its_species_and_scale(index: int) -> None:
    (block,) = FULL.block(index, index + 1)
    assert block.index.dtype == np.int64
    assert FULL.index_of(block.prototype, block.species[0].tolist(), float(block.scale[0])) == index


@given(st.integers(1, 20), st.data())
def test_permutation_rank_is_inverted_by_permutation_from_rank(n: int, data: st.DataObject) -> None:
    permutation = data.draw(st.permutations(range(n)))[: data.draw(st.integers(1, min(n, 6)))]
    rank = rank_permutation(permutation, n)
    assert unrank_permutations(np.array([rank]), n, len(permutation))[0].tolist() == permutation


def test_closest_atoms_touch_at_scale_one_and_volumes_scale() -> None:
    rng = np.random.default_rng(0)
    for number in range(0, len(FULL.prototypes), 7):
        first = int(rng.integers(FULL.starts[number], FULL.starts[number + 1])) // len(SCALES) * len(SCALES)
        volumes = []
        for index, scale in enumerate(SCALES, first):
            structure = FULL.structure(index)
            graph = build_neighbour_list(structure, cutoff=6.0)
            vectors = structure.positions[graph.sender] + graph.shift - structure.positions[graph.receiver]
            radii = covalent_radii[structure.numbers]
            ratio = np.linalg.norm(vectors, axis=1) / (radii[graph.receiver] + radii[graph.sender])
            assert ratio.min() == pytest.approx(np.cbrt(scale), abs=1e-9)
            volumes.append(abs(np.linalg.det(structure.cell)) / scale)
        assert np.allclose(volumes, volumes[0])


def test_structure_matches_the_block_with_its_index() -> None:
    index = len(FULL) // 3
    (block,) = FULL.block(index, index + 1)
    prototype, structure = FULL.prototypes[block.prototype], FULL.structure(index).check()
    assert structure.numbers.tolist() == [block.species[0][slot] for slot in prototype.slots]
    assert np.allclose(structure.positions, prototype.fractions @ structure.cell)
    assert structure.group == FULL.formula(block)[0]
    (cscl,) = (k for k, p in enumerate(FULL.prototypes) if p.name == "CsCl")
    row = FULL.block(FULL.index_of(cscl, (55, 17), 1.0), FULL.index_of(cscl, (55, 17), 1.0) + 1)[0]
    assert FULL.formula(row) == ["CsCl"]
    touching = covalent_radii[55] + covalent_radii[17]
    assert np.linalg.norm(FULL.structure(int(row.index[0])).cell[0]) == pytest.approx(
        max(2 / np.sqrt(3) * touching, 2 * covalent_radii[55])
    )


def test_no_stretch_is_below_the_smallest_stretch() -> None:
    for number in range(0, len(FULL.prototypes), 11):
        (block,) = FULL.block(int(FULL.starts[number]), int(FULL.starts[number]) + 300)[:1]
        assert block.stretch.min() >= FULL.smallest_stretch(number)


def test_shipped_prototypes_match_their_source_notes() -> None:
    prototypes = load_prototypes()
    assert len(prototypes) == load_source_notes()["entries"] - sum(load_source_notes()["left_out"].values()) == 250
    assert load_source_notes()["licence"].startswith("MIT")
    assert len({(p.tag, p.name, p.fractions.tobytes(), p.cell.tobytes()) for p in prototypes}) == len(prototypes)
    for p in prototypes:
        assert 1 <= len(p) <= 20
        assert 1 <= p.n_species <= 4
        assert list(dict.fromkeys(p.slots.tolist())) == list(range(p.n_species))
        assert p.closest.min() > 0.5
    # In two prototypes, the free coordinates have values of higher symmetry than their tag states.
    spacegroups = {p.tag: (p.spacegroup, int(p.tag.split("_")[2])) for p in prototypes}
    assert {tag: g for tag, g in spacegroups.items() if g[0] != g[1]} == {
        "A2B_oC12_38_de_ab": (63, 38),
        "AB3_tI16_140_b_ah": (123, 140),
    }


@pytest.mark.parametrize(
    ("name", "strukturbericht", "spacegroup", "counts"),
    [("CsCl", "B2", 221, [1, 1]), ("Halite, Rock Salt", "B1", 225, [1, 1]), ("Corundum", "D5_1", 167, [4, 6])],
)
def test_well_known_prototypes_have_the_right_symmetry_and_atom_counts(
    name: str, strukturbericht: str, spacegroup: int, counts: list[int]
) -> None:
    prototype = next(p for p in load_prototypes() if p.name == name)
    assert (prototype.strukturbericht, prototype.spacegroup, sorted(prototype.counts.tolist())) == (
        strukturbericht,
        spacegroup,
        counts,
    )


def make_archive_entry(sites: list[tuple[str, float, list[float]]]) -> dict:
    """Return an entry of the archive, in a cubic cell of 5 angstrom."""
    site_entries = [{"species": [{"element": e, "occu": occupied}], "abc": abc} for e, occupied, abc in sites]
    tags = {"aflow": "AB_cP2_221_b_a", "mineral": "", "strukturbericht": "None", "pearson": "cP2"}
    return {"snl": {"sites": site_entries, "lattice": {"matrix": (5.0 * np.eye(3)).tolist()}}, "tags": tags}


def test_unsuitable_archive_entries_are_rejected_with_a_reason() -> None:
    parse_prototype = pytest.importorskip("tests.builders.prototypes").parse_prototype
    middle = [0.5, 0.5, 0.5]
    cscl = parse_prototype(make_archive_entry([("Cs", 1.0, [0.0, 0.0, 1.0]), ("Cl", 1.0, middle)]))
    assert (cscl.name, cscl.spacegroup, cscl.slots.tolist(), cscl.fractions[0].tolist()) == (
        "CsCl",
        221,
        [0, 1],
        [0] * 3,
    )
    assert parse_prototype(make_archive_entry([("Cs", 0.5, [0.0] * 3)])) == "partly occupied sites"
    assert (
        parse_prototype(make_archive_entry([("Cs", 1.0, [0.0] * 3), ("Cl", 1.0, [0.99, 0.0, 0.0])]))
        == "coincident sites"
    )
    assert (
        parse_prototype(make_archive_entry([("Cs", 1.0, [k / 21, 0.0, 0.0]) for k in range(21)]))
        == "more than 20 atoms"
    )
    assert (
        parse_prototype(make_archive_entry([(e, 1.0, [k / 5, 0.0, 0.0]) for k, e in enumerate("HBCNO")]))
        == "more than 4 species"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((), (1, 2)), "0 candidates of 0 prototypes, 2 elements, 4 scales"),
        ((select_first_prototypes(4), (1, 6, 8)), "0 candidates of 1 prototypes, 3 elements"),
        ((select_first_prototypes(1), (1, 97)), "element 97: it has no known covalent radius, expected 1 to 96"),
        ((select_first_prototypes(1), (0,)), "element 0: it has no known covalent radius"),
        ((select_first_prototypes(1), (6, 6)), "expected each once"),
        ((select_first_prototypes(1), (6,), (1.0, -1.0)), "scales [1.0, -1.0]: expected different volumes above 0"),
        ((select_first_prototypes(1), (6,), (1.0, 1.0)), "expected different volumes"),
        ((select_first_prototypes(1), (6,), (float("nan"),)), "expected different volumes"),
    ],
)
def test_empty_or_invalid_space_is_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(InputError) as caught:
        CandidateSpace(*arguments)
    assert message in str(caught.value)


def test_a_space_too_large_to_count_is_refused() -> None:
    prototype = Prototype("", "", "", 1, np.arange(36).reshape(12, 3) / 40, np.eye(3) * 9, np.arange(12))
    with pytest.raises(InputError, match="to be counted in 64 bits"):
        CandidateSpace([prototype], ELEMENTS)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (lambda s: s.block(5, 4), "candidates 5 to 4: expected 0 to"),
        (lambda s: s.block(-1, 4), "candidates -1 to 4"),
        (lambda s: s.structure(len(s)), "expected 0 to"),
        (lambda s: s.index_of(250, (1,), 1.0), "prototype 250: expected 0 to 249"),
        (lambda s: s.index_of(0, (1, 2), 1.0), "expected 1, different and among the 85 elements"),
        (lambda s: s.index_of(0, (43,), 1.0), "species [43] of prototype"),
        (lambda s: s.index_of(0, (1,), 1.01), "scale 1.01: expected one of 0.94, 1.0, 1.06, 1.12"),
    ],
)
def test_candidate_outside_the_space_is_refused(query, message: str) -> None:
    with pytest.raises(InputError) as caught:
        query(FULL)
    assert message in str(caught.value)


def test_element_symbols_are_converted_to_atomic_numbers() -> None:
    assert parse_element_symbols(["H", "Cl", "Og"]) == (1, 17, 118)
    with pytest.raises(InputError, match="'cl' is not the symbol of an element; did you mean Cl"):
        parse_element_symbols(["cl"])


def test_damaged_prototype_file_is_reported(tmp_path: Path) -> None:
    file = tmp_path / "prototypes.json.gz"
    file.write_bytes(shipped.FILE.read_bytes()[:1000])
    with pytest.raises(InputError, match="not the file of prototypes"):
        shipped._read(file)
