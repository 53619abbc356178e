"""Readers of MPtrj and Alexandria: JSON is streamed, stress is converted from VASP's, and materials are groups."""

from __future__ import annotations

import bz2
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.reference.datasets.containers.json_stream import JsonScanner, iter_values
from harness.reference.datasets.readers import pymatgen_files
from harness.reference.errors import InputError
from tests.reference.datasets.official_files.json_writers import (
    make_alexandria_entry,
    make_crystal,
    make_mptrj_frame,
    write_alexandria,
    write_mptrj,
)
from tests.reference.datasets.official_files.writers import is_same_table, read_all_files

KBAR = 1 / 1602.176634  # eV/angstrom^3
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(alphabet='ab"\\{}[],: \n')),
    lambda children: st.one_of(
        st.lists(children, max_size=4), st.dictionaries(st.text(alphabet='k"\\{['), children, max_size=4)
    ),
    max_leaves=20,
)


@settings(max_examples=80, deadline=None)
@given(
    result=st.lists(st.one_of(st.lists(JSON, max_size=3), st.dictionaries(st.text(), JSON)), max_size=5),
    chunk_size=st.integers(1, 9),
)
def test_scanner_is_independent_of_chunk_boundaries(result: list[Any], chunk_size: int) -> None:
    text = json.dumps(result).encode()
    chunks = [text[k : k + chunk_size] for k in range(0, len(text), chunk_size)]
    scanned = list(iter_values(chunks, JsonScanner("x", 1)))
    assert [json.loads(v.text) for v in scanned] == result
    assert all(text[v.offset : v.offset + len(v.text)] == v.text for v in scanned)


def test_mptrj_is_read_with_its_values_and_units(tmp_path: Path) -> None:
    write_mptrj(tmp_path / "m.json", {"mp-1": 2, "mvc-22": 1})
    frames, faults = read_all_files(pymatgen_files.MPTRJ, tmp_path)
    assert not faults
    assert frames.ids.tolist() == ["m/mp-1-0-0", "m/mp-1-1-0", "m/mvc-22-0-0"]
    assert frames.groups.tolist() == ["mp-1", "mp-1", "mvc-22"]
    assert frames.energy.tolist() == [-6.5, -7.5, -6.5]
    assert frames.numbers[:2].tolist() == [11, 17]
    assert frames.periodic.all()
    assert frames.stress is not None
    expected = -KBAR * np.array([[10.0, 1.0, 0.0], [1.0, 20.0, 0.0], [0.0, 0.0, -30.0]])
    assert np.allclose(frames.stress[0], expected, rtol=1e-9)
    assert frames.positions[1].tolist() == make_crystal(0)["sites"][1]["xyz"]
    assert frames.forces is not None
    assert frames.forces[0].tolist() == [0.1, 0.0, 0.0]


@pytest.mark.parametrize("indent", [None, 1])
def test_byte_ranges_of_mptrj_contain_every_material_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, indent: int | None
) -> None:
    path = tmp_path / "m.json"
    write_mptrj(path, {f"mp-{k}": 1 + k % 3 for k in range(1, 13)})
    path.write_text(json.dumps(json.loads(path.read_text()), indent=indent))
    complete, _ = read_all_files(pymatgen_files.MPTRJ, path)
    assert len(complete) == 24
    for size in (997, 3001, 8000):
        monkeypatch.setattr(pymatgen_files, "CHUNK_SPAN_BYTES", size)
        monkeypatch.setattr(pymatgen_files, "CHUNK_BYTES", 701)
        assert len(pymatgen_files.split_mptrj([path])) > 2
        assert is_same_table(complete, read_all_files(pymatgen_files.MPTRJ, path)[0])


