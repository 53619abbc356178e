"""Readers of QM9, MD17 and Wiggle150 in their official formats: units, names, and errors of damaged files."""

from __future__ import annotations

import csv
import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.reference.errors import InputError
from harness.reference.tasks.catalog import find_task
from harness.reference.tasks.load import load_task
from harness.reference.tasks.readers import md17, qm9, wiggle150

HARTREE, KCAL_PER_MOL = 27.211386245988, 0.0433641042418
# The molecules gdb_1 and gdb_2 with the numbers of the published files.
METHANE = [
    ("C", (-0.0127, 1.0858, 0.0080)),
    ("H", (0.0022, -0.0060, 0.0020)),
    ("H", (1.0117, 1.4638, 0.0003)),
    ("H", (-0.5408, 1.4475, -0.8766)),
    ("H", (-0.5238, 1.4379, 0.9064)),
]
AMMONIA = [
    ("N", (-0.0404, 1.0241, 0.0626)),
    ("H", (0.0173, 0.0125, -0.0274)),
    ("H", (0.9158, 1.3587, -0.0288)),
    ("H", (-0.5203, 1.3435, -0.7755)),
]
U0 = {"gdb_1": "-40.47893", "gdb_2": "-56.525887"}


def format_sdf_block(name: str, atoms: list[tuple[str, tuple[float, float, float]]]) -> str:
    lines = [name, "     RDKit          3D", "", f"{len(atoms):3d}{len(atoms) - 1:3d}  0  0  0  0  0  0  0  0999 V2000"]
    lines += [f"{x:10.4f}{y:10.4f}{z:10.4f} {e:<3} 0  0  0  0  0  0" for e, (x, y, z) in atoms]
    return "\n".join([*lines, *(f"  1{k:3d}  1  0" for k in range(2, len(atoms) + 1)), "M  END", "$$$$", ""])


def write_sdf(folder: Path, ids: list[str] | None = None) -> None:
    (folder / "gdb9.sdf").write_text(format_sdf_block("gdb_1", METHANE) + format_sdf_block("gdb_2", AMMONIA))
    table = [f"{k},157.7,157.7,157.7,0.,13.21,-.3877,.1171,.5048,35.3,.0447,{U0[k]}" for k in ids or list(U0)]
    (folder / "gdb9.sdf.csv").write_text("\n".join(["mol_id,A,B,C,mu,alpha,homo,lumo,gap,r2,zpve,u0", *table, ""]))


