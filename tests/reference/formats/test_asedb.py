"""ASE's databases: units from the metadata, row.data before the row, never written to."""

from __future__ import annotations

import hashlib
import sqlite3
from pathlib import Path

import ase.db
import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

from harness.reference.datasets.formats import asedb
from harness.reference.errors import InputError
from tests.reference.formats.official import HARTREE, conformations, everything, same, write_nabla


@pytest.mark.parametrize("units", [True, False])
def test_values_units_and_groups(tmp_path: Path, units: bool) -> None:
    path = tmp_path / "train.db"
    write_nabla(path, 5, units=units)
    before = hashlib.sha256(path.read_bytes()).digest()
    frames, faults = everything(asedb.FORMAT, path)
    assert not faults
    assert frames.ids.tolist() == [f"train/{k}" for k in range(1, 6)]
    assert frames.groups.tolist() == ["0", "0", "1", "1", "2"]
    positions, _, forces = conformations(5)
    assert np.array_equal(frames.positions, positions.reshape(-1, 3))
    assert np.allclose(frames.energy, [(-1.1 - 0.001 * k) * HARTREE for k in range(5)])
    assert np.allclose(frames.forces, forces.reshape(-1, 3))
    assert hashlib.sha256(path.read_bytes()).digest() == before
    assert [p.name for p in tmp_path.iterdir()] == ["train.db"]


def test_parts_are_complete_and_disjoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_nabla(tmp_path / "a.db", 8)
    with ase.db.connect(tmp_path / "a.db") as database:
        database.delete([3])
    whole, _ = everything(asedb.FORMAT, tmp_path)
    assert len(whole) == 7
    monkeypatch.setattr(asedb, "PART", 3)
    assert len(asedb.parts([tmp_path])) == 3
    assert same(whole, everything(asedb.FORMAT, tmp_path)[0])


def test_labels_of_the_rows_themselves_are_in_ev(tmp_path: Path) -> None:
    atoms = Atoms("CO", [[0, 0, 0], [0, 0, 1.1]], cell=[9, 9, 9], pbc=(True, False, True))
    atoms.calc = SinglePointCalculator(atoms, energy=-14.0, forces=[[0, 0, 1.0], [0, 0, -1.0]])
    with ase.db.connect(tmp_path / "a.db") as database:
        database.write(atoms)
        database.write(Atoms("CO"))
    frames, faults = everything(asedb.FORMAT, tmp_path)
    assert frames.energy.tolist() == [-14.0]
    assert frames.groups.tolist() == ["CO"]
    assert frames.periodic.tolist() == [[True, False, True]]
    assert frames.cell[0].tolist() == (np.eye(3) * 9).tolist()
    assert [(f.where, f.kind) for f in faults] == [("a/2", "unlabelled")]


def test_units_of_the_metadata_are_believed_or_refused(tmp_path: Path) -> None:
    write_nabla(tmp_path / "a.db", 2)
    with ase.db.connect(tmp_path / "a.db") as database:
        database.metadata = {"_distance_unit": "Bohr", "_property_unit_dict": {"energy": "eV", "forces": "eV/Ang"}}
    frames, _ = everything(asedb.FORMAT, tmp_path)
    assert frames.energy[0] == -1.1
    assert np.allclose(frames.positions, conformations(2)[0].reshape(-1, 3) * 0.529177210903)
    with ase.db.connect(tmp_path / "a.db") as database:
        database.metadata = {"_property_unit_dict": {"energy": "furlong"}}
    with pytest.raises(InputError, match=r"a\.db: metadata name the unit 'furlong'; known are ev, ha"):
        everything(asedb.FORMAT, tmp_path)


def test_bad_rows_and_files(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    write_nabla(path, 4)
    with sqlite3.connect(path) as database:
        database.execute("UPDATE systems SET data = ? WHERE id = 2", (b"\x00\x01rubbish",))
        database.execute("UPDATE systems SET positions = ? WHERE id = 3", (b"\x00" * 24,))
    database.close()
    frames, faults = everything(asedb.FORMAT, path)
    assert frames.ids.tolist() == ["a/1", "a/4"]
    assert [(f.where, f.kind) for f in faults] == [("a/2", "malformed"), ("a/3", "shape")]
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"a\.db: not an ASE database, or a damaged one"):
        everything(asedb.FORMAT, path)
    path.write_bytes(b"\x89HDF" * 500)
    with pytest.raises(InputError, match=r"a\.db: not an ASE database"):
        asedb.parts([path])
    path.unlink()
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE system (id)")
    database.close()
    with pytest.raises(InputError, match=r"no 'systems' \(did you mean 'system'\?"):
        asedb.parts([path])
