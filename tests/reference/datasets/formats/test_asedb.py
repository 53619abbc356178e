"""Reader of ASE databases: units from the metadata, labels in row.data or the row, and no writes."""

from __future__ import annotations

import hashlib
import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import ase.db
import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

from harness.reference.datasets.parsing.constants import ATOM_ENERGIES_EV
from harness.reference.datasets.readers import asedb
from harness.reference.errors import InputError
from tests.reference.datasets.official_files.writers import (
    HARTREE,
    METHANOL,
    is_same_table,
    make_conformations,
    read_all_files,
    read_remarks,
    write_nabla,
)


@pytest.mark.parametrize("units", [True, False])
def test_values_units_and_groups_are_read(tmp_path: Path, units: bool) -> None:
    path = tmp_path / "train.db"
    write_nabla(path, 5, units=units)
    before = hashlib.sha256(path.read_bytes()).digest()
    frames, faults = read_all_files(asedb.FORMAT, path)
    assert not faults
    assert frames.ids.tolist() == [f"train/{k}" for k in range(1, 6)]
    assert frames.groups.tolist() == ["0", "0", "1", "1", "2"]
    positions, _, forces = make_conformations(5)
    assert np.array_equal(frames.positions, positions.reshape(-1, 3))
    assert np.allclose(frames.energy, [(-1.1 - 0.001 * k) * HARTREE for k in range(5)])
    assert np.allclose(frames.forces, forces.reshape(-1, 3))
    assert hashlib.sha256(path.read_bytes()).digest() == before
    assert [p.name for p in tmp_path.iterdir()] == ["train.db"]


def test_chunks_are_complete_and_disjoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_nabla(tmp_path / "a.db", 8)
    with ase.db.connect(tmp_path / "a.db") as database:
        database.delete([3])
    complete, _ = read_all_files(asedb.FORMAT, tmp_path)
    assert len(complete) == 7
    monkeypatch.setattr(asedb, "CHUNK_STRUCTURES", 3)
    assert len(asedb.list_chunks([tmp_path])) == 3
    assert is_same_table(complete, read_all_files(asedb.FORMAT, tmp_path)[0])


def test_path_may_contain_any_bytes(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"m\xe9thanol?mode=rw#%41")
    folder.mkdir()
    write_nabla(tmp_path / "a.db", 3)
    shutil.move(tmp_path / "a.db", folder / "a.db")
    assert len(read_all_files(asedb.FORMAT, folder / "a.db")[0]) == 3


def test_labels_of_the_rows_themselves_are_in_ev(tmp_path: Path) -> None:
    atoms = Atoms("CO", [[0, 0, 0], [0, 0, 1.1]], cell=[9, 9, 9], pbc=(True, False, True))
    atoms.calc = SinglePointCalculator(atoms, energy=-14.0, forces=[[0, 0, 1.0], [0, 0, -1.0]])
    with ase.db.connect(tmp_path / "a.db") as database:
        database.write(atoms)
        database.write(Atoms("CO"))
    frames, faults = read_all_files(asedb.FORMAT, tmp_path)
    assert frames.energy.tolist() == [-14.0]
    assert frames.groups.tolist() == ["CO"]
    assert frames.periodic.tolist() == [[True, False, True]]
    assert frames.cell[0].tolist() == (np.eye(3) * 9).tolist()
    assert [(f.where, f.kind) for f in faults] == [("a/2", "unlabelled")]


def test_metadata_units_are_used_or_rejected(tmp_path: Path) -> None:
    write_nabla(tmp_path / "a.db", 2)
    with ase.db.connect(tmp_path / "a.db") as database:
        database.metadata = {"_distance_unit": "Bohr", "_property_unit_dict": {"energy": "eV", "forces": "eV/Ang"}}
    frames, _ = read_all_files(asedb.FORMAT, tmp_path)
    assert frames.energy[0] == -1.1
    assert np.allclose(frames.positions, make_conformations(2)[0].reshape(-1, 3) * 0.529177210903)
    with ase.db.connect(tmp_path / "a.db") as database:
        database.metadata = {"_property_unit_dict": {"energy": "furlong"}}
    with pytest.raises(InputError, match=r"a\.db: metadata name the unit 'furlong'; known are ev, ha"):
        read_all_files(asedb.FORMAT, tmp_path)


