"""The structures that a reader returns and rejects add up to the structures of the file."""

from __future__ import annotations

import bz2
import json
import pickle
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import ase.db
import h5py
import numpy as np
import pytest
from ase import Atoms
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.reference.data.structure_table import Remark, StructureTable
from harness.reference.datasets.readers.registry import FORMATS
from tests.reference.datasets.official_files import json_writers as official_json
from tests.reference.datasets.official_files import tfrecord_writers as official_tfrecord
from tests.reference.datasets.official_files import writers as official

COUNT = 6
FLAWS = st.lists(st.tuples(st.integers(0, COUNT - 1), st.sampled_from(("drop", "shape", "type", "bytes"))), max_size=4)
Flaws = list[tuple[int, str]]


def damage_entry(entry: dict[str, Any], key: str, damage: str) -> dict[str, Any]:
    """Return an entry without a key or with an impossible value."""
    if damage == "drop":
        return {name: value for name, value in entry.items() if name != key}
    return entry | {key: {"shape": [[1.0, 2.0]], "type": "low", "bytes": {"x": None}}[damage]}


def write_ani1x(path: Path, flaws: Flaws) -> None:
    official.write_ani1x(path, {f"G{k}": 1 for k in range(COUNT)})
    _damage_groups(path, [(f"G{k}", damage) for k, damage in flaws], "wb97x_dz.forces", "coordinates")


def write_transition1x(path: Path, flaws: Flaws) -> None:
    official.write_transition1x(path, {f"C/rxn{k}": 1 for k in range(COUNT)})
    _damage_groups(path, [(f"data/C/rxn{k}", damage) for k, damage in flaws], "wB97x_6-31G(d).forces", "positions")


def write_qm7x(path: Path, flaws: Flaws) -> None:
    official.write_qm7x(path, {"0001": COUNT})
    with h5py.File(path) as file:
        names = sorted(file["0001"])
    _damage_groups(path, [(f"0001/{names[k]}", damage) for k, damage in flaws], "totFOR", "atXYZ")


def _damage_groups(path: Path, flaws: list[tuple[str, str]], labels: str, positions: str) -> None:
    with h5py.File(path, "a") as file:
        for name, damage in dict(flaws).items():
            key = labels if damage == "drop" else positions
            del file[name][key]
            if damage in ("shape", "bytes"):
                file[name][key] = np.zeros((1, 4, 3) if damage == "shape" else (1, 2))
            elif damage == "type":
                file[name][key] = ["low"]


def write_asedb(path: Path, flaws: Flaws) -> None:
    official.write_nabla(path, COUNT)
    changes = {
        "drop": "energy = NULL, data = 'null'",
        "shape": "positions = zeroblob(24)",
        "type": "numbers = 'low'",
        "bytes": "data = x'0001ff'",
    }
    with closing(sqlite3.connect(path)) as database:
        for k, damage in flaws:
            database.execute(f"UPDATE systems SET {changes[damage]} WHERE id = {k + 1}")
        database.commit()


def write_aselmdb(path: Path, flaws: Flaws) -> None:
    rows: dict[int, Any] = {k + 1: official.make_ase_row(k) for k in range(COUNT)}
    for k, damage in flaws:
        rows[k + 1] = b"junk" if damage == "bytes" else damage_entry(official.make_ase_row(k), "positions", damage)
    official.write_aselmdb(path, rows)


def write_s2ef_lmdb(path: Path, flaws: Flaws) -> None:
    graphs = {str(k): official.encode_graph(k) for k in range(COUNT)}
    for k, damage in flaws:
        changes = {"drop": {"y": None}, "shape": {"pos": np.zeros((5, 3))}, "type": {"atomic_numbers": "low"}}
        graphs[str(k)] = b"junk" if damage == "bytes" else official.encode_graph(k, **changes[damage])
    official.write_lmdb(path, graphs)


def write_s2ef_text(path: Path, flaws: Flaws) -> None:
    frames = [official.format_extxyz_frame(k) for k in range(COUNT)]
    changes = {
        "drop": ("energy=", "enrgy="),
        "shape": ("pos:R:3", "pos:R:2"),
        "type": ("\nO ", "\nQ "),
        "bytes": ("T T T", "T"),
    }
    for k, damage in flaws:
        old, new = changes[damage]
        frames[k] = frames[k].replace(old, new)
    path.write_text("".join(frames))


def write_alexandria(path: Path, flaws: Flaws) -> None:
    entries = [official_json.make_alexandria_entry(k) for k in range(COUNT)]
    for k, damage in flaws:
        entries[k] = damage_entry(entries[k], "structure", damage)
    path.write_bytes(bz2.compress(json.dumps({"entries": entries}).encode()))


def write_mptrj(path: Path, flaws: Flaws) -> None:
    frames = [official_json.make_mptrj_frame(k) for k in range(COUNT)]
    for k, damage in flaws:
        frames[k] = damage_entry(frames[k], "force", damage)
    materials: dict[str, dict[str, Any]] = {}
    for k, frame in enumerate(frames):
        materials.setdefault(f"mp-{k % 2}", {})[f"mp-{k % 2}-{k}"] = frame
    path.write_text(json.dumps(materials))


