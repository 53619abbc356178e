"""Reader of QM7-X: one HDF5 group for each conformation, in plain and compressed files."""

from __future__ import annotations

import lzma
from pathlib import Path

import h5py
import numpy as np
import pytest

from harness.reference.datasets.parsing import paths
from harness.reference.datasets.readers import qm7x
from harness.reference.errors import InputError
from tests.reference.datasets.official_files.writers import (
    is_same_table,
    make_conformations,
    read_all_files,
    write_ani1x,
    write_qm7x,
)


def test_values_ids_and_groups_are_read(tmp_path: Path) -> None:
    write_qm7x(tmp_path / "1000.hdf5", {"0001": 4, "0002": 3})
    frames, faults = read_all_files(qm7x.FORMAT, tmp_path)
    assert not faults
    assert frames.ids.tolist()[0] == "1000/0001/Geom-m1-i1-c1-1"
    assert frames.groups.tolist() == ["0001"] * 4 + ["0002"] * 3
    _, energy, forces = make_conformations(4)
    # HDF5 lists groups by name: conformation 0 is `opt`, which comes after 1, 2 and 3
    assert np.array_equal(frames.energy[:4], energy[[1, 2, 3, 0]])
    assert frames.forces is not None
    assert np.array_equal(frames.forces[:6], forces[1])


def test_compressed_files_are_read_unless_the_uncompressed_file_exists(tmp_path: Path) -> None:
    uncompressed, compressed = tmp_path / "1000.hdf5", tmp_path / "1000.xz"
    write_qm7x(uncompressed, {"0001": 4, "0002": 3})
    complete, _ = read_all_files(qm7x.FORMAT, uncompressed)
    compressed.write_bytes(lzma.compress(uncompressed.read_bytes()))
    assert len(read_all_files(qm7x.FORMAT, tmp_path)[0]) == 7
    uncompressed.unlink()
    assert is_same_table(complete, read_all_files(qm7x.FORMAT, tmp_path)[0])


def test_chunks_are_complete_and_disjoint(tmp_path: Path) -> None:
    path = tmp_path / "1000.hdf5"
    write_qm7x(path, {f"{k:04d}": 2 for k in range(1, 7)})
    complete, _ = read_all_files(qm7x.FORMAT, path)
    chunks = paths.split_into_chunks(path, "1000", [2] * 6, structures_per_chunk=4)
    assert len(chunks) == 3
    ids = [i for chunk in chunks for block in qm7x.read_chunk(chunk) for i in block.ids.tolist()]
    assert ids == complete.ids.tolist()


def test_bad_groups_and_files_are_reported(tmp_path: Path) -> None:
    path = tmp_path / "1000.hdf5"
    write_qm7x(path, {"0001": 4, "0002": 2})
    with h5py.File(path, "a") as file:
        del file["0001/Geom-m1-i1-c1-1/totFOR"]
        del file["0001/Geom-m1-i1-c1-2/atXYZ"]
        file["0001/Geom-m1-i1-c1-2/atXYZ"] = np.zeros((5, 3))
        del file["0002"]
        file["0002"] = 1.0
    frames, faults = read_all_files(qm7x.FORMAT, path)
    assert len(frames) == 2
    assert [(f.where, f.kind) for f in faults] == [
        ("1000/0001/Geom-m1-i1-c1-1", "missing key"),
        ("1000/0001/Geom-m1-i1-c1-2", "shape"),
        ("1000/0002", "corrupt"),
    ]
    compressed = tmp_path / "2000.xz"
    compressed.write_bytes(lzma.compress(path.read_bytes())[:-200])
    with pytest.raises(InputError, match=r"2000\.xz: truncated or not an xz file"):
        read_all_files(qm7x.FORMAT, compressed)
    compressed.write_text("no")
    with pytest.raises(InputError, match=r"2000\.xz: not an xz file"):
        qm7x.list_chunks([compressed])
    write_ani1x(tmp_path / "a.h5", {})
    with pytest.raises(InputError, match="not QM7-X"):
        qm7x.list_chunks([tmp_path / "a.h5"])
