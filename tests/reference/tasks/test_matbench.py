"""Matbench tables are read row by row, and missing rows do not change the official folds."""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.reference.errors import InputError
from harness.reference.tasks.catalog import find_task
from harness.reference.tasks.readers.matbench import build_official_folds, list_official_ids, read_matbench

# sha256 of the ids of the five test folds (one a line, folds separated by an empty line) in
# matbench/matbench_v0.1_validation.json of the wheel matbench 0.6
# (sha256 90b131032c3c2afe37c57b8891efefca05efe2d14296ae1f22445f7ddfb14c01)
FOLDS = {
    "matbench_dielectric": "2528c2fabe88c5c95c07bdb78135feaa1d91004da820ba3334abc8396e932a47",
    "matbench_jdft2d": "07360de593e7b6cae547f221804137768e10f500ed9572cf3a47655869644bfa",
    "matbench_log_gvrh": "160357de3154ca167e4f17eede4a2c801002e0633a1d4dceb229e32cf96c8cc4",
    "matbench_log_kvrh": "48167ab83fdf7245ebe4b87850b6ade36a9c7f368e308e94670bd94f5ea73bb6",
    "matbench_perovskites": "d78a12107ba110131eab1f137c5774832e04f069c1d14d6754e3f7f8edc5ca82",
    "matbench_phonons": "459bc0619d382b9e665e10ea63621fa497c280498bc3c60bb8ed3357b6825163",
}
SIZE = 636


def make_structure_json(symbol: str = "Na", length: float = 4.0) -> dict[str, Any]:
    """Return a structure as pymatgen 2019 wrote it into the official files."""
    cell = {"matrix": np.diag([length] * 3).tolist(), "a": length, "b": length, "c": length, "volume": length**3}
    sites = [
        {"species": [{"element": e, "occu": 1}], "abc": [x] * 3, "xyz": [x * length] * 3, "label": e}
        for e, x in ((symbol, 0.0), ("Cl", 0.5))
    ]
    names = {"@module": "pymatgen.core.structure", "@class": "Structure", "charge": None}
    return {**names, "lattice": cell, "sites": sites}


def make_rows(count: int) -> list[Any]:
    return [[make_structure_json(length=4.0 + k / 1000), 0.5 + k] for k in range(count)]


def write_table(folder: Path, data: list[Any], index: list[Any] | None = None, **other: Any) -> Path:
    """Write a file with its keys in the order of the official ones."""
    path = folder / "matbench_jdft2d.json.gz"
    table = {"index": list(range(len(data))) if index is None else index, "columns": ["structure", "exfoliation_en"]}
    with gzip.open(path, "wt") as file:
        json.dump({**table, **other, "data": data}, file)
    return path


@pytest.mark.parametrize("name", FOLDS)
def test_folds_match_the_benchmark(name: str) -> None:
    entry = find_task(name)
    ids = list_official_ids(entry)
    tests = ["\n".join(ids[k] for k in test) for _, test in build_official_folds(entry.size)]
    assert hashlib.sha256("\n\n".join(tests).encode()).hexdigest() == FOLDS[name]


@pytest.mark.parametrize("size", [636, 637, 1265])
def test_each_row_is_tested_once_and_trained_on_in_the_other_folds(size: int) -> None:
    folds = build_official_folds(size)
    assert np.array_equal(np.sort(np.concatenate([test for _, test in folds])), np.arange(size))
    for train, test in folds:
        assert np.array_equal(np.sort(np.concatenate([train, test])), np.arange(size))


def test_complete_table_is_read_with_its_values_and_structures(tmp_path: Path) -> None:
    labelled = read_matbench(write_table(tmp_path, make_rows(SIZE)))
    assert len(labelled) == SIZE
    assert not labelled.left_out
    assert labelled.official_ids[:2].tolist() == ["mb-jdft2d-001", "mb-jdft2d-002"]
    assert labelled.target[-1] == SIZE - 0.5
    second = next(labelled.table[1:2].structures()).check()
    assert second.numbers.tolist() == [11, 17]
    assert second.positions[1] == pytest.approx([2.0005] * 3)
    assert second.periodic == (True, True, True)
    assert second.energy is None
    assert second.group == "NaCl"
    for fold, official in zip(labelled.folds, build_official_folds(SIZE), strict=True):
        assert np.array_equal(fold[0], official[0])
        assert np.array_equal(fold[1], official[1])


def test_folds_keep_their_ids_where_rows_are_missing_or_unusable(tmp_path: Path) -> None:
    data = make_rows(SIZE)
    data[3][1] = None
    data[4][0] = make_structure_json("Xx")
    data[5][0]["sites"][0]["species"][0]["occu"] = 0.5
    data[6][0]["lattice"]["matrix"][0] = [0.0, 0.0, 0.0]
    data[7] = [make_structure_json()]
    row_numbers = [k for k in range(SIZE) if k not in (0, 100)]
    labelled = read_matbench(write_table(tmp_path, [data[k] for k in row_numbers], row_numbers))
    assert labelled.left_out == {
        "not in the file": 2,
        "value not finite": 1,
        "atomic number": 1,
        "disorder": 1,
        "cell without volume": 1,
        "malformed": 1,
    }
    ids = list_official_ids(find_task("matbench_jdft2d"))
    missing = {ids[k] for k in (0, 3, 4, 5, 6, 7, 100)}
    for fold, official in zip(labelled.folds, build_official_folds(SIZE), strict=True):
        for side in (0, 1):
            assert set(labelled.official_ids[fold[side]]) == {ids[k] for k in official[side]} - missing