def write_qcml(path: Path, flaws: Flaws) -> None:
    features = [official_tfrecord.make_qcml_features(k) for k in range(COUNT)]
    records = [official_tfrecord.encode_example(f) for f in features]
    for k, damage in flaws:
        changes = {"drop": {"pbe0_forces": []}, "shape": {"positions": np.zeros(4)}, "type": {"pbe0_energy": [1]}}
        records[k] = (
            b"\xff\xff" if damage == "bytes" else official_tfrecord.encode_example(features[k] | changes[damage])
        )
    path.write_bytes(b"".join(official_tfrecord.encode_record(record) for record in records))


WRITERS: dict[str, tuple[str, Callable[[Path, Flaws], None]]] = {
    "alexandria": ("a.json.bz2", write_alexandria),
    "ani1x": ("a.h5", write_ani1x),
    "asedb": ("a.db", write_asedb),
    "aselmdb": ("a.aselmdb", write_aselmdb),
    "mptrj": ("a.json", write_mptrj),
    "qcml": ("a.tfrecord-00000-of-00001", write_qcml),
    "qm7x": ("a.hdf5", write_qm7x),
    "s2ef_lmdb": ("a.lmdb", write_s2ef_lmdb),
    "s2ef_text": ("a.extxyz", write_s2ef_text),
    "transition1x": ("a.h5", write_transition1x),
}


def count_structures(reader: str, path: Path) -> tuple[int, int]:
    """Return the numbers of structures of a file that are returned and rejected."""
    n_read = n_rejected = 0
    for part in FORMATS[reader].list_chunks([path]):
        for item in FORMATS[reader].read_chunk(part):
            if isinstance(item, StructureTable):
                n_read += len(item)
            elif not isinstance(item, Remark):
                assert item.reason
                n_rejected += item.count
    return n_read, n_rejected


@pytest.mark.parametrize("reader", WRITERS)
@settings(max_examples=12, deadline=None)
@given(flaws=FLAWS)
def test_read_and_rejected_structures_add_up_to_the_file(
    tmp_path_factory: pytest.TempPathFactory, reader: str, flaws: Flaws
) -> None:
    name, write = WRITERS[reader]
    path = tmp_path_factory.mktemp("file") / name
    write(path, [f for f in flaws if f[0] > 0])  # the first structure stays valid, since it identifies the format
    n_read, n_rejected = count_structures(reader, path)
    assert n_read + n_rejected == COUNT
    assert n_read >= COUNT - len({k for k, _ in flaws})


def test_all_conformations_of_an_unreadable_group_are_counted(tmp_path: Path) -> None:
    official.write_ani1x(tmp_path / "a.h5", {"GOOD": 3, "BAD": 7})
    official.write_transition1x(tmp_path / "t.h5", {"C/rxn1": 3, "C/rxn2": 7})
    with h5py.File(tmp_path / "a.h5", "a") as file:
        del file["BAD/wb97x_dz.forces"]
    with h5py.File(tmp_path / "t.h5", "a") as file:
        del file["data/C/rxn2/wB97x_6-31G(d).energy"]
    assert count_structures("ani1x", tmp_path / "a.h5") == (3, 7)
    assert count_structures("transition1x", tmp_path / "t.h5") == (3, 7)


def test_rows_that_the_index_does_not_list_are_read(tmp_path: Path) -> None:
    rows = {k: official.make_ase_row(k) for k in (1, 2)}
    official.write_aselmdb(tmp_path / "a.aselmdb", rows)
    entries = {"3": _read_first_row(tmp_path / "a.aselmdb"), "05": b"x"}
    official.write_lmdb(tmp_path / "a.aselmdb", entries)
    assert count_structures("aselmdb", tmp_path / "a.aselmdb") == (3, 1)
    graphs = {str(k): official.encode_graph(k) for k in (0, 1, 2, 5)}
    official.write_lmdb(tmp_path / "a.lmdb", graphs | {"notes": b"x"})
    assert count_structures("s2ef_lmdb", tmp_path / "a.lmdb") == (4, 3)
    official.write_lmdb(tmp_path / "b.lmdb", graphs | {"length": pickle.dumps(6)})
    assert count_structures("s2ef_lmdb", tmp_path / "b.lmdb") == (4, 2)


def _read_first_row(path: Path) -> bytes:
    import lmdb

    with lmdb.open(str(path), subdir=False, lock=False) as environment, environment.begin() as transaction:
        return bytes(transaction.get(b"1"))


def test_frames_that_share_a_name_are_counted(tmp_path: Path) -> None:
    frame = json.dumps(official_json.make_mptrj_frame(0))
    (tmp_path / "m.json").write_text(f'{{"mp-1": {{"mp-1-0-0": {frame}, "mp-1-0-0": {frame}, "mp-1-1-0": {frame}}}}}')
    assert count_structures("mptrj", tmp_path / "m.json") == (2, 1)


def test_deleted_rows_are_not_counted(tmp_path: Path) -> None:
    with ase.db.connect(tmp_path / "a.db") as database:
        for _ in range(4):
            database.write(Atoms("CO"), data={"energy": np.array([-0.4]), "forces": np.zeros((2, 3))})
        database.delete([2])
    assert count_structures("asedb", tmp_path / "a.db") == (3, 0)
