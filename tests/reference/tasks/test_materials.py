"""Readers of MS25, OQMD and ABX3 in their official formats, and splits of data without official splits."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator

from harness.reference.data.structure import Structure
from harness.reference.data.structure_table import tabulate
from harness.reference.errors import InputError
from harness.reference.tasks.dataset import TaskDataset, split_task
from harness.reference.tasks.load import load_task
from harness.reference.tasks.readers import crystals, ms25


def make_labelled_copper(energy: float = -3.7, without: str = "") -> Atoms:
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.05, seed=int(-energy * 10))
    results = {"energy": energy, "forces": np.full((4, 3), 0.25)}
    atoms.calc = SinglePointCalculator(atoms, **{k: v for k, v in results.items() if k != without})
    return atoms


def write_traj(path: Path, frames: list[Atoms]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    ase.io.write(path, frames, format="traj")


def test_ms25_reads_systems_from_folders_and_files(tmp_path: Path) -> None:
    write_traj(tmp_path / "HEA" / "train.traj", [make_labelled_copper(-3.0 - k / 10) for k in range(12)])
    write_traj(tmp_path / "water.traj", [make_labelled_copper(-9.0)])
    labelled = ms25.read_ms25(tmp_path)
    assert labelled.subset.tolist() == ["HEA"] * 12 + ["water"]
    assert labelled.target[:12] == pytest.approx(-3.0 - np.arange(12) / 10)
    assert labelled.table.forces is not None
    assert (labelled.table.forces == 0.25).all()
    assert labelled.table.groups[[0, 9, 10]].tolist() == ["HEA/train/0", "HEA/train/0", "HEA/train/1"]
    first = next(labelled.table.structures()).check()
    assert first.positions == pytest.approx(make_labelled_copper(-3.0).positions)
    assert first.periodic == (True, True, True)


def test_frames_of_ms25_without_a_label_are_counted(tmp_path: Path) -> None:
    frames = [
        make_labelled_copper(),
        make_labelled_copper(-1.0, "forces"),
        make_labelled_copper(-2.0, "energy"),
        bulk("Cu"),
    ]
    write_traj(tmp_path / "a.traj", frames)
    labelled = ms25.read_ms25(tmp_path / "a.traj")
    assert labelled.left_out == {"no forces": 1, "no energy": 2}


def test_repeated_frames_are_read_once(tmp_path: Path) -> None:
    one_frame, two_frames = [make_labelled_copper(-3.0)], [make_labelled_copper(-3.0), make_labelled_copper(-4.0)]
    write_traj(tmp_path / "HEA" / "set1" / "train-1.traj", one_frame)
    write_traj(tmp_path / "HEA" / "set1" / "train-2.traj", two_frames)
    labelled = ms25.read_ms25(tmp_path)
    assert labelled.target.tolist() == [-3.0, -4.0]
    assert labelled.left_out == {"repeated": 1}


def test_energy_may_be_in_the_info_of_a_frame(tmp_path: Path) -> None:
    atoms = make_labelled_copper(without="energy")
    atoms.info["E"] = -3.25
    write_traj(tmp_path / "a.traj", [atoms])
    assert ms25.read_ms25(tmp_path).target.tolist() == [-3.25]


def test_impossible_energies_of_ms25_are_refused_or_counted(tmp_path: Path) -> None:
    write_traj(tmp_path / "a.traj", [make_labelled_copper(-9.0 - k) for k in range(3)] + [make_labelled_copper(-9e4)])
    labelled = ms25.read_ms25(tmp_path / "a.traj")
    assert labelled.left_out == {"energy that cannot be of these atoms": 1}
    write_traj(tmp_path / "b.traj", [make_labelled_copper(-4e5 - k) for k in range(3)])
    with pytest.raises(InputError, match=r"b.traj: b/0: -100000 eV per atom is neither .*: are the energies in eV"):
        ms25.read_ms25(tmp_path / "b.traj")
    write_traj(tmp_path / "c.traj", [make_labelled_copper(4 * -1640.0 * 27.2114 - k) for k in range(3)])
    # Total energies of all electrons are valid: about -1640 hartree for an atom of copper.
    assert len(ms25.read_ms25(tmp_path / "c.traj")) == 3


def test_a_damaged_trajectory_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.traj"
    write_traj(path, [make_labelled_copper()] * 3)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(InputError, match=r"a.traj: cut short, or not an ASE trajectory"):
        ms25.read_ms25(path)
    path.unlink()
    with pytest.raises(InputError, match="no MS25 trajectories in this folder"):
        ms25.read_ms25(tmp_path)


def make_oqmd_entry(**changes: Any) -> dict[str, Any]:
    """Return an entry as the OQMD's API returns it."""
    sites = ["Cs @ 0 0 0", "Pb @ 0.5 0.5 0.5", "I @ 0.5 0.5 0", "I @ 0.5 0 0.5", "I @ 0 0.5 0.5"]
    cell = [[6.3, 0, 0], [0, 6.3, 0], [0, 0, 6.3]]
    return {"entry_id": 4061139, "name": "CsPbI3", "unit_cell": cell, "sites": sites, "delta_e": -1.1, **changes}