def write_parts(folder: Path, rows: list[dict[str, Any]]) -> None:
    with (folder / "qm9_part1.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["XYZ_file", "Index", "Elements", "XYZ_Ang", "InternalEnergy_0K_au"])
        writer.writeheader()
        writer.writerows(rows)


def make_qm9_row(index: int = 1, energy: str = "-40.47893", element: str = "C") -> dict[str, Any]:
    elements = str([element, *(e for e, _ in METHANE[1:])])
    positions = str([list(position) for _, position in METHANE])
    return {"Index": index, "Elements": elements, "XYZ_Ang": positions, "InternalEnergy_0K_au": energy}


def test_both_formats_of_qm9_give_the_same_structures(tmp_path: Path) -> None:
    sdf_folder, csv_folder = tmp_path / "sdf", tmp_path / "csv"
    sdf_folder.mkdir()
    csv_folder.mkdir()
    write_sdf(sdf_folder)
    write_parts(csv_folder, [make_qm9_row()])
    from_sdf, from_csv = qm9.read_qm9(sdf_folder), qm9.read_qm9(csv_folder)
    assert from_sdf.official_ids.tolist() == ["gdb_1", "gdb_2"]
    assert from_sdf.target == pytest.approx([-40.47893 * HARTREE, -56.525887 * HARTREE], abs=1e-9)
    assert from_sdf.target[0] == from_csv.target[0] == from_sdf.table.energy[0]
    assert from_sdf.table.numbers.tolist() == [6, 1, 1, 1, 1, 7, 1, 1, 1]
    assert from_sdf.table.positions[:5].tolist() == from_csv.table.positions.tolist() == [list(p) for _, p in METHANE]
    assert from_sdf.table.groups.tolist() == ["qm9-000001", "qm9-000002"]
    assert from_sdf.left_out == {"not in the files": 130_829}


def test_numbers_of_qm9_tables_may_end_with_the_decimal_point(tmp_path: Path) -> None:
    """The row is that of acetylene in qm9_part1.csv."""
    positions = "[[0.5995394918,0.,1.],[-0.5995394918,0.,1.],[-1.6616385861,0.,1.],[1.6616385861,0.,1.]]"
    write_parts(tmp_path, [{**make_qm9_row(4, "-77.308427"), "Elements": "['C','C','H','H']", "XYZ_Ang": positions}])
    assert qm9.read_qm9(tmp_path).table.positions[0].tolist() == [0.5995394918, 0.0, 1.0]


def test_uncharacterized_molecules_are_left_out(tmp_path: Path) -> None:
    write_sdf(tmp_path)
    listing = "Index Rejected\n  2      O=C1C=C  C1\n2 compounds\n"
    (tmp_path / "uncharacterized.txt").write_text(listing)
    labelled = qm9.read_qm9(tmp_path)
    assert labelled.official_ids.tolist() == ["gdb_1"]
    assert labelled.left_out["uncharacterized"] == 1


def test_unusable_molecules_are_counted(tmp_path: Path) -> None:
    write_parts(
        tmp_path,
        [
            make_qm9_row(),
            make_qm9_row(2, "nan"),
            make_qm9_row(3, ""),
            make_qm9_row(4, element="Xx"),
            make_qm9_row(5, "x"),
        ],
    )
    labelled = qm9.read_qm9(tmp_path)
    assert labelled.official_ids.tolist() == ["gdb_1"]
    assert labelled.left_out["value not finite"] == 2
    assert labelled.left_out["atomic number"] == 1
    assert labelled.left_out["malformed"] == 1


def test_files_that_are_not_qm9_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"neither dsgdb9nsd.xyz.tar.bz2 .* nor qm9_part\*.csv nor gdb9.sdf"):
        qm9.read_qm9(tmp_path)
    write_sdf(tmp_path)
    text = (tmp_path / "gdb9.sdf").read_text()
    (tmp_path / "gdb9.sdf").write_text(text[:-80])
    with pytest.raises(InputError, match="truncated"):
        qm9.read_qm9(tmp_path)
    (tmp_path / "gdb9.sdf").write_text(text)
    write_sdf(tmp_path, ["gdb_2", "gdb_1"])
    with pytest.raises(InputError, match=r"molecule 1 is 'gdb_1', in gdb9.sdf.csv 'gdb_2'"):
        qm9.read_qm9(tmp_path)
    write_sdf(tmp_path, ["gdb_1"])
    with pytest.raises(InputError, match=r"2 molecules, but 1 rows"):
        qm9.read_qm9(tmp_path)
    (tmp_path / "qm9_part1.csv").write_text("Index,Elements,XYZ\n1,2,3\n")
    with pytest.raises(InputError, match="did you mean 'XYZ'"):
        qm9.read_qm9(tmp_path)


def make_trajectory(frames: int = 4) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        "E": -97_000.0 - np.arange(frames)[:, None],
        "F": rng.normal(0, 20, (frames, 9, 3)),
        "R": rng.normal(0, 1, (frames, 9, 3)),
        "z": np.array([6, 6, 8, 1, 1, 1, 1, 1, 1], dtype=np.uint8),
        "theory": np.array("unknown"),
    }