@pytest.mark.parametrize(
    ("total", "unit"),
    [(False, "hartree"), (False, "eV"), (True, "hartree"), (True, "eV")],
)
def test_missing_unit_is_inferred_and_reported(tmp_path: Path, total: bool, unit: str) -> None:
    positions, energy, forces = make_conformations(20)
    energy = energy if total else energy - ATOM_ENERGIES_EV[METHANOL].sum() - 10.0
    factor = HARTREE if unit == "hartree" else 1.0
    with ase.db.connect(tmp_path / "a.db") as database:
        for k in range(20):
            database.write(
                Atoms(METHANOL, positions[k]), data={"energy": energy[[k]] / factor, "forces": forces[k] / factor}
            )
    frames, faults = read_all_files(asedb.FORMAT, tmp_path)
    assert not faults
    assert np.allclose(frames.energy, energy)
    assert np.allclose(frames.forces, forces.reshape(-1, 3))
    ((kind, reason),) = read_remarks(asedb.FORMAT, tmp_path)
    assert kind == "units"
    assert f"no unit in the metadata; energies are taken as {unit}" in reason


@pytest.mark.parametrize("energy", [-3.0, -5000.0, 0.0, 1e300])
def test_energies_without_plausible_unit_are_rejected(tmp_path: Path, energy: float) -> None:
    with ase.db.connect(tmp_path / "a.db") as database:
        for k in range(3):
            database.write(Atoms(METHANOL, make_conformations(1, k)[0][0]), data={"energy": np.array([energy])})
    with pytest.raises(InputError, match=r"a\.db: its metadata name no unit of energy, .* of H4CO fit neither"):
        read_all_files(asedb.FORMAT, tmp_path)


def write_database_with_log(path: Path) -> Path:
    """Write two rows, the second only in the write-ahead log, as a killed program leaves it."""
    source = path.with_name("source.db")
    write_nabla(source, 1)
    with closing(sqlite3.connect(source)) as database:
        database.execute("PRAGMA journal_mode = wal")
        database.execute("PRAGMA wal_autocheckpoint = 0")
        columns = [name for _, name, *_ in database.execute("PRAGMA table_info(systems)")]
        names = ", ".join(name for name in columns if name not in ("id", "unique_id"))
        database.execute(f"INSERT INTO systems (unique_id, {names}) SELECT 'second', {names} FROM systems")
        database.commit()
        for ending in ("", "-wal"):
            shutil.copy(f"{source}{ending}", f"{path}{ending}")
    source.unlink()
    return path


def test_rows_in_a_write_ahead_log_are_read(tmp_path: Path) -> None:
    path = write_database_with_log(tmp_path / "a.db")
    assert Path(f"{path}-wal").stat().st_size
    before = path.read_bytes()
    assert read_all_files(asedb.FORMAT, path)[0].ids.tolist() == ["a/1", "a/2"]
    assert path.read_bytes() == before


def test_interrupted_write_is_rejected(tmp_path: Path) -> None:
    write_nabla(tmp_path / "a.db", 2)
    journal = tmp_path / "a.db-journal"
    journal.write_bytes(bytes(512))
    assert len(read_all_files(asedb.FORMAT, tmp_path)[0]) == 2
    journal.write_bytes(b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7" + bytes(504))
    with pytest.raises(InputError, match=r"a\.db: a\.db-journal is next to it, so a write was interrupted"):
        read_all_files(asedb.FORMAT, tmp_path)


def test_bad_rows_and_files_are_reported(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    write_nabla(path, 4)
    with sqlite3.connect(path) as database:
        database.execute("UPDATE systems SET data = ? WHERE id = 2", (b"\x00\x01rubbish",))
        database.execute("UPDATE systems SET positions = ? WHERE id = 3", (b"\x00" * 24,))
    database.close()
    frames, faults = read_all_files(asedb.FORMAT, path)
    assert frames.ids.tolist() == ["a/1", "a/4"]
    assert [(f.where, f.kind) for f in faults] == [("a/2", "malformed"), ("a/3", "shape")]
    complete = path.read_bytes()
    path.write_bytes(complete[: len(complete) // 2])
    with pytest.raises(InputError, match=r"a\.db: not an ASE database, or a damaged one"):
        read_all_files(asedb.FORMAT, path)
    path.write_bytes(b"\x89HDF" * 500)
    with pytest.raises(InputError, match=r"a\.db: not an ASE database"):
        asedb.list_chunks([path])
    path.unlink()
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE system (id)")
    database.close()
    with pytest.raises(InputError, match=r"no 'systems' \(did you mean 'system'\?"):
        asedb.list_chunks([path])