def write_page(folder: Path, entries: list[Any]) -> Path:
    path = folder / "oqmd.json"
    path.write_text(json.dumps({"links": {"next": None}, "data": entries, "meta": {"data_returned": len(entries)}}))
    return path


def test_oqmd_reads_pages_of_the_api(tmp_path: Path) -> None:
    labelled = crystals.read_oqmd(write_page(tmp_path, [make_oqmd_entry()]))
    crystal = next(labelled.table.structures()).check()
    assert labelled.official_ids.tolist() == ["4061139"]
    assert labelled.target.tolist() == [-1.1]
    assert crystal.numbers.tolist() == [55, 82, 53, 53, 53]
    assert crystal.positions[2] == pytest.approx([3.15, 3.15, 0])
    assert crystal.group == "I3CsPb"


def test_unusable_entries_of_oqmd_are_counted(tmp_path: Path) -> None:
    flat = [[1, 0, 0], [0, 1, 0], [1, 1, 0]]
    bad = [
        make_oqmd_entry(delta_e=None),
        make_oqmd_entry(sites=["Xx @ 0 0 0"]),
        make_oqmd_entry(unit_cell=flat),
        {"entry_id": 1},
        make_oqmd_entry(sites=[]),
    ]
    labelled = crystals.read_oqmd(write_page(tmp_path, [make_oqmd_entry(), *bad]))
    assert len(labelled) == 1
    assert labelled.left_out["value not finite"] == 1
    assert labelled.left_out["atomic number"] == 1
    assert labelled.left_out["cell without volume"] == 1
    assert labelled.left_out["missing key"] == 1
    assert sum(labelled.left_out.values()) == 5


def test_json_that_is_no_page_of_the_oqmd_is_refused(tmp_path: Path) -> None:
    path = write_page(tmp_path, [make_oqmd_entry()])
    path.write_text(path.read_text()[:-30])
    with pytest.raises(InputError, match=r"oqmd.json: truncated"):
        crystals.read_oqmd(path)
    path.write_text('{"response": []}')
    with pytest.raises(InputError, match="not a page of the OQMD's API"):
        crystals.read_oqmd(path)
    with pytest.raises(InputError, match="no structure with a value"):
        crystals.read_oqmd(write_page(tmp_path, []))


def test_formation_energies_in_another_unit_are_refused_and_single_impossible_ones_counted(tmp_path: Path) -> None:
    write_page(
        tmp_path,
        [make_oqmd_entry(), make_oqmd_entry(entry_id=2, delta_e=-0.5), make_oqmd_entry(entry_id=3, delta_e=250.0)],
    )
    labelled = crystals.read_oqmd(tmp_path)
    assert labelled.target.tolist() == [-1.1, -0.5]
    assert labelled.left_out == {"energy that cannot be of these atoms": 1}
    write_page(tmp_path, [make_oqmd_entry(delta_e=-1100.0), make_oqmd_entry(entry_id=2, delta_e=-500.0)])
    with pytest.raises(InputError, match=r"a formation energy of -1100 eV/atom, expected at most 20: are they in eV"):
        crystals.read_oqmd(tmp_path)