def test_md17_is_converted_to_ev_with_one_subset_per_molecule(tmp_path: Path) -> None:
    arrays = make_trajectory()
    np.savez(tmp_path / "md17_ethanol.npz", **arrays)
    np.savez(tmp_path / "benzene_dft.npz", **arrays)
    labelled = md17.read_md17(tmp_path)
    assert sorted(set(labelled.subset)) == ["benzene", "ethanol"]
    assert labelled.level == "PBE+vdW-TS"
    ethanol = labelled.table[labelled.subset == "ethanol"]
    assert ethanol.forces is not None
    assert labelled.target[labelled.subset == "ethanol"] == pytest.approx(arrays["E"][:, 0] * KCAL_PER_MOL, rel=1e-8)
    assert ethanol.forces == pytest.approx(arrays["F"].reshape(-1, 3) * KCAL_PER_MOL, rel=1e-8)
    assert ethanol.positions.tolist() == arrays["R"].reshape(-1, 3).tolist()
    assert ethanol.ids.tolist() == [f"ethanol/{k}" for k in range(4)]


def test_the_revised_md17_has_other_keys_and_another_level(tmp_path: Path) -> None:
    arrays = make_trajectory()
    path = tmp_path / "rmd17_ethanol.npz"
    np.savez(
        path,
        energies=arrays["E"][:, 0],
        forces=arrays["F"],
        coords=arrays["R"],
        nuclear_charges=arrays["z"],
        old_indices=np.ones(4),
    )
    labelled = md17.read_md17(path)
    assert labelled.level == "PBE/def2-SVP, tight"
    assert set(labelled.subset) == {"ethanol"}


def test_long_trajectory_is_sampled_evenly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(md17, "MAX_FRAMES", 4)
    np.savez(tmp_path / "md17_ethanol.npz", **make_trajectory(10))
    labelled = md17.read_md17(tmp_path)
    assert labelled.official_ids.tolist() == ["ethanol/0", "ethanol/3", "ethanol/6", "ethanol/9"]
    assert labelled.left_out == {"not among the evenly spaced frames": 6}


def test_unusable_frames_of_md17_are_counted(tmp_path: Path) -> None:
    arrays = make_trajectory(5)
    arrays["E"][0] = np.nan
    arrays["F"][1, 0, 0] = np.inf
    arrays["R"][2, 0, 0] = np.nan
    np.savez(tmp_path / "md17_ethanol.npz", **arrays)
    labelled = md17.read_md17(tmp_path)
    assert labelled.left_out == {"value not finite": 1, "forces not finite": 1, "positions not finite": 1}
    assert len(labelled) == 2


def test_files_that_are_not_md17_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "md17_ethanol.npz"
    np.savez(path, **{k: v for k, v in make_trajectory().items() if k != "F"})
    with pytest.raises(InputError, match="not MD17, no 'F'"):
        md17.read_md17(path)
    np.savez(path, **{**make_trajectory(), "F": np.zeros((4, 8, 3))})
    with pytest.raises(InputError, match=r"F has shape \(4, 8, 3\), expected \(4, 9, 3\)"):
        md17.read_md17(path)
    np.savez(path, **make_trajectory())
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(InputError, match="cut short"):
        md17.read_md17(path)
    np.savez(path, **{**make_trajectory(), "E": np.array([{}], dtype=object)})
    with pytest.raises(InputError, match=r"not an .npz file \(.*pickle"):
        md17.read_md17(path)


# The format of the published files: tabs, a charge after each position, exponents as Mathematica writes them.
DEPOSITED_XYZ = """5
gdb 1\t157.7118\t157.70997\t157.70699\t0.\t13.21\t-0.3877\t0.1171\t0.5048\t35.3641\t0.044749\t\
-40.47893\t-40.476062\t-40.475117\t-40.498597\t6.469\t
C\t-0.0126981359\t 1.0858041578\t 0.0080009958\t-0.535689
H\t 0.002150416\t-6.0313176*^-3\t 0.0019761204\t 0.133921
H\t 1.0117308433\t 1.4637511618\t 2.7657*^-4\t 0.133922
H\t-0.540815069\t 1.4475266138\t-0.8766437152\t 0.133923
H\t-0.5238136345\t 1.4379326443\t 0.9063972942\t 0.133923
1341.307\t1341.3284\t1341.365\t1562.6731\t1562.7453\t3038.3205\t3151.6034\t3151.6788\t3151.7078
C\tC\t
InChI=1S/CH4/h1H4\tInChI=1S/CH4/h1H4
"""