def test_rows_may_carry_their_official_names(tmp_path: Path) -> None:
    ids = list_official_ids(find_task("matbench_jdft2d"))
    labelled = read_matbench(write_table(tmp_path, make_rows(50), ids[10:60]))
    assert labelled.official_ids.tolist() == ids[10:60]


def test_values_that_are_not_finite_are_left_out(tmp_path: Path) -> None:
    data = make_rows(50)
    data[1][1] = float("nan")
    labelled = read_matbench(write_table(tmp_path, data))
    assert labelled.left_out["value not finite"] == 1
    assert len(labelled) == 49


def test_truncated_file_is_refused(tmp_path: Path) -> None:
    path = write_table(tmp_path, make_rows(SIZE))
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(InputError, match=r"matbench_jdft2d.json.gz: cut short"):
        read_matbench(path)
    uncompressed = tmp_path / "matbench_jdft2d.json"
    uncompressed.write_text(
        json.dumps({"index": [0, 1], "columns": ["structure", "exfoliation_en"], "data": make_rows(2)})[:-40]
    )
    with pytest.raises(InputError, match="truncated"):
        read_matbench(uncompressed)


@pytest.mark.parametrize(
    ("change", "output"),
    [
        ({"columns": ["structure"]}, r"columns \['structure'\], expected"),
        ({}, "too few rows: official fold 0 has no"),
        ({"index": [0]}, "2 rows of data for an index of 1"),
        ({"index": [0, 636]}, "row 636, but matbench_jdft2d has 636 rows"),
        ({"index": [7, 7]}, "names a row twice"),
        (
            {"index": ["a", "b"]},
            "its index holds 'a', expected row numbers or the official mb-jdft2d-001 .. mb-jdft2d-636",
        ),
        ({"index": ["mb-phonons-0001", "mb-phonons-0002"]}, "its index holds 'mb-phonons-0001', expected"),
        ({"index": ["mb-jdft2d-0001", 2]}, "its index holds 'mb-jdft2d-0001', expected"),
        ({"index": [True, 2]}, "its index holds 'True', expected"),
        ({"index": [-1, 2]}, "its index holds '-1', expected"),
        ({"index": 5}, "its index is '5', expected a list"),
        (
            {"columns": ["structure", "last phdos peak"]},
            "expected .*'exfoliation_en'.*; it is the table of matbench_phonons",
        ),
        ({"columns": ["structure", "n"]}, "it is the table of matbench_dielectric"),
        ({"columns": ["structure", "target"]}, r"columns \['structure', 'target'\], expected"),
    ],
)
def test_wrong_columns_index_or_rows_are_refused(tmp_path: Path, change: dict[str, Any], output: str) -> None:
    with pytest.raises(InputError, match=output):
        read_matbench(write_table(tmp_path, make_rows(2), **change))


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "matbench_jdft2d.json"
    path.write_text('{"structure": []}')
    with pytest.raises(InputError, match="expected JSON with index, columns and data"):
        read_matbench(path)
    path.write_text("no JSON")
    with pytest.raises(InputError, match="not a Matbench table"):
        read_matbench(path)
    with pytest.raises(InputError, match="no task 'matbench_jdft2'"):
        read_matbench(tmp_path / "matbench_jdft2.json.gz")
    with pytest.raises(InputError, match="no structure with a value"):
        read_matbench(write_table(tmp_path, [[make_structure_json("Xx"), 1.0]]))


@pytest.mark.parametrize(("value", "left_out"), [(1e7, 1), (True, 0)])
def test_impossible_values_are_counted(tmp_path: Path, value: Any, left_out: int) -> None:
    data = make_rows(50)
    data[1][1] = value
    labelled = read_matbench(write_table(tmp_path, data))
    assert labelled.left_out["value out of range"] == left_out
    assert len(labelled) == 49


def test_a_table_in_another_unit_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "matbench_log_kvrh.json"
    table = {"index": list(range(50)), "columns": ["structure", "log10(K_VRH)"]}
    path.write_text(json.dumps({**table, "data": [[make_structure_json(), 150.0] for _ in range(50)]}))
    with pytest.raises(InputError, match=r"mb-log-kvrh-00001 is 150, expected -3 .. 4: another quantity or unit"):
        read_matbench(path)


def test_the_table_of_the_other_modulus_is_refused(tmp_path: Path) -> None:
    """Both tables have equally many rows and the same range of values, so only the column name distinguishes them."""
    path = tmp_path / "matbench_log_gvrh.json"
    table = {"index": list(range(50)), "columns": ["structure", "log10(K_VRH)"]}
    path.write_text(json.dumps({**table, "data": [[make_structure_json(), 1.5] for _ in range(50)]}))
    with pytest.raises(InputError, match="it is the table of matbench_log_kvrh"):
        read_matbench(path)
