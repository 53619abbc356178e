"""Reader of Transition1x: every point is read once, despite links and copies in the file."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from harness.reference.datasets.parsing import paths
from harness.reference.datasets.readers import transition1x
from harness.reference.errors import InputError
from tests.reference.datasets.official_files.writers import (
    is_same_table,
    make_conformations,
    read_all_files,
    write_ani1x,
    write_transition1x,
)

REACTIONS = {"C2H4O/rxn0001": 4, "C2H4O/rxn0002": 3, "C3H6/rxn0003": 5}


def test_every_point_is_read_once_in_ev(tmp_path: Path) -> None:
    path = tmp_path / "Transition1x.h5"
    write_transition1x(path, REACTIONS)
    frames, faults = read_all_files(transition1x.FORMAT, path)
    assert not faults
    assert len(frames) == 12
    assert frames.ids.tolist()[3:5] == ["Transition1x/C2H4O/rxn0001/3", "Transition1x/C2H4O/rxn0002/0"]
    assert sorted(set(frames.groups.tolist())) == ["C2H4O", "C3H6"]
    positions, energy, forces = make_conformations(4)
    assert np.array_equal(frames[:4].positions, positions.reshape(-1, 3))
    assert np.array_equal(frames[:4].energy, energy)
    assert np.array_equal(frames[:4].forces, forces.reshape(-1, 3))


def test_splits_are_read_if_the_group_data_is_missing(tmp_path: Path) -> None:
    write_transition1x(tmp_path / "t.h5", REACTIONS)
    complete, _ = read_all_files(transition1x.FORMAT, tmp_path)
    with h5py.File(tmp_path / "t.h5", "a") as file:
        del file["data"]
    split, _ = read_all_files(transition1x.FORMAT, tmp_path)
    assert sorted(split.ids.tolist()) == sorted(complete.ids.tolist())


def test_chunks_are_complete_and_disjoint(tmp_path: Path) -> None:
    write_transition1x(tmp_path / "t.h5", REACTIONS)
    complete, _ = read_all_files(transition1x.FORMAT, tmp_path)
    chunks = paths.split_into_chunks(tmp_path / "t.h5", "t", [4, 3, 5], structures_per_chunk=4)
    assert [p.key for p in chunks] == ["t 0:1", "t 1:3"]
    ids = [i for chunk in chunks for block in transition1x.read_chunk(chunk) for i in block.ids.tolist()]
    assert ids == complete.ids.tolist()
    assert is_same_table(complete, read_all_files(transition1x.FORMAT, tmp_path)[0])


def test_bad_groups_and_files_are_reported(tmp_path: Path) -> None:
    write_ani1x(tmp_path / "a.h5", {"C": 2})
    with pytest.raises(InputError, match="not Transition1x, its groups are C; expected data, or train, val and test"):
        transition1x.list_chunks([tmp_path / "a.h5"])
    write_transition1x(tmp_path / "t.h5", REACTIONS)
    with h5py.File(tmp_path / "t.h5", "a") as file:
        del file["data/C3H6/rxn0003/wB97x_6-31G(d).forces"]
        del file["data/C2H4O/rxn0001"]
        file["data/C2H4O/rxn0001"] = 3.0
    frames, faults = read_all_files(transition1x.FORMAT, tmp_path / "t.h5")
    assert len(frames) == 3
    assert [(f.where, f.kind) for f in faults] == [("t/C2H4O/rxn0001", "corrupt"), ("t/C3H6/rxn0003", "missing key")]
