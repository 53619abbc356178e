"""S2EF LMDB: graphs of both layouts, and hostile pickles."""

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
    ase_row,
    conformations,
    graph_bytes,
    is_same_table,
    read_all_files,
    write_aselmdb,
    write_lmdb,
)


def write_graphs(path: Path, count: int, *, old: bool = False, **more: bytes) -> None:
    graphs = {str(k): graph_bytes(k, old=old) for k in range(count)}
    write_lmdb(path, graphs | {"length": pickle.dumps(count)} | more)


@pytest.mark.parametrize("old", [False, True])
def test_both_layouts_of_graphs(tmp_path: Path, old: bool) -> None:
    write_graphs(tmp_path / "data.0000.lmdb", 12, old=old)
    frames, faults = read_all_files(s2ef.LMDB_FORMAT, tmp_path)
    assert not faults
    assert frames.ids.tolist() == [f"data.0000/{k}" for k in range(12)]
    assert frames.groups.tolist()[:4] == ["100", "100", "101", "101"]
    assert frames.energy.tolist() == [-45.0 - k for k in range(12)]
    positions, _, forces = conformations(1, 3)
    assert np.allclose(frames[3:4].positions, positions[0], atol=1e-6)
    assert np.allclose(frames[3:4].forces, forces[0], atol=1e-6)
    assert frames.cell[0].tolist() == (np.eye(3) * 12).tolist()
    assert frames.periodic.all()


def test_parts_without_a_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_lmdb(tmp_path / "a.lmdb", {str(k): graph_bytes(k) for k in range(7)})
    whole, _ = read_all_files(s2ef.LMDB_FORMAT, tmp_path)
    monkeypatch.setattr(s2ef, "CHUNK_STRUCTURES", 3)
    assert [p.key for p in s2ef.list_lmdb_chunks([tmp_path])] == ["a 0:3", "a 3:6", "a 6:7"]
    assert is_same_table(whole, read_all_files(s2ef.LMDB_FORMAT, tmp_path)[0])


def test_totals_are_taken_before_adsorption_energies(tmp_path: Path) -> None:
    write_lmdb(tmp_path / "a.lmdb", {"0": graph_bytes(0, y=-0.4, raw_y=torch.tensor([-44.5]))})
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
def test_tensors_come_out_as_torch_sees_them(value: torch.Tensor) -> None:
    result = load_pickle(pickle.dumps(value))
    assert isinstance(result, np.ndarray)
    assert result.tolist() == value.tolist()


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize(
    "value", [np.arange(6.0).reshape(2, 3), np.asfortranarray(np.ones((2, 3), ">i4")), np.float32(2)]
)
def test_numpy_in_graphs(value: Any, protocol: int) -> None:
    result = load_graph(pickle.dumps(pickle.loads(graph_bytes(0, extra=value)), protocol=protocol))
    assert np.array_equal(result["extra"], value)


class Shell:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.mark}",)


class Evaluated(Shell):
    def __reduce__(self) -> Any:
        return eval, (f"open({str(self.mark)!r}, 'w')",)


class Loaded(Shell):
    def __reduce__(self) -> Any:
        return pickle.loads, (pickle.dumps(Shell(self.mark)),)


class Nested(Shell):
    def __reduce__(self) -> Any:
        return torch.storage._load_from_bytes, (pickle.dumps(Shell(self.mark)),)


class Through(Shell):
    def __reduce__(self) -> Any:
        return getattr, ("", "__class__")


@pytest.mark.parametrize(
    ("kind", "named"),
    [
        (Shell, ".system"),
        (Evaluated, ".eval"),
        (Loaded, "pickle.loads"),
        (Nested, ".system"),
        (Through, ".getattr"),
    ],
)
def test_hostile_pickle_is_not_executed(tmp_path: Path, kind: type[Shell], named: str) -> None:
    mark = tmp_path / "was-here"
    for name, hostile in (
        ("bare", pickle.dumps(kind(mark))),
        ("listed", pickle.dumps([1, {"a": kind(mark)}])),
        ("graph", graph_bytes(1, extra=kind(mark))),
        ("old", graph_bytes(1, old=True, extra=kind(mark))),
    ):
        path = tmp_path / f"{name}.lmdb"
        write_lmdb(path, {"0": graph_bytes(0), "1": hostile, "2": graph_bytes(2)})
        frames, faults = read_all_files(s2ef.LMDB_FORMAT, path)
        assert len(frames) == 2
        assert [(f.where, f.kind) for f in faults] == [(f"{name}/1", "unsafe pickle")]
        assert named in faults[0].reason
        assert not mark.exists()
    write_lmdb(tmp_path / "length.lmdb", {"0": graph_bytes(0), "length": pickle.dumps(kind(mark))})
    with pytest.raises(InputError, match="'length' cannot be read"):
        s2ef.list_lmdb_chunks([tmp_path / "length.lmdb"])
    assert not mark.exists()


@pytest.mark.parametrize(
    ("size", "stride", "offset"),
    [((100,), (1,), 0), ((2, 2), (4, 1), 3), ((3,), (-1,), 2), ((10**12,), (0,), 0), ((2,), (1,), -1)],
)
def test_tensor_bounds_are_checked(size: tuple[int], stride: tuple[int], offset: int) -> None:
    class Beyond:
        def __reduce__(self) -> Any:
            storage = torch.zeros(6).untyped_storage()
            typed = torch.storage.TypedStorage(wrap_storage=storage, dtype=torch.float32, _internal=True)
            return torch._utils._rebuild_tensor_v2, (typed, offset, size, stride, False, OrderedDict())

    with pytest.raises(InvalidStructure, match="does not fit its storage of 6"):
        load_pickle(pickle.dumps(Beyond()))


@settings(max_examples=200, deadline=None)
@given(at=st.integers(0, 10**6), byte=st.integers(0, 255), cut=st.booleans())
def test_damaged_pickles_are_invalid_or_plain(at: int, byte: int, cut: bool) -> None:
    good = graph_bytes(0)
    at %= len(good)
    bad = good[:at] if cut else good[:at] + bytes([byte]) + good[at + 1 :]
    with contextlib.suppress(InvalidStructure):
        load_graph(bad)


def test_bad_rows_and_files_are_reported(tmp_path: Path) -> None:
    path = tmp_path / "a.lmdb"
    rows = {"0": graph_bytes(0), "1": b"junk", "2": pickle.dumps({"y": 1}), "3": graph_bytes(3, y=None)}
    rows |= {"5": graph_bytes(5, pos=torch.zeros((5, 3))), "6": graph_bytes(6)[:-50]}
    write_lmdb(path, rows)
    frames, faults = read_all_files(s2ef.LMDB_FORMAT, path)
    assert frames.ids.tolist() == ["a/0"]
    kinds = ["corrupt", "malformed", "unlabelled", "missing row", "shape", "corrupt"]
    assert [f.kind for f in faults] == kinds
    write_aselmdb(tmp_path / "b.aselmdb", {1: ase_row(1)})
    with pytest.raises(InputError, match=r"not an S2EF LMDB, no '0' \(there are: 1, metadata, nextid\)"):
        s2ef.list_lmdb_chunks([tmp_path / "b.aselmdb"])
