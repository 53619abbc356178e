"""The random workload: its structures are those of make_random_structures, its edges those of build_neighbour_list."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.reference.data.batch import build_batch
from harness.reference.data.neighbours import build_neighbour_list, solve_adaptive_cutoffs
from harness.reference.data.structure import Structure
from harness.reference.datasets.random_structures import make_random_structures
from harness.reference.errors import InputError
from harness.reference.programs.screening.candidates.random_workload import (
    RandomSpace,
    build_vacuum_arrays,
    iter_random_structures,
)
from tests.reference.conftest import make_crystal, make_molecule


def is_same_structure(a: Structure, b: Structure) -> bool:
    return a.name == b.name and np.array_equal(a.numbers, b.numbers) and np.array_equal(a.positions, b.positions)


@pytest.mark.parametrize(("atoms", "rank"), [((2, 100), 0), ((2, 500), 3), ((7, 7), 75_263)])
def test_stream_from_any_index_equals_the_rest_of_the_list(atoms: tuple[int, int], rank: int) -> None:
    expected = make_random_structures(60, atoms=atoms, rank=rank)
    for first in (0, 1, 2, 29, 59):
        structures = islice(iter_random_structures(rank, atoms, first), 60 - first)
        assert all(is_same_structure(a, b) for a, b in zip(structures, expected[first:], strict=True))


@given(st.data())
@settings(max_examples=20, deadline=None)
def test_block_may_span_several_ranks(data: st.DataObject) -> None:
    space = RandomSpace(ranks=3, per_rank=5, atoms=(2, 6))
    start = data.draw(st.integers(0, 15))
    stop = data.draw(st.integers(start, 15))
    expected = [s for rank in range(3) for s in make_random_structures(5, atoms=(2, 6), rank=rank)]
    assert all(is_same_structure(a, b) for a, b in zip(space.block(start, stop), expected[start:stop], strict=True))
    if start < 15:
        assert is_same_structure(space.structure(start), expected[start])


def test_memory_of_a_stream_does_not_grow_with_its_length() -> None:
    stream = iter_random_structures(0, (2, 50))
    next(stream)
    tracemalloc.start()
    for _ in islice(stream, 2000):
        pass
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100_000


@pytest.mark.parametrize("atoms", [(2, 100), (2, 500), (1, 3)])
@pytest.mark.parametrize("limit", [20, 5, None])
def test_edges_match_build_neighbour_list(atoms: tuple[int, int], limit: int | None) -> None:
    structures = make_random_structures(20, atoms=atoms, rank=1)
    arrays = build_vacuum_arrays(structures, cutoff=5.0, max_neighbours=limit)
    graphs = [build_neighbour_list(s, cutoff=5.0, max_neighbours=limit) for s in structures]
    batch = build_batch(graphs)
    for name in ("numbers", "positions", "receiver", "sender", "shift", "graph", "edge_graph", "cell", "composition"):
        assert np.array_equal(getattr(arrays, name), getattr(batch, name).numpy()), name
    assert arrays.edges.tolist() == [len(g.receiver) for g in graphs]
    assert arrays.atoms.tolist() == [len(s) for s in structures]


@pytest.mark.parametrize("density", [1.0, 30.0])
def test_all_neighbours_within_adaptive_cutoffs_are_edges(density: float) -> None:
    structures = [
        replace(s, positions=s.positions / density ** (1 / 3))
        for s in make_random_structures(10, atoms=(2, 300), rank=1)
    ]
    arrays = build_vacuum_arrays(structures, cutoff=5.0, adaptive=12.0)
    complete = build_batch([build_neighbour_list(s, cutoff=5.0) for s in structures])
    receiver, sender = complete.receiver.numpy(), complete.sender.numpy()
    ratio = np.linalg.norm(complete.positions[sender] - complete.positions[receiver], axis=1) / 5.0
    scale = solve_adaptive_cutoffs(receiver, ratio, 12.0, len(complete.numbers), tolerance=0.0)
    is_neighbour = ratio**3 * scale[receiver] < 1
    edges = set(zip(arrays.receiver.tolist(), arrays.sender.tolist(), strict=True))
    assert edges >= set(zip(receiver[is_neighbour].tolist(), sender[is_neighbour].tolist(), strict=True))
    assert len(edges) < 1.02 * is_neighbour.sum()
    assert len(edges) < 0.9 * len(receiver)


@pytest.mark.parametrize("limit", [1, 4, 7, 8, 12, 20])
def test_limit_on_shells_of_equal_length_matches_build_neighbour_list(limit: int) -> None:
    cube = np.stack(np.meshgrid(*[np.arange(4.0)] * 3), -1).reshape(-1, 3)
    structure = Structure("cube", np.full(64, 29), cube)
    arrays = build_vacuum_arrays([structure], cutoff=2.5, max_neighbours=limit)
    graph = build_neighbour_list(structure, cutoff=2.5, max_neighbours=limit)
    degrees = np.bincount(arrays.receiver, minlength=64)
    assert degrees.tolist() == np.bincount(graph.receiver, minlength=64).tolist()
    lengths = np.linalg.norm(cube[arrays.sender] - cube[arrays.receiver], axis=1)
    assert np.allclose(lengths, np.linalg.norm(cube[graph.sender] - cube[graph.receiver], axis=1))
    # The shells of a corner atom hold 3, 3, 1, 3, 6 and 3 atoms.
    assert degrees[0] == {1: 1, 4: 3, 7: 7, 8: 7, 12: 10, 20: 19}[limit]


@pytest.mark.parametrize(
    ("structures", "message"),
    [
        ([], "at least one structure"),
        ([make_molecule(), make_crystal()], "'crystal-1' is periodic: expected structures in vacuum"),
        (
            [make_molecule(), Structure("two", np.array([1, 1]), np.zeros((2, 3)))],
            "'two': atoms 0 and 1 coincide (0.0e+00",
        ),
        ([Structure("wild", np.array([1]), np.full((1, 3), np.nan))], "'wild': position of atom 0 is not finite"),
    ],
)
def test_unusable_structures_are_refused_by_name(structures: list[Structure], message: str) -> None:
    with pytest.raises(InputError) as caught:
        build_vacuum_arrays(structures, cutoff=5.0, max_neighbours=20)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (lambda: RandomSpace(ranks=0), "0 ranks of 15000 random structures"),
        (lambda: RandomSpace(ranks=1, atoms=(5, 2)), "5 to 2 atoms"),
        (lambda: list(RandomSpace(1, 5).block(0, 6)), "candidates 0 to 6: expected 0 to 5"),
        (lambda: RandomSpace(1, 5).structure(5), "candidate 5: expected 0 to 4"),
    ],
)
def test_candidate_outside_the_random_space_is_refused(query, message: str) -> None:
    with pytest.raises(InputError) as caught:
        query()
    assert message in str(caught.value)
