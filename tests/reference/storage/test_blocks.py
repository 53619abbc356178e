"""Structures are encoded as columns: every key of the schema, with HydraGNN's shapes and conventions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from harness.reference.data.neighbours import add_neighbours, count_degrees
from harness.reference.data.structure_table import tabulate
from harness.reference.errors import InputError
from harness.reference.storage.schema import KEYS, Block, Column
from harness.reference.storage.structure_codec import decode_text, encode_table
from tests.reference.conftest import make_crystal, make_molecule
from tests.reference.storage.examples import add_random_edges, random_frames

PAIR = tabulate([replace(s, energy=0.0) for s in (make_crystal(), make_molecule())])


def test_every_column_has_the_layout_of_its_key() -> None:
    frames = random_frames(7, stress=True)
    block = encode_table(add_random_edges(frames))
    assert block.columns.keys() == KEYS.keys()
    for name, column in block.columns.items():
        key, shape = KEYS[name], column.values.shape
        assert column.axis == key.axis
        assert shape[: key.axis] + shape[key.axis + 1 :] == key.rest
        assert str(column.values.dtype) == key.dtype.replace("real", "float64")
        assert isinstance(column.counts, int) == (key.rows is not None)


def test_values_match_the_structures() -> None:
    frames = random_frames(5, stress=True)
    for k, (record, structure) in enumerate(zip(encode_table(frames).iter_samples(), frames.structures(), strict=True)):
        assert record["atomic_numbers"][:, 0].tolist() == structure.numbers.tolist()
        assert np.array_equal(record["x"], np.column_stack([structure.numbers, structure.positions, structure.forces]))
        assert np.array_equal(record["cell"], structure.cell)
        assert record["pbc"].tolist() == list(structure.periodic)
        assert record["natoms"].tolist() == [len(structure)]
        assert record["energy_per_atom"][0] == structure.energy / len(structure)
        assert record["graph_attr"].tolist() == [structure.charge, max(structure.multiplicity, 1)]
        assert np.array_equal(record["stress"], structure.stress)
        result = np.repeat(np.arange(1, 119), record["chemical_composition"][:, 0].astype(int))
        assert result.tolist() == sorted(structure.numbers.tolist())
        assert (decode_text(record["id"]), decode_text(record["group"])) == (frames.ids[k], frames.groups[k])


def test_edges_point_from_sender_to_receiver_as_in_hydragnn() -> None:
    """In HydraGNN, receiver - sender + shift is the vector of an edge, and its length is the distance."""
    table, _ = add_neighbours(PAIR, cutoff=4.0, max_neighbours=None)
    for record in encode_table(table).iter_samples():
        sender, receiver = record["edge_index"]
        vectors = record["pos"][receiver] - record["pos"][sender] + record["edge_shifts"]
        assert np.linalg.norm(vectors, axis=1) == pytest.approx(record["edge_attr"][:, 0], abs=1e-12)


def test_the_degree_histogram_counts_all_atoms() -> None:
    table, _ = add_neighbours(PAIR, cutoff=4.0, max_neighbours=None)
    assert table.edge_counts is not None
    counts = count_degrees(table)
    assert counts.sum() == table.sizes.sum()
    assert (counts * np.arange(len(counts))).sum() == table.edge_counts.sum()


def test_dtype_target_and_keys_can_be_chosen() -> None:
    frames = random_frames(4)
    block = encode_table(frames, dtype="float32", target="energy_per_atom", keys=["pos", "y", "natoms"])
    assert {n: str(c.values.dtype) for n, c in block.columns.items()} == {
        "pos": "float32",
        "y": "float32",
        "natoms": "int32",
    }
    assert block.columns["y"].values == pytest.approx(frames.energy / frames.sizes, rel=1e-6)


def test_table_without_forces_has_no_column_of_forces() -> None:
    columns = encode_table(replace(random_frames(3), forces=None)).columns
    assert "forces" not in columns
    assert columns["x"].values.shape[1] == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"energy": np.array([0.0, np.nan, 1.0])}, "energy of sample 1 is not finite"),
        ({"cell": np.full((3, 3, 3), np.inf)}, "cell of sample 0 is not finite"),
        ({"numbers": np.zeros(6, np.uint8)}, "atomic number"),
        ({"sizes": np.array([3, 0, 3])}, "'é0-1' has no atoms"),
        ({"groups": np.array(["a", "", "b"])}, "group of sample 1 is empty"),
    ],
)
def test_unstorable_values_are_rejected(change: dict[str, np.ndarray], message: str) -> None:
    frames = replace(random_frames(3, atoms=(2, 3)), **change)
    with pytest.raises(InputError, match=message):
        encode_table(frames)


@pytest.mark.parametrize("dtype", [bool, np.float16, np.int8, ">f8", "U3"])
def test_types_that_adios2_rejects_or_corrupts_are_refused(dtype: str) -> None:
    with pytest.raises(InputError, match="k: cannot be stored as"):
        Block(2, {"k": Column(np.zeros(2, dtype), 1)}).check()


def test_inconsistent_counts_are_rejected() -> None:
    with pytest.raises(InputError, match="expected 2 samples with 5 rows, got 2 with 4"):
        Block(2, {"k": Column(np.zeros(4), np.array([2, 3]))}).check()


def test_pieces_add_up_to_the_block() -> None:
    frames = random_frames(11)
    block = encode_table(add_random_edges(frames))
    records = [r for piece in block.pieces(4) for r in piece.check().iter_samples()]
    assert len(records) == 11
    for a, b in zip(records, block.iter_samples(), strict=True):
        assert all(np.array_equal(a[k], b[k]) for k in b)
