"""Neighbour lists by lookup have the edges of computed ones in every prototype."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.reference.data.batch import build_batch
from harness.reference.data.neighbours import SAME_SHELL_ANGSTROM, NeighbourList, build_neighbour_list
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


def random_block(number: int, seed: int, count: int) -> PrototypeBlock:
    """Return random candidates of one prototype."""
    low, high = SPACE.starts[number : number + 2].tolist()
    places = np.sort(np.random.default_rng([number, seed]).integers(low, high, count))
    runs = [SPACE.block(k, k + 1)[0] for k in places.tolist()]
    columns = ("index", "species", "scale", "stretch")
    return PrototypeBlock(number, *(np.concatenate([getattr(r, name) for r in runs]) for name in columns))


def edge_lengths(
    receiver: np.ndarray, sender: np.ndarray, shift: np.ndarray, structure: Structure
) -> dict[Edge, float]:
    """Return the lengths of edges by atoms and image."""
    images = shift @ np.linalg.inv(structure.cell)
    assert np.allclose(images, images.round(), atol=1e-6)
    apart = structure.positions[sender] + shift - structure.positions[receiver]
    names = zip(receiver.tolist(), sender.tolist(), *images.round().astype(int).T.tolist(), strict=True)
    return dict(zip(names, np.linalg.norm(apart, axis=1).tolist(), strict=True))


def candidate_edges(arrays: GraphArrays, k: int, structure: Structure) -> dict[Edge, float]:
    is_edge, first = arrays.edge_graph == k, int(arrays.atoms[:k].sum())
    return edge_lengths(
        arrays.receiver[is_edge] - first, arrays.sender[is_edge] - first, arrays.shift[is_edge], structure
    )


def graph_edges(graph: NeighbourList) -> dict[Edge, float]:
    return edge_lengths(graph.receiver, graph.sender, graph.shift, graph.structure)


def assert_same_but_for_rounding(
    looked_up: dict[Edge, float], computed: dict[Edge, float], everything: dict[Edge, float], cutoff: float, limit: int
) -> None:
    """Check that edges are equal unless rounding decides about the cutoff or the shell that does not fit."""
    for atom in {edge[0] for edge in looked_up.keys() ^ computed.keys()}:
        lengths = sorted(length for edge, length in everything.items() if edge[0] == atom)
        at_cutoff = any(abs(length - cutoff) < ROUNDING_ANGSTROM for length in lengths)
        reference = lengths[limit] if limit < len(lengths) else np.inf
        at_shell = any(abs(reference - x - SAME_SHELL_ANGSTROM) < ROUNDING_ANGSTROM for x in lengths)
        first_shell_cut = reference - lengths[0] < SAME_SHELL_ANGSTROM + ROUNDING_ANGSTROM
        assert at_cutoff or at_shell or first_shell_cut, f"atom {atom} has other neighbours"
        if first_shell_cut and not (at_cutoff or at_shell):
            both = [[length for edge, length in e.items() if edge[0] == atom] for e in (looked_up, computed)]
            assert len(both[0]) == len(both[1]) == limit
            assert np.allclose(*both, atol=2 * SAME_SHELL_ANGSTROM)
    assert looked_up.keys() <= everything.keys()


@pytest.mark.parametrize(("cutoff", "limit"), [(5.0, 20), (6.0, 12), (3.5, None)])
def test_edges_are_those_of_a_fresh_list_in_every_prototype(cutoff: float, limit: int | None) -> None:
    topologies = Topologies(SPACE, cutoff, limit)
    identical = compared = 0
    for number in range(len(SPACE.prototypes)):
        run = random_block(number, int(cutoff), 2)
        arrays, counts = topologies.arrays(run), topologies.edge_counts(run)
        for k, index in enumerate(run.index.tolist()):
            structure = SPACE.structure(index)
            looked_up = candidate_edges(arrays, k, structure)
            computed = graph_edges(build_neighbour_list(structure, cutoff=cutoff, max_neighbours=limit))
            assert counts[k] == arrays.edges[k] == (arrays.edge_graph == k).sum() == len(looked_up)
            compared += 1
            identical += looked_up.keys() == computed.keys()
            if looked_up.keys() != computed.keys():
                everything = graph_edges(build_neighbour_list(structure, cutoff=cutoff + 0.01))
                assert_same_but_for_rounding(looked_up, computed, everything, cutoff, limit or len(everything))
            assert all(
                computed[edge] == pytest.approx(looked_up[edge], abs=1e-9)
                for edge in computed.keys() & looked_up.keys()
            )
    assert compared == 2 * len(SPACE.prototypes)
    assert identical > 0.99 * compared


def test_a_cutoff_just_at_a_shell_takes_it_or_leaves_it_as_rounding_has_it() -> None:
    (number,) = (k for k, p in enumerate(SPACE.prototypes) if p.name == "CsCl")
    run = random_block(number, 0, 1)
    structure = SPACE.structure(int(run.index[0]))
    edge = float(np.linalg.norm(structure.cell[0]))
    for cutoff, neighbours in ((edge - 1e-9, 8), (edge + 1e-9, 14)):
        assert Topologies(SPACE, cutoff).edge_counts(run).tolist() == [2 * neighbours]


def test_a_shell_that_does_not_fit_is_left_out_whole() -> None:
    (number,) = (k for k, p in enumerate(SPACE.prototypes) if p.name == "CsCl")
    run = random_block(number, 0, 1)
    reach = 1.5 * float(np.linalg.norm(SPACE.structure(int(run.index[0])).cell[0]))
    for limit, neighbours in ((26, 26), (25, 14), (14, 14), (13, 8), (8, 8), (7, 7), (1, 1)):
        assert Topologies(SPACE, reach, limit).edge_counts(run).tolist() == [2 * neighbours], limit


@pytest.mark.parametrize("number", [0, 60, 150, 220, 249])
def test_arrays_match_build_batch(number: int) -> None:
    run = random_block(number, 3, 7)
    arrays = Topologies(SPACE, 5.0, 20).arrays(run)
    graphs = [build_neighbour_list(SPACE.structure(k), cutoff=5.0, max_neighbours=20) for k in run.index.tolist()]
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


def test_rows_of_a_run_have_the_edges_that_they_have_in_the_run() -> None:
    run, topologies = random_block(180, 0, 40), Topologies(SPACE, 5.0, 20)
    picked = np.array([31, 2, 17])
    some, whole = topologies.arrays(run[picked]), topologies.arrays(run)
    assert some.edges.tolist() == whole.edges[picked].tolist()
    assert np.array_equal(some.shift[some.edge_graph == 1], whole.shift[whole.edge_graph == 2])
    nothing = topologies.arrays(run[:0])
    assert (len(nothing.numbers), len(nothing.receiver), nothing.composition.shape) == (0, 0, (0, 119))


def test_atoms_out_of_reach_of_all_others_have_no_edges() -> None:
    arrays = Topologies(SPACE, 0.3, 20).arrays(random_block(60, 0, 3))
    assert (arrays.edges.tolist(), arrays.shift.shape) == ([0, 0, 0], (0, 3))


def test_a_candidate_smaller_than_promised_is_refused() -> None:
    run = random_block(100, 0, 1)
    with pytest.raises(InputError, match="or more"):
        Topology(SPACE.prototypes[100], 5.0, None, float(run.stretch[0]) * 1.01).edge_counts(run)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(-5, 5)), max_size=30), st.integers(-6, 6))
@settings(deadline=None)
def test_steps_count_what_is_smaller(pairs: list[tuple[int, int]], value: int) -> None:
    rows, values = np.array(pairs, dtype=int).reshape(-1, 2).T
    expected = [sum(row == k and v < value for row, v in pairs) for k in range(4)]
    assert count_below(rows, values.astype(float), 4)(np.array([float(value)])).tolist() == [expected]


def test_a_wrong_lookup_would_be_noticed() -> None:
    """The comparison fails for the edges of a candidate that is a fifth larger."""
    run = random_block(150, 0, 1)
    structure = SPACE.structure(int(run.index[0]))
    larger = replace(run, stretch=run.stretch * 1.2)
    looked_up = candidate_edges(
        Topologies(SPACE, 5.0, 20).arrays(larger), 0, replace(structure, cell=structure.cell * 1.2)
    )
    computed = graph_edges(build_neighbour_list(structure, cutoff=5.0, max_neighbours=20))
    everything = graph_edges(build_neighbour_list(structure, cutoff=5.01))
    with pytest.raises(AssertionError, match="has other neighbours"):
        assert_same_but_for_rounding(looked_up, computed, everything, 5.0, 20)
