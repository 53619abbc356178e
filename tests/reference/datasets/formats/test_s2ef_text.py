"""Reader of extended XYZ: OC20's pairs of files, archives, and truncated files."""

from __future__ import annotations

import io
import lzma
import tarfile
from pathlib import Path

import ase.io
import numpy as np
import pytest

from harness.reference.datasets.readers import s2ef
from harness.reference.errors import InputError
from tests.reference.datasets.official_files.writers import (
    format_extxyz_frame,
    is_same_table,
    make_conformations,
    read_all_files,
    write_ani1x,
    write_oc20,
)


def test_oc20_is_read_with_total_energies_systems_and_cells(tmp_path: Path) -> None:
    write_oc20(tmp_path / "s2ef", "0", 6)
    write_oc20(tmp_path / "s2ef", "1", 2)
    (tmp_path / "s2ef" / "README_s2ef.md").write_text("a folder of the archive")
    frames, faults = read_all_files(s2ef.TEXT_FORMAT, tmp_path)
    assert not faults
    assert len(frames) == 8
    assert frames.ids[4] == "0/4/random1001/frame4"
    assert frames.groups.tolist()[:4] == ["random1000", "random1001", "random1002", "random1000"]
    assert frames.energy.tolist()[:3] == [-45.0, -46.0, -47.0]
    positions, _, forces = make_conformations(1, 2)
    assert np.allclose(frames[2:3].positions, positions[0], atol=1e-7)
    assert np.allclose(frames[2:3].forces, forces[0], atol=1e-7)
    assert frames.cell[0].tolist() == [[12, 0, 0], [0.5, 12, 0], [0, 0, 30]]
    assert frames.periodic.all()
    assert is_same_table(frames, read_all_files(s2ef.TEXT_FORMAT, tmp_path)[0])


def test_frames_match_ase(tmp_path: Path) -> None:
    path = tmp_path / "a.extxyz"
    path.write_text("".join(format_extxyz_frame(k) for k in range(3)))
    frames, _ = read_all_files(s2ef.TEXT_FORMAT, path)
    for atoms, result in zip(ase.io.read(path, ":"), frames.structures(), strict=True):
        assert np.array_equal(atoms.positions, result.positions)
        assert np.array_equal(atoms.get_forces(apply_constraint=False), result.forces)
        assert np.array_equal(np.array(atoms.cell), result.cell)
        assert atoms.get_potential_energy() == result.energy
    assert frames.groups.tolist() == ["H4CO"] * 3


def test_decompressed_files_next_to_compressed_ones_are_read_once(tmp_path: Path) -> None:
    write_oc20(tmp_path, "0", 4)
    packed, _ = read_all_files(s2ef.TEXT_FORMAT, tmp_path)
    write_oc20(tmp_path, "0", 4, packed=False)
    assert is_same_table(packed, read_all_files(s2ef.TEXT_FORMAT, tmp_path)[0])


def test_archives_are_read_without_unpacking(tmp_path: Path) -> None:
    path = tmp_path / "extxyz_val.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name, content in {
            "./val/0.extxyz": "".join(format_extxyz_frame(k) for k in range(3)).encode(),
            "./val/1.extxyz.xz": lzma.compress(format_extxyz_frame(7).encode()),
            "./val/README": b"nothing",
        }.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    frames, faults = read_all_files(s2ef.TEXT_FORMAT, path)
    assert not faults
    assert frames.ids.tolist() == [*(f"extxyz_val/val/0.extxyz/{k}" for k in range(3)), "extxyz_val/val/1.extxyz.xz/0"]
    path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(InputError, match="truncated or not a compressed archive"):
        read_all_files(s2ef.TEXT_FORMAT, path)


@pytest.mark.parametrize(
    ("old", "new", "kind"),
    [
        ("energy=-45", "enrgy=-45", "unlabelled"),
        ("energy=-45.0", "energy=low", "malformed"),
        ("\nO ", "\nQq ", "atomic number"),
        ("\nO ", "\nO x", "malformed"),
        (":pos:R:3", ":pos:R:2", "shape"),
        (":pos:R:3", ":place:R:3", "missing key"),
        (":forces:R:3", ":forces:R:9", "malformed"),
        ("tags:I:1:", "tags:I:", "malformed"),
        ('Lattice="12.0 ', 'Lattice="', "shape"),
    ],
)
def test_bad_frame_is_rejected_and_good_frames_are_read(tmp_path: Path, old: str, new: str, kind: str) -> None:
    text = format_extxyz_frame(0)
    assert old in text
    bad = text.replace(" free_energy", " other").replace(old, new)
    (tmp_path / "a.extxyz").write_text(bad + format_extxyz_frame(1))
    frames, faults = read_all_files(s2ef.TEXT_FORMAT, tmp_path)
    assert frames.ids.tolist() == ["a/1"]
    assert [(f.where, f.kind) for f in faults] == [("a/0", kind)]


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    write_oc20(tmp_path, "0", 4, packed=False)
    text, lines = tmp_path / "0.extxyz", tmp_path / "0.txt"
    complete = text.read_text()
    text.write_text(complete[: len(complete) - 320])
    with pytest.raises(InputError, match=r"0\.extxyz, line 25: truncated inside a frame of 6 atoms"):
        read_all_files(s2ef.TEXT_FORMAT, text)
    text.write_text("".join(format_extxyz_frame(k) for k in range(3)))
    with pytest.raises(InputError, match=r"0\.extxyz: truncated, 3 frames, but its text file has 4 lines"):
        read_all_files(s2ef.TEXT_FORMAT, text)
    text.write_text(complete + format_extxyz_frame(5))
    with pytest.raises(InputError, match=r"0\.extxyz: frame 5, but its text file has 4 lines"):
        read_all_files(s2ef.TEXT_FORMAT, text)
    lines.write_text("random1\n")
    with pytest.raises(InputError, match=r"0\.txt, line 1: 'random1', expected system,frame,reference energy"):
        read_all_files(s2ef.TEXT_FORMAT, text)
    lines.unlink()
    text.write_text(complete.replace("\n6\n", "\nsix\n"))
    with pytest.raises(InputError, match=r"0\.extxyz, line 9: 'six' is not a number of atoms"):
        read_all_files(s2ef.TEXT_FORMAT, text)
    write_ani1x(tmp_path / "ani1x.h5", {"C": 2})
    with pytest.raises(InputError, match=r"ani1x\.h5"):
        s2ef.list_text_chunks([tmp_path / "ani1x.h5"])
    packed = tmp_path / "9.extxyz.xz"
    packed.write_bytes(lzma.compress(complete.encode())[:-100])
    with pytest.raises(InputError, match=r"9\.extxyz\.xz: truncated, or not the text"):
        read_all_files(s2ef.TEXT_FORMAT, packed)
    packed.write_bytes(b"")
    with pytest.raises(InputError, match=r"9\.extxyz\.xz: "):
        read_all_files(s2ef.TEXT_FORMAT, packed)
