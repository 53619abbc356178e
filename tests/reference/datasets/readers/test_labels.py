"""Missing labels, and labels under another name, are reported by checks, conversions, stores and training."""

from __future__ import annotations

import bz2
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.db import connect

from harness.reference.data.neighbours import NeighbourSpec
from harness.reference.datasets.__main__ import main
from harness.reference.datasets.collection import open_dataset, require_forces
from harness.reference.errors import InputError
from harness.reference.storage.adios.reader import BPFile
from tests.reference.datasets.official_files import json_writers as official_json
from tests.reference.datasets.official_files import tfrecord_writers as official_tfrecord
from tests.reference.datasets.official_files import writers as official


def format_slab(k: int, *, energy: float = -300.0, column: str = "forces", atoms: int = 80) -> str:
    """Return a frame of copper atoms in Open Catalyst's layout, with its own system id."""
    grid = np.stack(np.meshgrid(*[np.arange(5)] * 3), axis=-1).reshape(-1, 3)[:atoms] * 2.5
    rows = "".join(f"Cu {x} {y} {z} 0.1 0 0\n" for x, y, z in grid.tolist())
    columns = f"Properties=species:S:1:pos:R:3:{column}:R:3"
    header = f'Lattice="15 0 0 0 15 0 0 0 40" {columns} energy={energy} sid=s{k} pbc="T T T"'
    return f"{atoms}\n{header}\n{rows}"


def write_text(path: Path, *, column: str) -> Path:
    path.write_text("".join(format_slab(k, column=column) for k in range(60)))
    return path


def write_rows(path: Path, *, forces: str) -> Path:
    def row(k: int) -> dict[str, Any]:
        result = official.make_ase_row(k)
        result[forces] = result.pop("forces")
        return result

    official.write_aselmdb(path, {k: row(k) for k in range(1, 4)})
    return path


def write_graphs(path: Path, *, forces: str) -> Path:
    graphs = {}
    for k in range(3):
        changes = {"force": None, forces: np.zeros((6, 3), dtype=np.float32)}
        graphs[str(k)] = official.encode_graph(k, **changes)
    official.write_lmdb(path, graphs)
    return path


def write_sites(path: Path, *, forces: str) -> Path:
    entries = [official_json.make_alexandria_entry(k) for k in range(3)]
    for entry in entries:
        for site in entry["structure"]["sites"]:
            site["properties"] = {forces: site["properties"]["forces"]}
    path.write_bytes(bz2.compress(json.dumps({"entries": entries}).encode()))
    return path


def write_database(path: Path, *, forces: str) -> Path:
    with connect(path) as database:
        for k in range(3):
            positions, energy, _ = official.make_conformations(1, k)
            atoms = Atoms(official.METHANOL, positions[0])
            atoms.calc = SinglePointCalculator(atoms, energy=energy[0])
            database.write(atoms, data={forces: np.zeros((6, 3))})
    return path


