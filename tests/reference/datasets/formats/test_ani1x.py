"""Reader of ANI-1x: units, missing labels, chunks, and damaged groups and files."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from harness.reference.datasets.containers import h5
from harness.reference.datasets.parsing import paths
from harness.reference.datasets.readers import ani1x
from harness.reference.errors import InputError
from tests.reference.datasets.official_files.writers import (
    METHANOL,
    is_same_table,
    make_conformations,
    read_all_files,
    write_ani1x,
)


def test_values_ids_and_groups_are_read(tmp_path: Path) -> None:
    path = tmp_path / "ani1x-release.h5"
    write_ani1x(path, {"C1H4O1": 5, "C2H2": 3})
    frames, faults = read_all_files(ani1x.FORMAT, path)
    assert not faults
    assert frames.ids.tolist()[:2] == ["ani1x-release/C1H4O1/0", "ani1x-release/C1H4O1/1"]
    assert frames.groups.tolist() == ["C1H4O1"] * 5 + ["C2H2"] * 3
    positions, energy, forces = make_conformations(5)
    block = frames[:5]
    assert block.numbers.tolist() == METHANOL.tolist() * 5
    assert np.allclose(block.positions, positions.reshape(-1, 3), atol=1e-6)
    assert np.allclose(block.energy, energy, rtol=1e-12)
    assert block.forces is not None
    assert np.allclose(block.forces, forces.reshape(-1, 3))
    assert is_same_table(frames, read_all_files(ani1x.FORMAT, path)[0])


def test_unlabelled_conformations_are_one_rejection_per_group(tmp_path: Path) -> None:
    write_ani1x(tmp_path / "a.h5", {"C1H4O1": 5}, missing=2)
    frames, faults = read_all_files(ani1x.FORMAT, tmp_path)
    assert frames.ids.tolist() == ["a/C1H4O1/2", "a/C1H4O1/3", "a/C1H4O1/4"]
    assert [(f.where, f.kind) for f in faults] == [("a/C1H4O1", "unlabelled")]
    assert "2 of 5 conformations lack wb97x_dz.energy" in faults[0].reason


def test_chunks_are_complete_and_disjoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_ani1x(tmp_path / "a.h5", {f"G{k}": 1 + k % 4 for k in range(20)})
    complete, _ = read_all_files(ani1x.FORMAT, tmp_path)
    sizes = [1 + k % 4 for k in sorted(range(20), key=str)]
    chunks = paths.split_into_chunks(tmp_path / "a.h5", "a", sizes, structures_per_chunk=7)
    assert len(chunks) > 4
    ids = [i for chunk in chunks for block in ani1x.read_chunk(chunk) for i in block.ids.tolist()]
    assert ids == complete.ids.tolist()
    monkeypatch.setattr(h5, "MAX_CONFORMATIONS", 2)
    assert is_same_table(complete, read_all_files(ani1x.FORMAT, tmp_path)[0])


def damage(group: h5py.Group, damaged_key: str) -> None:
    if damaged_key in ("coordinates", "wb97x_dz.forces", "atomic_numbers"):
        del group[damaged_key]
    elif damaged_key == "flat":
        del group["coordinates"]
        group["coordinates"] = np.zeros((5, 18))
    elif damaged_key == "text":
        del group["wb97x_dz.energy"]
        group["wb97x_dz.energy"] = ["a"] * 5
    else:
        del group["atomic_numbers"]
        group["atomic_numbers"] = [6.5] * 6


@pytest.mark.parametrize(
    ("damaged_key", "kind", "reason"),
    [
        ("wb97x_dz.forces", "missing key", "no 'wb97x_dz.forces' (did you mean 'wb97x_dz.energy'? there are: atomic_"),
        ("coordinates", "missing key", "no 'coordinates'"),
        ("atomic_numbers", "missing key", "no 'atomic_numbers'"),
        ("flat", "shape", "'coordinates' has shape (5, 18), expected (5, 6, 3)"),
        ("text", "corrupt", "its data cannot be read"),
        ("halves", "atomic number", "'atomic_numbers' holds 6.5"),
    ],
)
def test_bad_group_is_rejected_and_good_groups_are_read(
    tmp_path: Path, damaged_key: str, kind: str, reason: str
) -> None:
    path = tmp_path / "a.h5"
    write_ani1x(path, {"BAD": 5, "GOOD": 3})
    with h5py.File(path, "a") as file:
        damage(file["BAD"], damaged_key)
    frames, faults = read_all_files(ani1x.FORMAT, path)
    assert len(frames) == 3
    assert [(f.where, f.kind) for f in faults] == [("a/BAD", kind)]
    assert reason in faults[0].reason
    assert "\n" not in faults[0].reason


def test_files_that_are_not_ani1x_are_rejected(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    write_ani1x(path, {"C": 200})
    complete = path.read_bytes()
    path.write_bytes(complete[: len(complete) // 2])
    with pytest.raises(InputError, match=r"a.h5: cannot be read as HDF5 \(.*truncated"):
        ani1x.list_chunks([path])
    path.write_text("not at all")
    with pytest.raises(InputError, match=r"a.h5: not an HDF5 file"):
        ani1x.list_chunks([path])
    with h5py.File(path, "w") as file:
        file.create_group("mol/conf")["atXYZ"] = np.zeros(3)
    with pytest.raises(InputError, match=r"not ANI-1x, 'mol': no 'coordinates' \(there are: conf\)"):
        ani1x.list_chunks([path])
    with pytest.raises(InputError, match="no such file or folder"):
        ani1x.list_chunks([tmp_path / "b.h5"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no HDF5 files in this folder"):
        ani1x.list_chunks([tmp_path / "empty"])