def make_perovskite() -> Atoms:
    positions = [(0, 0, 0), (0.5, 0.5, 0.5), (0.5, 0.5, 0), (0.5, 0, 0.5), (0, 0.5, 0.5)]
    return Atoms("CsPbI3", scaled_positions=positions, cell=[6.3] * 3, pbc=True)


def test_a_table_selects_entries_and_their_energies(tmp_path: Path) -> None:
    write_page(tmp_path, [make_oqmd_entry(), make_oqmd_entry(entry_id=2, delta_e=-0.5), make_oqmd_entry(entry_id=3)])
    (tmp_path / "oqmd_data.csv").write_text("entry_id, Ef\n2,-0.75\n3,\n4,-1.0\n")
    labelled = crystals.read_oqmd(tmp_path)
    assert labelled.official_ids.tolist() == ["2"]
    assert labelled.target.tolist() == [-0.75]
    assert labelled.left_out == {"value not finite": 1, "in oqmd_data.csv, not in the pages": 1}
    (tmp_path / "oqmd_data.csv").write_text("entry_id,E_f\n")
    with pytest.raises(InputError, match=r"oqmd_data.csv: no 'Ef' \(did you mean 'E_f'"):
        crystals.read_oqmd(tmp_path)


def test_extended_xyz_is_read_with_its_energies(tmp_path: Path) -> None:
    frames = make_perovskite(), make_perovskite().repeat((2, 1, 1))
    for k, atoms in enumerate(frames):
        atoms.info = {"formation_energy_per_atom": -1.0 - k, "id": f"p{k}"}
    ase.io.write(tmp_path / "abx3.extxyz", frames, format="extxyz")
    labelled = crystals.read_abx3(tmp_path / "abx3.extxyz")
    assert labelled.target.tolist() == [-1.0, -2.0]
    assert labelled.official_ids.tolist() == ["p0", "p1"]
    assert set(labelled.table.groups) == {"I3CsPb"}


@pytest.mark.parametrize("column", ["poscar", "cif", "structure"])
def test_tables_of_perovskites_are_read_with_each_structure_format(tmp_path: Path, column: str) -> None:
    path = tmp_path / "abc3_data.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["mp_id", "formation_energy (eV/atom)", column])
        writer.writerows(
            [
                ["a", -1.25, format_structure(column)],
                ["b", "", format_structure(column)],
                ["c", -1.0, "not a structure"],
            ]
        )
    labelled = crystals.read_abx3(path)
    assert labelled.official_ids.tolist() == ["a"]
    assert labelled.target.tolist() == [-1.25]
    crystal = next(labelled.table.structures()).check()
    assert sorted(crystal.numbers.tolist()) == [53, 53, 53, 55, 82]
    assert abs(np.linalg.det(crystal.cell)) == pytest.approx(6.3**3)
    assert labelled.left_out["value not finite"] == 1
    assert sum(labelled.left_out.values()) == 2


def test_perovskites_are_joined_with_their_structures_by_name(tmp_path: Path) -> None:
    (tmp_path / "abc3_data.csv").write_text(
        "mp_id,formula, formation_energy (eV/atom)\nmp-1,A,-1.5\nmp-2,B,-1\nmp-3,C,-2\n"
    )
    with pytest.raises(InputError, match=r"no column poscar, cif, structure, and no structures.json next to it"):
        crystals.read_abx3(tmp_path)
    disordered = json.loads(format_structure("structure"))
    disordered["sites"][0]["species"].append({"element": "K", "occu": 0.5})
    structures = {"mp-1": json.loads(format_structure("structure")), "mp-3": disordered, "mp-9": {}}
    (tmp_path / "structures.json").write_text(json.dumps(structures))
    labelled = crystals.read_abx3(tmp_path)
    assert labelled.official_ids.tolist() == ["mp-1"]
    assert labelled.target.tolist() == [-1.5]
    assert labelled.left_out == {"not in structures.json": 1, "disorder": 1}


def format_structure(kind: str) -> str:
    """Return the perovskite in the format of a column."""
    if kind == "structure":
        sites = [
            {"species": [{"element": s, "occu": 1}], "abc": p.tolist()}
            for s, p in zip(make_perovskite().symbols, make_perovskite().get_scaled_positions(), strict=True)
        ]
        return json.dumps({"lattice": {"matrix": make_perovskite().cell.tolist()}, "sites": sites})
    if kind == "poscar":
        buffer = io.StringIO()
        ase.io.write(buffer, make_perovskite(), format="vasp")
        return buffer.getvalue()
    raw = io.BytesIO()
    ase.io.write(raw, make_perovskite(), format="cif")
    return raw.getvalue().decode()


