"""Reader of S2EF LMDB files: graphs in both layouts, and hostile pickles."""

from __future__ import annotations

import contextlib
import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.reference.datasets.containers.safe_pickle import load_graph, load_pickle
from harness.reference.datasets.parsing.structure_builder import InvalidStructure
from harness.reference.datasets.readers import s2ef
from harness.reference.errors import InputError
from tests.reference.datasets.official_files.writers import (
    encode_graph,
    is_same_table,
    make_ase_row,
    make_conformations,
    read_all_files,
    write_aselmdb,
    write_lmdb,
)


def write_graphs(path: Path, count: int, *, old: bool = False, **entries: bytes) -> None:
    graphs = {str(k): encode_graph(k, old=old) for k in range(count)}
    write_lmdb(path, graphs | {"length": pickle.dumps(count)} | entries)


@pytest.mark.parametrize("old", [False, True])
def test_both_layouts_of_graphs_are_read(tmp_path: Path, old: bool) -> None:
    write_graphs(tmp_path / "data.0000.lmdb", 12, old=old)
    frames, faults = read_all_files(s2ef.LMDB_FORMAT, tmp_path)
    assert not faults
    assert frames.ids.tolist() == [f"data.0000/{k}" for k in range(12)]
    assert frames.groups.tolist()[:4] == ["100", "100", "101", "101"]
    assert frames.energy.tolist() == [-45.0 - k for k in range(12)]
    positions, _, forces = make_conformations(1, 3)
    assert np.allclose(frames[3:4].positions, positions[0], atol=1e-6)
    assert np.allclose(frames[3:4].forces, forces[0], atol=1e-6)
    assert frames.cell[0].tolist() == (np.eye(3) * 12).tolist()
    assert frames.periodic.all()


def test_files_without_a_length_are_divided_into_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_lmdb(tmp_path / "a.lmdb", {str(k): encode_graph(k) for k in range(7)})
    complete, _ = read_all_files(s2ef.LMDB_FORMAT, tmp_path)
    monkeypatch.setattr(s2ef, "CHUNK_STRUCTURES", 3)
    assert [p.key for p in s2ef.list_lmdb_chunks([tmp_path])] == ["a 0:3", "a 3:6", "a 6:7"]
    assert is_same_table(complete, read_all_files(s2ef.LMDB_FORMAT, tmp_path)[0])


def test_total_energies_take_precedence_over_adsorption_energies(tmp_path: Path) -> None:
    write_lmdb(tmp_path / "a.lmdb", {"0": encode_graph(0, y=-0.4, raw_y=torch.tensor([-44.5]))})
    assert read_all_files(s2ef.LMDB_FORMAT, tmp_path)[0].energy.tolist() == [-44.5]


@pytest.mark.parametrize(
    "value",
    [
        torch.arange(6).reshape(2, 3).T,
        torch.arange(12.0, dtype=torch.float64)[3:9:2],
        torch.tensor(3, dtype=torch.int32),
        torch.zeros((0, 3)),
        torch.tensor([True, False]),
        torch.tensor([1, 2], dtype=torch.float16),
    ],
)
def test_tensors_have_the_values_that_torch_sees(value: torch.Tensor) -> None:
    result = load_pickle(pickle.dumps(value))
    assert isinstance(result, np.ndarray)
    assert result.tolist() == value.tolist()


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize(
    "value", [np.arange(6.0).reshape(2, 3), np.asfortranarray(np.ones((2, 3), ">i4")), np.float32(2)]
)
def test_numpy_arrays_in_graphs_are_read(value: Any, protocol: int) -> None:
    result = load_graph(pickle.dumps(pickle.loads(encode_graph(0, extra=value)), protocol=protocol))
    assert np.array_equal(result["extra"], value)


