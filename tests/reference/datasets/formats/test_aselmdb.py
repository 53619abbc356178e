"""Reader of aselmdb files: the official sample, deleted rows, damaged rows, and other databases."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.reference.data.structure_table import StructureTable
from harness.reference.datasets.catalog import find_source
from harness.reference.datasets.parsing import unit_checks
from harness.reference.datasets.readers import aselmdb
from harness.reference.errors import InputError
from tests.reference.datasets.official_files.writers import (
    METHANOL,
    encode_array,
    encode_graph,
    is_same_table,
    make_ase_row,
    make_conformations,
    read_all_files,
    write_aselmdb,
    write_lmdb,
)

SAMPLE = Path(__file__).parents[5] / "shared" / "samples" / "small-test.aselmdb"


@pytest.mark.skipif(not SAMPLE.is_file(), reason=f"the sample of official rows is not at {SAMPLE}")
def test_official_sample_is_read_completely() -> None:
    frames, faults = read_all_files(aselmdb.FORMAT, SAMPLE)
    assert not faults
    assert len(frames) == 10
    assert frames.sizes.tolist() == [84] * 6 + [138] * 4
    assert frames.charge.tolist() == [0] * 6 + [1] * 4
    assert frames.multiplicity.tolist() == [1] * 10
    assert len(set(frames.groups.tolist())) == 2
    assert frames.energy[0] == -145879.56421942415
    assert frames.positions[0].tolist() == [6.150011, -0.938156, -1.217418]
    accepted, result = unit_checks.check_structures(frames, source=find_source("omol25"))
    assert not result
    assert len(accepted) == 10


def test_values_charges_and_stress_are_read(tmp_path: Path) -> None:
    cell = encode_array(np.eye(3) * 9.0)
    bulk = make_ase_row(
        2,
        cell=cell,
        pbc=encode_array(np.ones(3, dtype=bool)),
        stress=encode_array(np.arange(6.0)),
        data={"sid": "slab7", "fid": 3},
    )
    ion = make_ase_row(1, data={"charge": -2, "spin": 3})
    write_aselmdb(tmp_path / "data.aselmdb", {1: ion, 2: bulk})
    frames, faults = read_all_files(aselmdb.FORMAT, tmp_path)
    assert not faults
    assert frames.ids.tolist() == ["data/1", "data/2"]
    assert frames.groups.tolist() == ["H4CO", "slab7"]
    assert frames.charge.tolist() == [-2, 0]
    assert frames.multiplicity.tolist() == [3, 0]
    positions, energy, forces = make_conformations(1, 1)
    assert np.array_equal(frames[:1].positions, positions[0])
    assert frames.energy[0] == energy[0]
    assert frames.forces is not None
    assert np.array_equal(frames.forces[:6], forces[0])
    assert frames.stress is not None
    assert np.isnan(frames.stress[0]).all()
    assert frames.stress[1].tolist() == [[0, 5, 4], [5, 1, 3], [4, 3, 2]]
    assert frames.periodic.tolist() == [[False] * 3, [True] * 3]


def test_files_in_several_folders_get_distinct_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("train/a", "train/b", "val"):
        write_aselmdb(tmp_path / folder / "data.0000.aselmdb", {k: make_ase_row(k) for k in range(1, 8)})
    complete, _ = read_all_files(aselmdb.FORMAT, tmp_path)
    assert len(set(complete.ids.tolist())) == 21
    assert complete.ids[0] == "train/a/data.0000/1"
    monkeypatch.setattr(aselmdb, "CHUNK_STRUCTURES", 3)
    assert len(aselmdb.list_chunks([tmp_path])) == 9
    assert is_same_table(complete, read_all_files(aselmdb.FORMAT, tmp_path)[0])


def test_deleted_rows_are_skipped_and_absent_ones_rejected(tmp_path: Path) -> None:
    write_aselmdb(tmp_path / "d.aselmdb", {1: make_ase_row(1), 4: make_ase_row(4)}, deleted=(2,))
    frames, faults = read_all_files(aselmdb.FORMAT, tmp_path)
    assert frames.ids.tolist() == ["d/1", "d/4"]
    assert [(f.where, f.kind) for f in faults] == [("d/3", "missing row")]


def test_chunks_of_one_file_can_be_read_concurrently(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_aselmdb(tmp_path / "d.aselmdb", {k: make_ase_row(k) for k in range(1, 7)})
    monkeypatch.setattr(aselmdb, "CHUNK_STRUCTURES", 2)
    readers = [aselmdb.read_chunk(part) for part in aselmdb.list_chunks([tmp_path])]
    result = [next(reader) for reader in readers]
    assert [block.ids.tolist() for block in result] == [["d/1", "d/2"], ["d/3", "d/4"], ["d/5", "d/6"]]
    readers[0].close()
    assert not any(list(reader) for reader in readers)
    assert len(read_all_files(aselmdb.FORMAT, tmp_path)[0]) == 6


def test_links_keep_their_names(tmp_path: Path) -> None:
    write_aselmdb(tmp_path / "blobs" / "3f7a", {1: make_ase_row(1)})
    (tmp_path / "data.aselmdb").symlink_to(tmp_path / "blobs" / "3f7a")
    assert read_all_files(aselmdb.FORMAT, tmp_path)[0].ids.tolist() == ["data/1"]


def make_row_without(key: str) -> dict[str, Any]:
    result = make_ase_row(1)
    del result[key]
    return result


@pytest.mark.parametrize(
    ("bad", "kind", "reason"),
    [
        (b"rubbish", "corrupt", "not compressed JSON"),
        (zlib.compress(b"{half"), "corrupt", "not compressed JSON"),
        (zlib.compress(b"[1, 2]"), "missing key", "no 'numbers'"),
        (make_row_without("positions"), "missing key", "no 'positions'"),
        (
            make_ase_row(1, positions=encode_array(np.zeros((5, 3)))),
            "shape",
            "the shape of positions is (5, 3), expected (6, 3)",
        ),
        (
            make_ase_row(1, forces=encode_array(np.zeros((3, 6)))),
            "shape",
            "the shape of forces is (3, 6), expected (6, 3)",
        ),
        (make_ase_row(1, numbers=encode_array(METHANOL + 0.5)), "atomic number", "not integers"),
        (make_ase_row(1, numbers=encode_array(METHANOL * 1000)), "atomic number", "atomic numbers from"),
        (make_ase_row(1, positions={"__ndarray__": [[6, 3], "float64", [1.0]]}), "shape", "an array of 1 numbers"),
        (make_ase_row(1, positions={"__ndarray__": [[6, 3], "object", []]}), "malformed", "an array of type 'object'"),
        (make_ase_row(1, positions={"__ndarray__": 3}), "malformed", "int"),
        (make_ase_row(1, energy="low"), "malformed", "low"),
        (make_ase_row(1, data={"charge": "one"}), "malformed", "one"),
        (make_ase_row(1, data=[3]), "malformed", ""),
        (make_ase_row(1, cell=encode_array(np.zeros(6))), "shape", "the shape of cell is (6,)"),
    ],
)
def test_bad_row_is_rejected_and_good_rows_are_read(tmp_path: Path, bad: Any, kind: str, reason: str) -> None:
    write_aselmdb(tmp_path / "d.aselmdb", {1: make_ase_row(1), 2: bad, 3: make_ase_row(3)})
    frames, faults = read_all_files(aselmdb.FORMAT, tmp_path)
    assert frames.ids.tolist() == ["d/1", "d/3"]
    assert [(f.where, f.kind) for f in faults] == [("d/2", kind)]
    assert reason in faults[0].reason
    assert "\n" not in faults[0].reason


def test_files_that_are_not_aselmdb_are_rejected(tmp_path: Path) -> None:
    path = tmp_path / "d.aselmdb"
    write_aselmdb(path, {k: make_ase_row(k) for k in range(1, 60)})
    complete = path.read_bytes()
    path.write_bytes(complete[: len(complete) // 2])
    with pytest.raises(InputError, match=r"d\.aselmdb: truncated"):
        aselmdb.list_chunks([path])
    path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(5000))
    with pytest.raises(InputError, match=r"d\.aselmdb: not an LMDB file"):
        aselmdb.list_chunks([path])
    path.write_bytes(complete[:1000])
    with pytest.raises(InputError, match=r"d\.aselmdb: "):
        aselmdb.list_chunks([path])
    for key, value, message in (
        ("nextid", b"1000000000000", "'nextid' is 1000000000000, but there are only 1 entries"),
        ("nextid", b"-1", "expected a whole number from 1"),
        ("nextid", b"{", "neither JSON nor compressed JSON"),
    ):
        damaged = tmp_path / f"{len(message)}.aselmdb"
        write_lmdb(damaged, {key: value})
        with pytest.raises(InputError, match=message):
            aselmdb.list_chunks([damaged])
    write_lmdb(tmp_path / "e.aselmdb", {"nextid": b"3", "deleted_ids": b'{"a": 1}'})
    with pytest.raises(InputError, match="expected a list of whole numbers"):
        read_all_files(aselmdb.FORMAT, tmp_path / "e.aselmdb")
    graphs = tmp_path / "g.lmdb"
    write_lmdb(graphs, {"0": encode_graph(0)})
    with pytest.raises(InputError, match=r"not an aselmdb file, no 'nextid' \(there are: 0\)"):
        aselmdb.list_chunks([graphs])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, 10_000), byte=st.integers(0, 255))
def test_flipped_bytes_only_cause_rejections(tmp_path: Path, position: int, byte: int) -> None:
    good = zlib.compress(b'{"numbers": {"__ndarray__": [[1], "int64", [1]]}, "positions": [[0, 0, 0]], "data": {}}', 0)
    bad = bytearray(good)
    bad[position % len(bad)] = byte
    path = tmp_path / f"{position}-{byte}.aselmdb"
    if not path.exists():
        write_aselmdb(path, {1: bytes(bad)})
    for part in aselmdb.list_chunks([path]):
        for item in aselmdb.read_chunk(part):
            assert isinstance(item, StructureTable) or (item.where and item.kind and "\n" not in item.reason)
    path.unlink()
