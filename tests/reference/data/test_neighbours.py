"""Neighbour lists match brute force, respect the limit on neighbours, and refuse unusable structures."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from ase.build import bulk
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from harness.reference.data.batch import build_batch
from harness.reference.data.neighbours import NeighbourList, build_neighbour_list
from harness.reference.data.structure import Structure
from harness.reference.datasets.random_structures import make_random_structures
from harness.reference.errors import InputError
from tests.reference.conftest import make_crystal, make_molecule


def find_edges_by_brute_force(structure: Structure, cutoff: float) -> set[tuple[int, int, tuple[float, ...]]]:
    """Return every edge (receiver, sender, shift) within the cutoff."""
    multiples = range(-4, 5) if all(structure.periodic) else range(1)
    result = set()
    for image in ((a, b, c) for a in multiples for b in multiples for c in multiples):
        shift = np.array(image) @ structure.cell
        for i in range(len(structure)):
            for j in range(len(structure)):
                r = np.linalg.norm(structure.positions[j] + shift - structure.positions[i])
                if 1e-9 < r < cutoff:
                    result.add((i, j, tuple(np.round(shift, 6) + 0.0)))
    return result


def collect_edges(graph: NeighbourList) -> set[tuple[int, int, tuple[float, ...]]]:
    edges = zip(graph.receiver.tolist(), graph.sender.tolist(), graph.shift, strict=True)
    return {(i, j, tuple(np.round(s, 6) + 0.0)) for i, j, s in edges}


@pytest.mark.parametrize("structure", [make_molecule(), make_crystal()], ids=["molecule", "crystal"])
def test_neighbours_match_brute_force(structure: Structure) -> None:
    graph = build_neighbour_list(structure, cutoff=4.0)
    assert collect_edges(graph) == find_edges_by_brute_force(structure, 4.0)
    assert len(graph.receiver) == len(collect_edges(graph))


@given(seed=st.integers(0, 1000), limit=st.integers(1, 25))
@settings(max_examples=40, deadline=None)
def test_neighbour_limit_keeps_the_nearest(seed: int, limit: int) -> None:
    structure = make_molecule(14, seed)
    unlimited = build_neighbour_list(structure, cutoff=4.0)
    limited = build_neighbour_list(structure, cutoff=4.0, max_neighbours=limit)

    def lengths(graph: NeighbourList, atom: int) -> np.ndarray:
        edges = graph.receiver == atom
        d = structure.positions[graph.sender[edges]] + graph.shift[edges] - structure.positions[atom]
        return np.sort(np.linalg.norm(d, axis=1))

    for atom in range(len(structure)):
        nearest = lengths(unlimited, atom)
        # Shells of equal distance would be dropped as a whole.
        assume(len(nearest) <= limit or nearest[limit] - nearest[limit - 1] > 1e-5)
        assert np.allclose(lengths(limited, atom), nearest[:limit])


def test_neighbour_limit_drops_whole_shells() -> None:
    copper = bulk("Cu", "fcc", a=3.6)
    structure = Structure("Cu", copper.numbers, copper.positions, np.array(copper.cell), (True, True, True))
    assert len(build_neighbour_list(structure, cutoff=5.0).receiver) == 12 + 6 + 24
    assert len(build_neighbour_list(structure, cutoff=5.0, max_neighbours=20).receiver) == 12 + 6
    assert len(build_neighbour_list(structure, cutoff=5.0, max_neighbours=7).receiver) == 7


def test_isolated_atoms_have_no_neighbours() -> None:
    graph = build_neighbour_list(Structure("He", np.array([2]), np.zeros((1, 3))), cutoff=5.0, max_neighbours=20)
    batch = build_batch([graph, build_neighbour_list(make_molecule(), cutoff=4.0)])
    assert len(graph.receiver) == 0
    assert batch.receiver.dtype.is_signed
    assert int(batch.receiver.min()) == 1


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (
            replace(make_molecule(), numbers=np.array([], dtype=int), positions=np.zeros((0, 3))),
            "'molecule-0' has no atoms",
        ),
        (replace(make_molecule(), positions=np.full((9, 3), np.nan)), "'molecule-0': position of atom 0 is not finite"),
        (
            replace(make_molecule(), positions=np.zeros((8, 3))),
            "'molecule-0': positions have shape (8, 3), expected (9, 3)",
        ),
        (replace(make_molecule(), numbers=np.full(9, 119)), "'molecule-0': 119 is not an atomic number"),
        (
            replace(make_crystal(), cell=np.zeros((3, 3))),
            "'crystal-1': its lattice vectors are too short or nearly parallel",
        ),
        (
            replace(make_crystal(), cell=np.diag([5.0, 5.0, 0.05])),
            "'crystal-1': its lattice vectors are too short or nearly parallel",
        ),
        (
            replace(make_crystal(), cell=np.diag([0.0, 5.0, 5.0]), periodic=(True, False, False)),
            "'crystal-1': its lattice vectors are too short or nearly parallel",
        ),
        (
            replace(make_crystal(), cell=np.diag([5.0, 5.0, 1e9])),
            "'crystal-1': its cell is longer than 100000 angstrom",
        ),
        (
            replace(make_crystal(), positions=np.full((len(make_crystal()), 3), 1e17)),
            "'crystal-1': atom 0 is further than 1e+06 angstrom from the origin",
        ),
        (replace(make_molecule(), positions=np.zeros((9, 3))), "'molecule-0': atoms 0 and"),
    ],
)
def test_unusable_structures_raise_errors_with_their_name(broken: Structure, message: str) -> None:
    with pytest.raises(InputError) as caught:
        build_neighbour_list(broken, cutoff=4.0)
    assert message in str(caught.value)


def test_random_workload_matches_the_paper() -> None:
    structures = make_random_structures(300, atoms=(2, 500))
    sizes = [len(s) for s in structures]
    numbers = np.concatenate([s.numbers for s in structures])
    positions = np.concatenate([s.positions for s in structures])
    assert 2 <= min(sizes) < 20
    assert 450 < max(sizes) <= 500
    assert (numbers.min(), numbers.max()) == (1, 94)
    assert 0 <= positions.min() < positions.max() <= 10
    assert not any(any(s.periodic) for s in structures)
    repeated = make_random_structures(300, atoms=(2, 500))
    assert all(np.array_equal(a.positions, b.positions) for a, b in zip(structures, repeated, strict=True))
    assert not np.array_equal(make_random_structures(1, atoms=(9, 9), rank=1)[0].numbers, structures[0].numbers[:9])