def test_bad_frames_of_mptrj_are_rejected(tmp_path: Path) -> None:
    bad: list[dict[str, Any]] = [make_mptrj_frame(k) for k in range(6)]
    del bad[0]["force"]
    bad[1]["structure"]["sites"][0]["species"][0]["element"] = "Xx"
    bad[2]["structure"]["sites"][0]["species"].append({"element": "K", "occu": 0.5})
    bad[3]["force"] = [[0, 0, 0]]
    bad[4]["structure"] = None
    bad[5]["e_per_atom_relaxed"] = float("nan")
    (tmp_path / "m.json").write_text(json.dumps({"mp-1": {f"mp-1-{k}-0": f for k, f in enumerate(bad)}}))
    frames, faults = read_all_files(pymatgen_files.MPTRJ, tmp_path)
    assert frames.ids.tolist() == ["m/mp-1-5-0"]
    assert [f.kind for f in faults] == ["missing key", "atomic number", "disorder", "shape", "missing key"]
    assert "no 'force' (there are: bandgap" in faults[0].reason


def test_bad_files_of_mptrj_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    write_mptrj(path, {"mp-1": 3})
    path.write_text(path.read_text()[:-300])
    with pytest.raises(InputError, match=r"m\.json: truncated, the JSON ends inside"):
        read_all_files(pymatgen_files.MPTRJ, path)
    for text in ("\x89HDF", '{"entries": []}', "[1]"):
        path.write_text(text)
        with pytest.raises(InputError, match="not MPtrj, expected"):
            pymatgen_files.split_mptrj([path])
    path.write_text('{"mp-1": {"a": {}}}}}')
    with pytest.raises(InputError, match="more brackets are closed than opened"):
        read_all_files(pymatgen_files.MPTRJ, path)


def test_alexandria_is_read_with_its_values_and_units(tmp_path: Path) -> None:
    write_alexandria(tmp_path / "alexandria_000.json.bz2", 5)
    frames, faults = read_all_files(pymatgen_files.ALEXANDRIA, tmp_path)
    assert not faults
    assert frames.ids.tolist()[:2] == ["alexandria_000/agm000000000", "alexandria_000/agm000000001"]
    assert set(frames.groups.tolist()) == {"NaCl"}
    assert frames.energy.tolist() == [-6.5 - k for k in range(5)]
    assert frames.stress is not None
    assert np.allclose(frames.stress[0].diagonal(), [-10 * KBAR, -20 * KBAR, 30 * KBAR])
    assert frames.forces is not None
    assert frames.forces[3].tolist() == [0.01, 0.02, -0.03]
    assert is_same_table(frames, read_all_files(pymatgen_files.ALEXANDRIA, tmp_path)[0])


def test_bad_entries_and_files_of_alexandria_are_reported(tmp_path: Path) -> None:
    path = tmp_path / "alexandria_000.json.bz2"
    entries = [make_alexandria_entry(k) for k in range(3)]
    del entries[1]["structure"]
    del entries[2]["structure"]["sites"][0]["properties"]
    path.write_bytes(bz2.compress(json.dumps({"entries": entries}).encode()))
    frames, faults = read_all_files(pymatgen_files.ALEXANDRIA, path)
    assert len(frames) == 2
    assert [(f.where, f.kind) for f in faults] == [("alexandria_000/1", "missing key")]
    assert frames.forces is not None
    assert np.isnan(frames.forces[2:]).all()

    rng = np.random.default_rng(0)
    text = json.dumps({"entries": [{"x": rng.integers(0, 99, 3000).tolist()} for _ in range(50)]})
    packed = bz2.compress(text.encode())
    path.write_bytes(packed[: len(packed) // 2])
    with pytest.raises(InputError, match="truncated"):
        read_all_files(pymatgen_files.ALEXANDRIA, path)
    path.write_bytes(b"\x89HDF" + bytes(100))
    with pytest.raises(InputError, match="neither bzip2 nor JSON"):
        pymatgen_files.split_alexandria([path])
    path.write_bytes(bz2.compress(b'{"others": [{"a": 1}]}'))
    with pytest.raises(InputError, match="not Alexandria"):
        read_all_files(pymatgen_files.ALEXANDRIA, path)
