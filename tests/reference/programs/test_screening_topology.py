"""Neighbour lists that are looked up have the edges that build_neighbour_list computes, for every prototype."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.reference.data.batch import build_batch
from harness.reference.data.neighbours import (
    SAME_SHELL_ANGSTROM,
    NeighbourList,
    build_neighbour_list,
    solve_adaptive_cutoffs,
)
from harness.reference.data.structure import Structure
from harness.reference.errors import InputError
from harness.reference.programs.screening.candidates.prototype_neighbours import Topologies, Topology, count_below
from harness.reference.programs.screening.candidates.prototype_space import CandidateSpace, PrototypeBlock
from harness.reference.programs.screening.candidates.prototypes import load_prototypes
from harness.reference.programs.screening.candidates.workload import GraphArrays

ELEMENTS = tuple(z for z in range(1, 95) if z not in {43, 61, 84, 85, 86, 87, 88, 89, 91})
SPACE = CandidateSpace(load_prototypes(), ELEMENTS)
ROUNDING_ANGSTROM = 1e-9
Edge = tuple[int, int, int, int, int]


def draw_random_block(number: int, seed: int, count: int) -> PrototypeBlock:
    """Return random candidates of one prototype."""
    low, high = SPACE.starts[number : number + 2].tolist()
    indices = np.sort(np.random.default_rng([number, seed]).integers(low, high, count))
    blocks = [SPACE.block(k, k + 1)[0] for k in indices.tolist()]
    columns = ("index", "species", "scale", "stretch")
    return PrototypeBlock(number, *(np.concatenate([getattr(r, name) for r in blocks]) for name in columns))


def compute_edge_lengths(
    receiver: np.ndarray, sender: np.ndarray, shift: np.ndarray, structure: Structure
) -> dict[Edge, float]:
    """Return the length of each edge, by its atoms and image."""
    images = shift @ np.linalg.inv(structure.cell)
    assert np.allclose(images, images.round(), atol=1e-6)
    vectors = structure.positions[sender] + shift - structure.positions[receiver]
    edges = zip(receiver.tolist(), sender.tolist(), *images.round().astype(int).T.tolist(), strict=True)
    return dict(zip(edges, np.linalg.norm(vectors, axis=1).tolist(), strict=True))


def list_candidate_edges(arrays: GraphArrays, k: int, structure: Structure) -> dict[Edge, float]:
    is_edge, first = arrays.edge_graph == k, int(arrays.atoms[:k].sum())
    return compute_edge_lengths(
        arrays.receiver[is_edge] - first, arrays.sender[is_edge] - first, arrays.shift[is_edge], structure
    )


def list_graph_edges(graph: NeighbourList) -> dict[Edge, float]:
    return compute_edge_lengths(graph.receiver, graph.sender, graph.shift, graph.structure)


def assert_edges_agree_up_to_rounding(
    looked_up: dict[Edge, float], computed: dict[Edge, float], all_edges: dict[Edge, float], cutoff: float, limit: int
) -> None:
    """Check that edges are equal, except where rounding decides whether an edge is within the cutoff or the limit."""
    for atom in {edge[0] for edge in looked_up.keys() ^ computed.keys()}:
        lengths = sorted(length for edge, length in all_edges.items() if edge[0] == atom)
        at_cutoff = any(abs(length - cutoff) < ROUNDING_ANGSTROM for length in lengths)
        first_excluded = lengths[limit] if limit < len(lengths) else np.inf
        at_shell = any(abs(first_excluded - x - SAME_SHELL_ANGSTROM) < ROUNDING_ANGSTROM for x in lengths)
        first_shell_cut = first_excluded - lengths[0] < SAME_SHELL_ANGSTROM + ROUNDING_ANGSTROM
        assert at_cutoff or at_shell or first_shell_cut, f"atom {atom} has other neighbours"
        if first_shell_cut and not (at_cutoff or at_shell):
            both = [[length for edge, length in e.items() if edge[0] == atom] for e in (looked_up, computed)]
            assert len(both[0]) == len(both[1]) == limit
            assert np.allclose(*both, atol=2 * SAME_SHELL_ANGSTROM)
    assert looked_up.keys() <= all_edges.keys()


@pytest.mark.parametrize(("cutoff", "limit"), [(5.0, 20), (6.0, 12), (3.5, None)])
def test_looked_up_edges_match_build_neighbour_list_for_every_prototype(cutoff: float, limit: int | None) -> None:
    topologies = Topologies(SPACE, cutoff, limit)
    identical = compared = 0
    for number in range(len(SPACE.prototypes)):
        block = draw_random_block(number, int(cutoff), 2)
        arrays, counts = topologies.arrays(block), topologies.edge_counts(block)
        for k, index in enumerate(block.index.tolist()):
            structure = SPACE.structure(index)
            looked_up = list_candidate_edges(arrays, k, structure)
            computed = list_graph_edges(build_neighbour_list(structure, cutoff=cutoff, max_neighbours=limit))
            assert counts[k] == arrays.edges[k] == (arrays.edge_graph == k).sum() == len(looked_up)
            compared += 1
            identical += looked_up.keys() == computed.keys()
            if looked_up.keys() != computed.keys():
                all_edges = list_graph_edges(build_neighbour_list(structure, cutoff=cutoff + 0.01))
                assert_edges_agree_up_to_rounding(looked_up, computed, all_edges, cutoff, limit or len(all_edges))
            assert all(
                computed[edge] == pytest.approx(looked_up[edge], abs=1e-9)
                for edge in computed.keys() & looked_up.keys()
            )
    assert compared == 2 * len(SPACE.prototypes)
    assert identical > 0.99 * compared


def test_looked_up_edges_include_all_neighbours_within_adaptive_cutoffs() -> None:
    topologies = Topologies(SPACE, 5.0, adaptive=20.0)
    looked_up = neighbours = 0
    for number in range(0, len(SPACE.prototypes), 3):
        block = draw_random_block(number, 1, 2)
        arrays = topologies.arrays(block)
        for k, index in enumerate(block.index.tolist()):
            structure = SPACE.structure(index)
            complete = build_neighbour_list(structure, cutoff=5.0)
            lengths = list_graph_edges(complete)
            ratio = np.array(list(lengths.values())) / 5.0
            scale = solve_adaptive_cutoffs(complete.receiver, ratio, 20.0, len(structure), tolerance=0.0)
            is_near = ratio**3 * scale[complete.receiver] < 1 - 1e-9
            near = {edge for edge, is_neighbour in zip(lengths, is_near.tolist(), strict=True) if is_neighbour}
            edges = list_candidate_edges(arrays, k, structure)
            assert near <= edges.keys() <= lengths.keys()
            looked_up, neighbours = looked_up + len(edges), neighbours + len(near)
    assert neighbours > 10_000
    assert looked_up < 1.25 * neighbours


def test_shell_is_included_only_if_the_cutoff_exceeds_its_distance() -> None:
    (number,) = (k for k, p in enumerate(SPACE.prototypes) if p.name == "CsCl")
    block = draw_random_block(number, 0, 1)
    structure = SPACE.structure(int(block.index[0]))
    edge = float(np.linalg.norm(structure.cell[0]))
    for cutoff, neighbours in ((edge - 1e-9, 8), (edge + 1e-9, 14)):
        assert Topologies(SPACE, cutoff).edge_counts(block).tolist() == [2 * neighbours]


def test_neighbour_limit_drops_whole_shells_except_the_first() -> None:
    (number,) = (k for k, p in enumerate(SPACE.prototypes) if p.name == "CsCl")
    block = draw_random_block(number, 0, 1)
    cutoff = 1.5 * float(np.linalg.norm(SPACE.structure(int(block.index[0])).cell[0]))
    for limit, neighbours in ((26, 26), (25, 14), (14, 14), (13, 8), (8, 8), (7, 7), (1, 1)):
        assert Topologies(SPACE, cutoff, limit).edge_counts(block).tolist() == [2 * neighbours], limit


@pytest.mark.parametrize("number", [0, 60, 150, 220, 249])
def test_arrays_match_build_batch(number: int) -> None:
    block = draw_random_block(number, 3, 7)
    arrays = Topologies(SPACE, 5.0, 20).arrays(block)
    graphs = [build_neighbour_list(SPACE.structure(k), cutoff=5.0, max_neighbours=20) for k in block.index.tolist()]
    batch = build_batch(graphs)
    for name in ("numbers", "receiver", "graph", "edge_graph", "composition"):
        assert np.array_equal(getattr(arrays, name), getattr(batch, name).numpy()), name
    for name in ("positions", "cell"):
        assert np.allclose(getattr(arrays, name), getattr(batch, name).numpy(), rtol=0, atol=1e-12), name
    assert arrays.atoms.tolist() == [len(g.structure) for g in graphs]
    assert arrays.edges.tolist() == [len(g.receiver) for g in graphs]
    lengths = np.linalg.norm(arrays.positions[arrays.sender] + arrays.shift - arrays.positions[arrays.receiver], axis=1)
    nearer = np.diff(lengths) < -ROUNDING_ANGSTROM
    assert np.array_equal(nearer, nearer & (np.diff(arrays.receiver) > 0))
    assert np.array_equal(arrays.graph[arrays.sender], arrays.edge_graph)


def test_selected_rows_keep_their_edges() -> None:
    block, topologies = draw_random_block(180, 0, 40), Topologies(SPACE, 5.0, 20)
    rows = np.array([31, 2, 17])
    subset, whole_block = topologies.arrays(block[rows]), topologies.arrays(block)
    assert subset.edges.tolist() == whole_block.edges[rows].tolist()
    assert np.array_equal(subset.shift[subset.edge_graph == 1], whole_block.shift[whole_block.edge_graph == 2])
    empty = topologies.arrays(block[:0])
    assert (len(empty.numbers), len(empty.receiver), empty.composition.shape) == (0, 0, (0, 119))


def test_atoms_without_a_neighbour_within_the_cutoff_have_no_edges() -> None:
    arrays = Topologies(SPACE, 0.3, 20).arrays(draw_random_block(60, 0, 3))
    assert (arrays.edges.tolist(), arrays.shift.shape) == ([0, 0, 0], (0, 3))


def test_candidate_below_the_minimum_stretch_is_refused() -> None:
    block = draw_random_block(100, 0, 1)
    with pytest.raises(InputError, match="or more"):
        Topology(SPACE.prototypes[100], 5.0, None, float(block.stretch[0]) * 1.01).edge_counts(block)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(-5, 5)), max_size=30), st.integers(-6, 6))
@settings(deadline=None)
def test_count_below_counts_the_smaller_values_of_each_row(pairs: list[tuple[int, int]], value: int) -> None:
    row_numbers, values = np.array(pairs, dtype=int).reshape(-1, 2).T
    expected = [sum(row == k and v < value for row, v in pairs) for k in range(4)]
    assert count_below(row_numbers, values.astype(float), 4)(np.array([float(value)])).tolist() == [expected]


def test_comparison_detects_wrong_edges() -> None:
    """The comparison fails for the edges of a candidate that is a fifth larger."""
    block = draw_random_block(150, 0, 1)
    structure = SPACE.structure(int(block.index[0]))
    larger = replace(block, stretch=block.stretch * 1.2)
    looked_up = list_candidate_edges(
        Topologies(SPACE, 5.0, 20).arrays(larger), 0, replace(structure, cell=structure.cell * 1.2)
    )
    computed = list_graph_edges(build_neighbour_list(structure, cutoff=5.0, max_neighbours=20))
    all_edges = list_graph_edges(build_neighbour_list(structure, cutoff=5.01))
    with pytest.raises(AssertionError, match="has other neighbours"):
        assert_edges_agree_up_to_rounding(looked_up, computed, all_edges, 5.0, 20)