class HostileShell:
    """An object whose pickle runs a shell command when it is loaded."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.marker}",)


class HostileEval(HostileShell):
    """An object whose pickle evaluates code."""

    def __reduce__(self) -> Any:
        return eval, (f"open({str(self.marker)!r}, 'w')",)


class HostileLoads(HostileShell):
    """An object whose pickle loads another hostile pickle."""

    def __reduce__(self) -> Any:
        return pickle.loads, (pickle.dumps(HostileShell(self.marker)),)


class HostileStorage(HostileShell):
    """An object whose pickle loads a hostile pickle as a torch storage."""

    def __reduce__(self) -> Any:
        return torch.storage._load_from_bytes, (pickle.dumps(HostileShell(self.marker)),)


class HostileGetattr(HostileShell):
    """An object whose pickle calls getattr."""

    def __reduce__(self) -> Any:
        return getattr, ("", "__class__")


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (HostileShell, ".system"),
        (HostileEval, ".eval"),
        (HostileLoads, "pickle.loads"),
        (HostileStorage, ".system"),
        (HostileGetattr, ".getattr"),
    ],
)
def test_hostile_pickle_is_not_executed(tmp_path: Path, kind: type[HostileShell], expected: str) -> None:
    marker = tmp_path / "was-here"
    for name, hostile in (
        ("bare", pickle.dumps(kind(marker))),
        ("listed", pickle.dumps([1, {"a": kind(marker)}])),
        ("graph", encode_graph(1, extra=kind(marker))),
        ("old", encode_graph(1, old=True, extra=kind(marker))),
    ):
        path = tmp_path / f"{name}.lmdb"
        write_lmdb(path, {"0": encode_graph(0), "1": hostile, "2": encode_graph(2)})
        frames, faults = read_all_files(s2ef.LMDB_FORMAT, path)
        assert len(frames) == 2
        assert [(f.where, f.kind) for f in faults] == [(f"{name}/1", "unsafe pickle")]
        assert expected in faults[0].reason
        assert not marker.exists()
    write_lmdb(tmp_path / "length.lmdb", {"0": encode_graph(0), "length": pickle.dumps(kind(marker))})
    with pytest.raises(InputError, match="'length' cannot be read"):
        s2ef.list_lmdb_chunks([tmp_path / "length.lmdb"])
    assert not marker.exists()


@pytest.mark.parametrize(
    ("size", "stride", "offset"),
    [((100,), (1,), 0), ((2, 2), (4, 1), 3), ((3,), (-1,), 2), ((10**12,), (0,), 0), ((2,), (1,), -1)],
)
def test_tensor_bounds_are_checked(size: tuple[int], stride: tuple[int], offset: int) -> None:
    class OutOfBounds:
        def __reduce__(self) -> Any:
            storage = torch.zeros(6).untyped_storage()
            typed = torch.storage.TypedStorage(wrap_storage=storage, dtype=torch.float32, _internal=True)
            return torch._utils._rebuild_tensor_v2, (typed, offset, size, stride, False, OrderedDict())

    with pytest.raises(InvalidStructure, match="does not fit its storage of 6"):
        load_pickle(pickle.dumps(OutOfBounds()))


@settings(max_examples=200, deadline=None)
@given(position=st.integers(0, 10**6), byte=st.integers(0, 255), is_truncated=st.booleans())
def test_damaged_pickles_are_invalid_or_plain(position: int, byte: int, is_truncated: bool) -> None:
    good = encode_graph(0)
    position %= len(good)
    bad = good[:position] if is_truncated else good[:position] + bytes([byte]) + good[position + 1 :]
    with contextlib.suppress(InvalidStructure):
        load_graph(bad)


def test_bad_rows_and_files_are_reported(tmp_path: Path) -> None:
    path = tmp_path / "a.lmdb"
    rows = {"0": encode_graph(0), "1": b"junk", "2": pickle.dumps({"y": 1}), "3": encode_graph(3, y=None)}
    rows |= {"5": encode_graph(5, pos=torch.zeros((5, 3))), "6": encode_graph(6)[:-50]}
    write_lmdb(path, rows)
    frames, faults = read_all_files(s2ef.LMDB_FORMAT, path)
    assert frames.ids.tolist() == ["a/0"]
    kinds = ["corrupt", "malformed", "unlabelled", "missing row", "shape", "corrupt"]
    assert [f.kind for f in faults] == kinds
    write_aselmdb(tmp_path / "b.aselmdb", {1: make_ase_row(1)})
    with pytest.raises(InputError, match=r"not an S2EF LMDB, no '0' \(there are: 1, metadata, nextid\)"):
        s2ef.list_lmdb_chunks([tmp_path / "b.aselmdb"])