def test_tables_without_their_columns_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "abx3.csv"
    path.write_text("mp_id,formation_energy,cif\n")
    with pytest.raises(InputError, match=r"did you mean 'formation_energy'\?"):
        crystals.read_abx3(path)
    path.write_text("mp_id,formation_energy (eV/atom),cif\n")
    with pytest.raises(InputError, match="no structure with a value"):
        crystals.read_abx3(path)


def make_dataset(groups: list[str], subset: list[str] | None = None) -> TaskDataset:
    structures = [Structure(f"{k}", np.array([1]), np.zeros((1, 3)), group=g) for k, g in enumerate(groups)]
    frames = tabulate(structures)
    subsets = np.array(subset or [""] * len(groups))
    return TaskDataset(frames, np.zeros(len(groups)), "some data", "none", frames.ids, subsets)


def test_split_keeps_groups_together_and_has_nearly_the_test_fraction() -> None:
    groups = [f"g{k // 3}" for k in range(300)]
    labelled = make_dataset(groups)
    pool, test = split_task(labelled, seed=1, test_fraction=0.2)
    assert sorted([*pool, *test]) == list(range(300))
    assert not set(labelled.table.groups[pool]) & set(labelled.table.groups[test])
    assert abs(len(test) - 60) <= 3
    assert np.array_equal(test, split_task(labelled, seed=1, test_fraction=0.2)[1])
    assert not np.array_equal(test, split_task(labelled, seed=2, test_fraction=0.2)[1])


def test_each_subset_is_split_separately() -> None:
    labelled = make_dataset([f"g{k}" for k in range(40)], ["a"] * 30 + ["b"] * 10)
    _, test = split_task(labelled, seed=3, test_fraction=0.1)
    assert [int((labelled.subset[test] == name).sum()) for name in "ab"] == [3, 1]


def test_split_with_an_empty_side_is_refused() -> None:
    with pytest.raises(InputError, match="some data: the data has only the group 'g', which cannot be split"):
        split_task(make_dataset(["g", "g"]), seed=0, test_fraction=0.5)
    for fraction in (0.0, 1.0):
        with pytest.raises(InputError, match="expected a number between 0 and 1"):
            split_task(make_dataset(["a", "b"]), seed=0, test_fraction=fraction)
    pool, test = split_task(make_dataset(["a", "b"]), seed=0, test_fraction=0.01)
    assert len(pool) == len(test) == 1


def test_official_files_take_precedence_over_the_shipped_set(tmp_path: Path) -> None:
    write_page(tmp_path, [make_oqmd_entry(), make_oqmd_entry(entry_id=2, sites=["Na @ 0 0 0"])])
    assert load_task("oqmd", tmp_path).data_origin == "official OQMD, 2 crystals"
    assert load_task("matbench_log_kvrh", tmp_path).data_origin.startswith("stand-in for Matbench log_kvrh")


@pytest.mark.parametrize("name", ["dsgdb9nsd.xyz.tar.bz2", "qm9.zip", "QM9", "gdb9.sdf", "qm9_part1.csv"])
def test_official_files_under_another_name_are_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).touch()
    with pytest.raises(InputError, match=f"'{name}' is not read as data of QM9: expected qm9/ with the files, or"):
        load_task("qm9", tmp_path)
    for other in ("md17", "oqmd", "abx3"):
        assert load_task(other, tmp_path).data_origin.startswith("stand-in for ")


def test_task_without_data_names_the_required_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"needs matbench_phonons.json.gz, from https://.*\(looked in "):
        load_task("matbench_phonons", tmp_path)
    (tmp_path / "matbench_phonons").mkdir()
    with pytest.raises(InputError, match=r"matbench_phonons.json.gz is missing"):
        load_task("matbench_phonons", tmp_path)
    with pytest.raises(InputError, match="no such folder"):
        load_task("qm9", tmp_path / "absent")
