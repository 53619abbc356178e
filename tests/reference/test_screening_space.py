"""Candidates by number: a bijection with prototypes, elements and volumes; filters; neighbour lists."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
from ase.data import covalent_radii
from ase.utils.structure_comparator import SymmetryEquivalenceCheck
from hypothesis import given
from hypothesis import strategies as st

from harness.reference.batches import collate
from harness.reference.datasets.random_box import random_structures
from harness.reference.errors import InputError
from harness.reference.graphs import neighbour_graph
from harness.reference.screening.crystals import Crystals, cut
from harness.reference.screening.filters import TIGHT, ChargeBalance, OncePerSymmetry, exchanges
from harness.reference.screening.prototypes import Prototype, about, prototypes
from harness.reference.screening.random_stream import RandomStreams
from harness.reference.screening.space import CandidateSpace, Run, ranked, unranked

FEW = (1, 3, 8, 11, 17, 26, 55)
NAMED = {p.like: p for p in prototypes()}
SPACE = CandidateSpace(prototypes(), tuple(range(1, 86)))


def runs_of(space: CandidateSpace, rng: np.random.Generator, each: int) -> Iterator[Run]:
    """Some candidates of every prototype."""
    for number in range(len(space.prototypes)):
        first, stop = int(space.starts[number]), int(space.starts[number + 1])
        at = int(rng.integers(first, max(first + 1, stop - each)))
        yield from space.blocks(at, min(stop, at + each))


def test_the_prototypes_are_those_of_the_library() -> None:
    assert len(prototypes()) == 250
    assert about()["left_out"] == {"more than 20 atoms": 38}
    assert max(len(p.slots) for p in prototypes()) == 20
    assert {p.species for p in prototypes()} == {1, 2, 3, 4}
    salt = NAMED["Halite, Rock Salt"]
    assert salt.counts.tolist() == [1, 1]
    assert np.linalg.det(salt.cell) == pytest.approx(5.64**3 / 4, rel=0.01)


def test_the_space_is_that_of_the_billion() -> None:
    choices = sum(math.perm(85, p.species) for p in prototypes())
    assert len(SPACE) == 4 * choices
    assert len(SPACE) > 1_129_000_000


@given(st.integers(2, 9), st.integers(1, 4))
def test_choices_are_numbered_in_lexical_order(n: int, k: int) -> None:
    if k > n:
        return
    chosen = unranked(np.arange(math.perm(n, k)), n, k)
    assert chosen.tolist() == sorted(chosen.tolist())
    assert len({tuple(c) for c in chosen.tolist()}) == math.perm(n, k)
    assert all(len(set(c)) == k for c in chosen.tolist())
    assert [ranked(c, n) for c in chosen.tolist()] == list(range(len(chosen)))


@given(st.data())
def test_a_number_is_its_candidate_and_back(data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(SPACE) - 1))
    (run,) = SPACE.blocks(index, index + 1)
    volume = SPACE.scales.index(run.scale[0])
    assert SPACE.index_of(run.prototype, run.species[0].tolist(), volume) == index


@given(st.integers(0, 3000), st.integers(0, 3000))
def test_blocks_join_without_a_seam(a: int, b: int) -> None:
    space = CandidateSpace(prototypes()[:40], FEW, (1.0, 1.2))
    first, stop = sorted((min(a, len(space)), min(b, len(space))))
    index = np.concatenate([np.zeros(0), *(run.index for run in space.blocks(first, stop))])
    assert index.tolist() == list(range(first, stop))


def test_the_closest_atoms_just_touch() -> None:
    rng = np.random.default_rng(0)
    space = CandidateSpace(prototypes(), FEW, (1.0,))
    for run in runs_of(space, rng, 2):
        atoms = space.structure(int(run.index[0]))
        graph = neighbour_graph(atoms, cutoff=7.0)
        vector = atoms.positions[graph.sender] + graph.shift - atoms.positions[graph.receiver]
        radii = covalent_radii[atoms.numbers]
        ratio = np.linalg.norm(vector, axis=1) / (radii[graph.sender] + radii[graph.receiver])
        assert ratio.min() == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("limit", [20, None])
def test_a_reused_topology_is_a_fresh_neighbour_list(limit: int | None) -> None:
    """Of every prototype, the same edges; pairs within rounding of the cutoff count as either."""
    rng = np.random.default_rng(1)
    space = CandidateSpace(prototypes(), FEW)
    crystals = Crystals(space, (), cutoff=5.0, limit=limit)
    for run in runs_of(space, rng, 3):
        topology = crystals.topology(run.prototype)
        batch = topology.batch(run.species, run.stretch, topology.mask(run.stretch))
        fresh = collate(
            [neighbour_graph(space.structure(i), cutoff=5.0, max_neighbours=limit) for i in run.index.tolist()]
        )
        assert batch.numbers.tolist() == fresh.numbers.tolist()
        assert np.abs(batch.positions.numpy() - fresh.positions.numpy()).max() < 1e-9
        assert np.abs(batch.cell.numpy() - fresh.cell.numpy()).max() < 1e-9
        assert batch.composition.tolist() == fresh.composition.tolist()
        assert batch.graph.tolist() == fresh.graph.tolist()
        edges = [
            {
                (r, s, *np.round(shift, 5).tolist())
                for r, s, shift in zip(b.receiver.tolist(), b.sender.tolist(), b.shift.numpy() + 0.0, strict=True)
            }
            for b in (batch, fresh)
        ]
        odd = edges[0] ^ edges[1]
        lengths = [np.linalg.norm(fresh.positions.numpy()[e[1]] + e[2:] - fresh.positions.numpy()[e[0]]) for e in odd]
        assert all(abs(length - 5.0) < 1e-4 for length in lengths), (run.prototype, len(odd))
        assert (batch.edge_graph.numpy() == batch.graph.numpy()[batch.receiver.numpy()]).all()


def test_a_filtered_stretch_loses_no_candidate() -> None:
    space = CandidateSpace(prototypes(), FEW)
    crystals = Crystals(space, (ChargeBalance(), OncePerSymmetry()), cutoff=5.0, limit=20)
    first = int(space.starts[44])
    made = list(crystals.batches(first, first + 5000, 3000))
    left_out = sum(sum(m.left_out.values()) for m in made)
    assert left_out + sum(len(m.index) for m in made) == 5000
    assert len({i for m in made for i in m.index.tolist()}) == 5000 - left_out
    sizes = [len(m.batch.receiver) for m in made if len(m.index) > 1]
    assert max(sizes) <= 3000


@given(st.lists(st.integers(0, 50), max_size=30), st.integers(1, 60))
def test_cuts_hold_as_much_as_fits(counts: list[int], most: int) -> None:
    pieces = list(cut(np.array(counts, dtype=np.int64), most))
    assert [k for piece in pieces for k in range(piece.start, piece.stop)] == list(range(len(counts)))
    for piece, after in pairwise(pieces):
        assert sum(counts[piece]) <= most or piece.stop - piece.start == 1
        assert sum(counts[piece]) + counts[after.start] > most


def single(prototype: Prototype, *species: int) -> Run:
    one = np.ones(1)
    return Run(0, np.zeros(1, dtype=np.int64), np.array([species]), one, one)


@pytest.mark.parametrize(
    ("like", "species", "passes"),
    [
        ("Halite, Rock Salt", (11, 17), True),  # Na+ Cl-
        ("Halite, Rock Salt", (17, 11), True),
        ("Halite, Rock Salt", (11, 12), False),  # two metals
        ("Halite, Rock Salt", (20, 9), False),  # CaF
        ("Fluorite", (20, 9), True),
        ("Fluorite", (9, 20), False),  # Ca2F
        ("Copper", (29,), True),
        ("Halite, Rock Salt", (2, 17), False),  # helium has no states
    ],
)
def test_charges_balance(like: str, species: tuple[int, ...], passes: bool) -> None:
    prototype = NAMED[like]
    assert ChargeBalance().passes(prototype, single(prototype, *species)).tolist() == [passes]


@pytest.mark.parametrize("like", ["Halite, Rock Salt", "CsCl", "Fluorite", "Zincblende, Sphalerite", "Copper"])
def test_one_of_each_class_of_equal_crystals_is_kept(like: str) -> None:
    """By brute force: every pair of candidates of a prototype compared as crystals."""
    prototype = NAMED.get(like) or next(p for p in prototypes() if p.tag.startswith("AB_cP2_221"))
    space = CandidateSpace((prototype,), (3, 8, 11, 17), (1.0,))
    (run,) = space.blocks(0, len(space))
    kept = OncePerSymmetry().passes(prototype, run)
    check = SymmetryEquivalenceCheck(**TIGHT)
    classes: list[int] = []
    for i in range(len(run)):
        mine = to_ase(space, i)
        if not any(check.compare(mine, to_ase(space, j)) for j in classes):
            classes.append(i)
    assert np.flatnonzero(kept).tolist() == classes


def to_ase(space: CandidateSpace, index: int):  # type: ignore[no-untyped-def]
    from ase import Atoms

    s = space.structure(index)
    return Atoms(s.numbers, s.positions, cell=s.cell, pbc=True)


def test_rock_salt_may_change_its_ions_and_fluorite_may_not() -> None:
    assert exchanges(NAMED["Halite, Rock Salt"]) == ((1, 0),)
    assert exchanges(NAMED["Fluorite"]) == ()


def test_random_streams_are_the_papers_structures() -> None:
    streams = RandomStreams(3, 7, (2, 30), cutoff=5.0, limit=20)
    expected = [s for rank in range(3) for s in random_structures(7, atoms=(2, 30), rank=rank)]
    for index in (0, 6, 7, 20):
        found = streams.structure(index)
        assert found.positions.tolist() == expected[index].positions.tolist()
        assert found.numbers.tolist() == expected[index].numbers.tolist()
    made = list(streams.batches(5, 16, 2000))
    assert [i for m in made for i in m.index.tolist()] == list(range(5, 16))
    whole = collate([neighbour_graph(s, cutoff=5.0, max_neighbours=20) for s in expected[5:16]])
    assert sum(len(m.batch.receiver) for m in made) == len(whole.receiver)


def test_what_is_no_space_is_refused() -> None:
    with pytest.raises(InputError, match="no candidate"):
        CandidateSpace([p for p in prototypes() if p.species == 4], (1, 8))
    with pytest.raises(InputError, match="element 118: no covalent radius"):
        CandidateSpace(prototypes(), (1, 118))
    with pytest.raises(InputError, match=r"candidates 5\.\.9: there are 0\.\.3"):
        list(CandidateSpace([NAMED["Copper"]], (29,)).blocks(5, 10))
    with pytest.raises(InputError, match="not all among"):
        SPACE.index_of(0, [94], 0)


def test_candidates_are_made_a_million_a_second() -> None:
    """The promise for one core, with a margin for a busy machine: half of it at least."""
    at = len(SPACE) // 2
    began = time.process_time()
    made = sum(len(run) for first in range(at, at + 2**21, 2**16) for run in SPACE.blocks(first, first + 2**16))
    seconds = time.process_time() - began
    assert made == 2**21
    assert made / seconds > 500_000