def write_deposit(folder: Path, archive: bool) -> None:
    """Write three molecules as an archive or its unpacked folder; the third is listed as uncharacterized."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = {k: DEPOSITED_XYZ.replace("gdb 1\t", f"gdb {k}\t") for k in (1, 2, 3)}
    listing = "Index Rejected\n-------\n      3    C#N    x   y\n3054 compounds\n"
    (folder / "uncharacterized.txt").write_text(listing)
    if not archive:
        for k, text in texts.items():
            (folder / "dsgdb9nsd.xyz").mkdir(exist_ok=True)
            (folder / "dsgdb9nsd.xyz" / f"dsgdb9nsd_{k:06d}.xyz").write_text(text)
        return
    with tarfile.open(folder / "dsgdb9nsd.xyz.tar.bz2", "w:bz2") as file:
        for k, text in texts.items():
            member = tarfile.TarInfo(f"dsgdb9nsd_{k:06d}.xyz")
            member.size = len(text)
            file.addfile(member, io.BytesIO(text.encode()))


@pytest.mark.parametrize("archive", [True, False])
def test_qm9_is_read_as_its_authors_deposited_it(tmp_path: Path, archive: bool) -> None:
    write_deposit(tmp_path / "qm9", archive)
    labelled = load_task("qm9", tmp_path)
    assert labelled.official_ids.tolist() == ["gdb_1", "gdb_2"]
    assert labelled.target == pytest.approx([-40.47893 * HARTREE] * 2, abs=1e-9)
    assert labelled.table.positions[1].tolist() == [0.002150416, -0.0060313176, 0.0019761204]
    assert labelled.table.positions[2].tolist() == [1.0117308433, 1.4637511618, 0.00027657]
    assert labelled.left_out["uncharacterized"] == 1
    assert "dsgdb9nsd.xyz.tar.bz2" in find_task("qm9").files[0]


def test_a_damaged_deposit_of_qm9_is_refused_and_a_damaged_molecule_counted(tmp_path: Path) -> None:
    write_deposit(tmp_path, archive=True)
    path = tmp_path / "dsgdb9nsd.xyz.tar.bz2"
    complete = path.read_bytes()
    for content in (complete[:200], b"<html>", b"version https://git-lfs.github.com/spec/v1\n"):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"dsgdb9nsd.xyz.tar.bz2: cut short, or not a tar archive"):
            qm9.read_qm9(tmp_path)
    path.unlink()
    write_deposit(tmp_path, archive=False)
    (tmp_path / "dsgdb9nsd.xyz" / "dsgdb9nsd_000002.xyz").write_text(DEPOSITED_XYZ[:120])
    labelled = qm9.read_qm9(tmp_path)
    assert labelled.official_ids.tolist() == ["gdb_1"]
    assert labelled.left_out["malformed"] == 1


def test_last_line_of_uncharacterized_list_is_ignored(tmp_path: Path) -> None:
    write_sdf(tmp_path)
    (tmp_path / "uncharacterized.txt").write_text("Index\n  1      O=C1C=C  C1\n2 compounds\n")
    labelled = qm9.read_qm9(tmp_path)
    assert labelled.official_ids.tolist() == ["gdb_2"]
    assert labelled.left_out["uncharacterized"] == 1


@pytest.mark.parametrize(
    ("energy", "length", "e_unit", "r_unit"),
    [
        ("eV", "Ang", KCAL_PER_MOL, 1.0),
        (b"kcal/mol", "Angstrom", 1.0, 1.0),
        ("kJ/mol", "nm", 4.184, 0.1),
        ("Hartree", "bohr", KCAL_PER_MOL / HARTREE, 1 / 0.529177210903),
        ("au", "au", KCAL_PER_MOL / HARTREE, 1 / 0.529177210903),
        ("meV", "pm", 1000 * KCAL_PER_MOL, 100.0),
        (" EV ", " a ", KCAL_PER_MOL, 1.0),
    ],
)
def test_md17_is_converted_from_the_units_named_in_the_file(
    tmp_path: Path, energy: Any, length: str, e_unit: float, r_unit: float
) -> None:
    """The same trajectory in other units, as sGDML's script writes it, gives the same structures."""
    original = make_trajectory()
    np.savez(tmp_path / "plain.npz", **original)
    expected = md17.read_md17(tmp_path / "plain.npz").table
    scaled = original | {"E": original["E"] * e_unit, "F": original["F"] * e_unit / r_unit, "R": original["R"] * r_unit}
    metadata = {"type": "d", "name": "ethanol", "code_version": "1.0", "theory": "CCSD(T)", "md5": "0"}
    np.savez_compressed(tmp_path / "named.npz", **scaled | metadata, e_unit=energy, r_unit=length)
    result = md17.read_md17(tmp_path / "named.npz")
    assert result.level == "CCSD(T)"
    assert result.table.forces is not None
    assert expected.forces is not None
    assert result.target == pytest.approx(expected.energy, rel=1e-12)
    assert result.table.forces == pytest.approx(expected.forces, rel=1e-9)
    assert result.table.positions == pytest.approx(expected.positions, rel=1e-9)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"e_unit": "ev/mol"}, r"e_unit: unknown unit 'ev/mol' \(did you mean 'k"),
        ({"e_unit": ["eV", "eV"]}, "e_unit: unknown unit"),
        ({"r_unit": "furlong"}, r"r_unit: unknown unit 'furlong' \(there are: angstrom, bohr, nm, pm\)"),
        ({"e_unit": "eV"}, "ethanol/0: -97000 eV where free atoms have -4.*: kcal/mol taken for eV"),
        ({"E": np.linspace(-4205, -4204, 4)}, "ethanol/0: -182.346 eV where free atoms have .*: eV taken for kcal/mol"),
        ({"E": np.linspace(-154.5, -154.4, 4)}, "ethanol/0: .*: hartree taken for kcal/mol"),
        ({"E": np.linspace(-1, 1, 4)}, "expected total energies of all electrons"),
        ({"type": "m"}, "an sGDML file of type 'm', expected a dataset"),
        ({"lattice": np.eye(3)}, "the molecules of MD17 are not periodic"),
        ({"energies": np.zeros(4)}, "it has energies twice, as E and energies"),
        ({"E": np.array(["a"] * 4)}, "E is of type <U1, expected numbers"),
        ({"z": np.array([6, 6, 8, 1, 1, 1, 1, 1, -1])}, "z holds a value that is not an atomic number"),
        ({"z": np.array([6, 6, 8, 1, 1, 1, 1, 1, 0.5])}, "z holds a value that is not an atomic number"),
        ({"R": np.float64(3)}, r"R has shape \(\), expected"),
    ],
)
def test_impossible_md17_is_rejected_in_one_line(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    path = tmp_path / "md17_ethanol.npz"
    np.savez(path, **make_trajectory() | change)
    with pytest.raises(InputError, match=reason) as caught:
        md17.read_md17(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_kcal_means_kcal_per_mol(tmp_path: Path) -> None:
    np.savez(tmp_path / "md17_ethanol.npz", **make_trajectory() | {"e_unit": "kcal"})
    assert len(md17.read_md17(tmp_path)) == 4


def test_few_impossible_energies_are_counted(tmp_path: Path) -> None:
    arrays = make_trajectory(10)
    arrays["E"][3] = -5.0
    np.savez(tmp_path / "md17_ethanol.npz", **arrays)
    labelled = md17.read_md17(tmp_path)
    assert labelled.left_out == {"energy that cannot be of these atoms": 1}
    assert len(labelled) == 9


def test_decompression_bomb_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "md17_ethanol.npz"
    np.savez_compressed(path, **make_trajectory() | {"junk": np.zeros(1 << 24)})
    with pytest.raises(InputError, match="unpack to 134,"):
        md17.read_md17(path)


def test_unit_of_qm9_energies_is_checked_against_free_atoms(tmp_path: Path) -> None:
    write_parts(tmp_path, [make_qm9_row(1, str(-40.47893 * HARTREE))])
    with pytest.raises(InputError, match=r"gdb_1: -29973 eV where free atoms have .*: eV taken for hartree"):
        qm9.read_qm9(tmp_path)


def test_wiggle150_in_hartree_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "wiggle150.xyz"
    path.write_text(format_conformers(("ado_00 -38.3", "H"), ("ado_01 -38.2", "H")))
    with pytest.raises(InputError, match=r"wiggle150.xyz: ado_00: .*: hartree taken for kcal/mol"):
        wiggle150.read_wiggle150(path)


def format_conformers(*frames: tuple[str, str]) -> str:
    """Return each (comment, second element) as a frame of two atoms."""
    return "".join(f"2\n{comment}\nC 0.0 0.0 0.0\n{e} 0.0 0.0 1.1\n" for comment, e in frames)


def test_wiggle150_energies_are_relative_to_the_relaxed_conformer(tmp_path: Path) -> None:
    path = tmp_path / "ct5c00015_si_003.xyz"
    text = format_conformers(
        ("ado_00 -24033.7", "H"), ("ado_01 -23933.7", "H"), ("bpn_01 -71099.5", "O"), ("bpn_00 -71100.5", "O")
    )
    path.write_text(text)
    labelled = wiggle150.read_wiggle150(path)
    assert labelled.official_ids.tolist() == ["ado_00", "ado_01", "bpn_01", "bpn_00"]
    assert labelled.target == pytest.approx([0.0, 100 * KCAL_PER_MOL, KCAL_PER_MOL, 0.0], abs=1e-8)
    assert labelled.table.energy[0] == pytest.approx(-24033.7 * KCAL_PER_MOL, rel=1e-8)
    assert labelled.table.groups.tolist() == labelled.official_ids.tolist()
    assert not labelled.left_out


def test_conformers_without_a_reference_or_with_unknown_elements_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "wiggle150.xyz"
    bad = ("ado_01 nan", "H"), ("ado_02 -1", "Xx"), ("efa_01 -5", "O")
    path.write_text(format_conformers(("ado_00 -24000", "H"), *bad) + "2\nado_03 -24000\nC 0 0 0\n\n")
    labelled = wiggle150.read_wiggle150(path)
    assert labelled.official_ids.tolist() == ["ado_00"]
    assert labelled.left_out["missing conformer _00 of its molecule"] == 1
    assert labelled.left_out["atomic number"] == 2
    assert labelled.left_out["value not finite"] == 1


@pytest.mark.parametrize(
    ("text", "output"),
    [
        ("2\nado_00 -1\nC 0 0 0\n", "line 1: truncated inside a frame of 2 atoms"),
        ("1\nado_00\nC 0 0 0\n", "line 2: 'ado_00', expected a name and an energy"),
        ("C 0 0 0\n", "line 1: 'C 0 0 0' is not a number of atoms"),
        ("", "no structure with a value can be read from it .it is empty"),
    ],
)
def test_files_that_are_not_wiggle150_are_refused(tmp_path: Path, text: str, output: str) -> None:
    path = tmp_path / "wiggle150.xyz"
    path.write_text(text)
    with pytest.raises(InputError, match=output):
        wiggle150.read_wiggle150(path)