@pytest.mark.parametrize(
    ("dataset", "name", "write"),
    [
        ("oc2020", "0.extxyz", lambda p: write_text(p, column="dft_forces")),
        ("omol25", "a.aselmdb", lambda p: write_rows(p, forces="dft_forces")),
        ("oc2022", "a.lmdb", lambda p: write_graphs(p, forces="dft_forces")),
        ("alexandria", "a.json.bz2", lambda p: write_sites(p, forces="dft_forces")),
        ("omol25", "a.db", lambda p: write_database(p, forces="dft_forces")),
    ],
)
def test_missing_forces_are_reported_with_the_similar_name(
    tmp_path: Path, dataset: str, name: str, write: Callable[[Path], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", dataset, str(write(tmp_path / name)), "-q"]) == 1
    output = capsys.readouterr().out
    assert "nothing is wrong" not in output
    assert "  no structure has forces (did you mean 'dft_forces'?)\n" in output


@pytest.mark.parametrize(
    ("dataset", "name", "write"),
    [
        ("mptrj", "m.json", lambda p: p.write_bytes(encode_mptrj_without_forces())),
        ("qcml", "a.tfrecord", lambda p: p.write_bytes(encode_qcml_without_forces())),
    ],
)  # fmt: skip
def test_formats_with_required_forces_refuse_structures_without_forces(
    tmp_path: Path, dataset: str, name: str, write: Callable[[Path], Any], capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / name)
    assert main(["check", dataset, str(tmp_path / name), "-q"]) == 1
    assert "force" in capsys.readouterr().out


def drop_key(frame: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in frame.items() if name != key}


def encode_mptrj_without_forces() -> bytes:
    return json.dumps({"mp-1": {"mp-1-0-0": drop_key(official_json.make_mptrj_frame(0), "force")}}).encode()


def encode_qcml_without_forces() -> bytes:
    features = drop_key(official_tfrecord.make_qcml_features(0), "pbe0_forces")
    return official_tfrecord.encode_record(official_tfrecord.encode_example(features))


def test_store_without_forces_is_reported_and_refused_for_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_text(tmp_path / "0.extxyz", column="dft_forces")
    assert main(["convert", "oc2020", str(tmp_path / "0.extxyz"), "--to", str(tmp_path), "--workers", "1", "-q"]) == 0
    assert "  no structure has forces (did you mean 'dft_forces'?)\n" in capsys.readouterr().out
    with BPFile(tmp_path / "oc2020.bp") as file:
        assert file.attributes["missing_labels"] == {
            "structures": 60,
            "missing": {"forces": 60, "stress": 60, "spin": 60},
            "excluded": {},
            "remarks": [["forces", "no forces (did you mean 'dft_forces'?)", 60]],
        }
    dataset = open_dataset(tmp_path / "oc2020.bp", NeighbourSpec(5.0, 20), "preload")
    with pytest.raises(InputError, match="no structure of oc2020 has forces, and the training asks for them"):
        require_forces([dataset], 10.0)
    require_forces([dataset], 0.0)


def test_charges_under_another_name_are_a_fault_if_the_dataset_has_charges(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = {k: official.make_ase_row(k, data={"total_charge": k % 2, "spin": 1 + k % 2}) for k in range(1, 5)}
    official.write_aselmdb(tmp_path / "a.aselmdb", rows)
    assert main(["check", "omol25", str(tmp_path / "a.aselmdb"), "-q"]) == 1
    output = capsys.readouterr().out
    assert "4 structures: no charge (did you mean 'total_charge'?)" in output
    assert "nothing is wrong" not in output


def test_structures_without_a_label_are_counted_for_each_label(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = {k: official.make_ase_row(k) for k in range(1, 21)}
    for k in (3, 7):
        del rows[k]["forces"]
    del rows[9]["energy"]
    del rows[11]["data"]["spin"]
    official.write_aselmdb(tmp_path / "a.aselmdb", rows)
    assert main(["check", "omol25", str(tmp_path / "a.aselmdb"), "-q"]) == 0
    output = capsys.readouterr().out
    assert "omol25: 17 structures can be used; 3 unlabelled\n" in output
    assert "  forces: missing in 2 structures, left out\n" in output
    assert "  energy: missing in 1 structure, left out\n" in output
    assert "  spin: missing in 1 of 17 structures, stored for 16\n" in output


def test_check_counts_files_with_and_without_forces_like_a_conversion(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_text(tmp_path / "0.extxyz", column="forces")
    write_text(tmp_path / "1.extxyz", column="REF_forces")
    assert main(["check", "oc2020", str(tmp_path), "-q"]) == 0
    output = capsys.readouterr().out
    assert "oc2020: 60 structures can be used" in output
    assert "  forces: missing in 60 of 120 structures, which are left out (did you mean 'REF_forces'?)\n" in output
    assert main(["convert", "oc2020", str(tmp_path), "--to", str(tmp_path), "--workers", "1", "-q"]) == 0
    output = capsys.readouterr().out
    assert "60 structures (" in output
    assert "60 unlabelled" in output


@pytest.mark.parametrize(("dataset", "energy"), [("oc2020", -0.5), ("oc25", 0.7), ("odac23", -0.4), ("oc2022", 3.0)])
def test_adsorption_energies_are_rejected_as_total_energies(
    tmp_path: Path, dataset: str, energy: float, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "0.extxyz").write_text("".join(format_slab(k, energy=energy) for k in range(5)))
    assert main(["check", dataset, str(tmp_path), "-q"]) == 1
    assert f"{energy:g} eV for 80 atoms is not a total energy of" in capsys.readouterr().out


def test_adsorption_energies_in_a_block_reject_plausible_energies_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    energies = [-0.5, -1.2, -30.0, 0.4, -2.0]
    (tmp_path / "0.extxyz").write_text("".join(format_slab(k, energy=e) for k, e in enumerate(energies)))
    assert main(["check", "oc2020", str(tmp_path), "-q"]) == 1
    assert "oc2020: 0 structures can be used; 5 units" in capsys.readouterr().out


def test_outliers_are_left_out_and_do_not_fail_the_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    features = [official_tfrecord.make_qcml_features(k, **({"is_outlier": [1]} if k == 4 else {})) for k in range(40)]
    forces = features[7]["pbe0_forces"].copy()
    forces[0] = 50.0
    features[7]["pbe0_forces"] = forces
    path = tmp_path / "a.tfrecord-00000-of-00001"
    path.write_bytes(b"".join(official_tfrecord.encode_record(official_tfrecord.encode_example(f)) for f in features))
    assert main(["check", "qcml", str(path), "-q"]) == 0
    output = capsys.readouterr().out
    assert "qcml: 38 structures can be used" in output
    assert "  outliers: 1 structure that the dataset's authors flag as such, left out\n" in output
    assert "  outliers: 1 structure with forces of 1000 eV/angstrom or more, left out\n" in output


def test_large_forces_in_all_structures_are_a_fault(tmp_path: Path) -> None:
    (tmp_path / "0.extxyz").write_text("".join(format_slab(k) for k in range(5)).replace(" 0.1 0 0\n", " 2000 0 0\n"))
    assert main(["check", "oc2020", str(tmp_path), "-q"]) == 1
