"""QM9, MD17 and Wiggle150 in their official formats: units, names, and what is wrong with a file."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.reference.errors import InputError
from harness.reference.tasks.formats import md17, qm9, wiggle150

HARTREE, KCAL = 27.211386245988, 0.0433641042418
# gdb_1, gdb_2 and gdb_4 with the numbers of the published files
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


def block(name: str, atoms: list[tuple[str, tuple[float, float, float]]]) -> str:
    lines = [name, "     RDKit          3D", "", f"{len(atoms):3d}{len(atoms) - 1:3d}  0  0  0  0  0  0  0  0999 V2000"]
    lines += [f"{x:10.4f}{y:10.4f}{z:10.4f} {e:<3} 0  0  0  0  0  0" for e, (x, y, z) in atoms]
    return "\n".join([*lines, *(f"  1{k:3d}  1  0" for k in range(2, len(atoms) + 1)), "M  END", "$$$$", ""])


def sdf(folder: Path, ids: list[str] | None = None) -> None:
    (folder / "gdb9.sdf").write_text(block("gdb_1", METHANE) + block("gdb_2", AMMONIA))
    table = [f"{k},157.7,157.7,157.7,0.,13.21,-.3877,.1171,.5048,35.3,.0447,{U0[k]}" for k in ids or list(U0)]
    (folder / "gdb9.sdf.csv").write_text("\n".join(["mol_id,A,B,C,mu,alpha,homo,lumo,gap,r2,zpve,u0", *table, ""]))


def packed(folder: Path, rows: list[dict[str, Any]]) -> None:
    with (folder / "qm9_part1.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["XYZ_file", "Index", "Elements", "XYZ_Ang", "InternalEnergy_0K_au"])
        writer.writeheader()
        writer.writerows(rows)


def molecule(index: int = 1, energy: str = "-40.47893", element: str = "C") -> dict[str, Any]:
    elements = str([element, *(e for e, _ in METHANE[1:])])
    places = str([list(place) for _, place in METHANE])
    return {"Index": index, "Elements": elements, "XYZ_Ang": places, "InternalEnergy_0K_au": energy}


def test_qm9_is_read_alike_from_both_of_its_forms(tmp_path: Path) -> None:
    first, second = tmp_path / "sdf", tmp_path / "csv"
    first.mkdir()
    second.mkdir()
    sdf(first)
    packed(second, [molecule()])
    one, other = qm9.read(first), qm9.read(second)
    assert one.official_ids.tolist() == ["gdb_1", "gdb_2"]
    assert one.target == pytest.approx([-40.47893 * HARTREE, -56.525887 * HARTREE], abs=1e-9)
    assert one.target[0] == other.target[0] == one.frames.energy[0]
    assert one.frames.numbers.tolist() == [6, 1, 1, 1, 1, 7, 1, 1, 1]
    assert one.frames.positions[:5].tolist() == other.frames.positions.tolist() == [list(p) for _, p in METHANE]
    assert one.frames.groups.tolist() == ["qm9-000001", "qm9-000002"]
    assert one.left_out == {"not in the files": 130_829}


def test_tables_of_qm9_write_whole_numbers_with_a_bare_point(tmp_path: Path) -> None:
    """Row 5 of qm9_part1.csv, acetylene."""
    places = "[[0.5995394918,0.,1.],[-0.5995394918,0.,1.],[-1.6616385861,0.,1.],[1.6616385861,0.,1.]]"
    packed(tmp_path, [{**molecule(4), "Elements": "['C','C','H','H']", "XYZ_Ang": places}])
    assert qm9.read(tmp_path).frames.positions[0].tolist() == [0.5995394918, 0.0, 1.0]


def test_molecules_that_fell_apart_are_left_out(tmp_path: Path) -> None:
    sdf(tmp_path)
    listing = "Index Rejected\n  2      O=C1C=C  C1\n2 compounds\n"
    (tmp_path / "uncharacterized.txt").write_text(listing)
    labelled = qm9.read(tmp_path)
    assert labelled.official_ids.tolist() == ["gdb_1"]
    assert labelled.left_out["uncharacterized"] == 1


def test_unfit_molecules_are_counted(tmp_path: Path) -> None:
    packed(tmp_path, [molecule(), molecule(2, "nan"), molecule(3, ""), molecule(4, element="Xx"), molecule(5, "x")])
    labelled = qm9.read(tmp_path)
    assert labelled.official_ids.tolist() == ["gdb_1"]
    assert labelled.left_out["value not finite"] == 2
    assert labelled.left_out["atomic number"] == 1
    assert labelled.left_out["malformed"] == 1


def test_files_that_are_not_qm9_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"neither qm9_part\*.csv nor gdb9.sdf"):
        qm9.read(tmp_path)
    sdf(tmp_path)
    text = (tmp_path / "gdb9.sdf").read_text()
    (tmp_path / "gdb9.sdf").write_text(text[:-80])
    with pytest.raises(InputError, match="truncated"):
        qm9.read(tmp_path)
    (tmp_path / "gdb9.sdf").write_text(text)
    sdf(tmp_path, ["gdb_2", "gdb_1"])
    with pytest.raises(InputError, match=r"molecule 1 is 'gdb_1', in gdb9.sdf.csv 'gdb_2'"):
        qm9.read(tmp_path)
    sdf(tmp_path, ["gdb_1"])
    with pytest.raises(InputError, match=r"2 molecules, but 1 rows"):
        qm9.read(tmp_path)
    (tmp_path / "qm9_part1.csv").write_text("Index,Elements,XYZ\n1,2,3\n")
    with pytest.raises(InputError, match="did you mean 'XYZ'"):
        qm9.read(tmp_path)


def trajectory(frames: int = 4) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        "E": -97_000.0 - np.arange(frames)[:, None],
        "F": rng.normal(0, 20, (frames, 9, 3)),
        "R": rng.normal(0, 1, (frames, 9, 3)),
        "z": np.array([6, 6, 8, 1, 1, 1, 1, 1, 1], dtype=np.uint8),
        "theory": np.array("unknown"),
    }


def test_md17_comes_in_ev_with_each_molecule_by_itself(tmp_path: Path) -> None:
    arrays = trajectory()
    np.savez(tmp_path / "md17_ethanol.npz", **arrays)
    np.savez(tmp_path / "benzene_dft.npz", **arrays)
    labelled = md17.read(tmp_path)
    assert sorted(set(labelled.subset)) == ["benzene", "ethanol"]
    assert labelled.level == "PBE+vdW-TS"
    ethanol = labelled.frames[labelled.subset == "ethanol"]
    assert ethanol.forces is not None
    assert labelled.target[labelled.subset == "ethanol"] == pytest.approx(arrays["E"][:, 0] * KCAL, rel=1e-8)
    assert ethanol.forces == pytest.approx(arrays["F"].reshape(-1, 3) * KCAL, rel=1e-8)
    assert ethanol.positions.tolist() == arrays["R"].reshape(-1, 3).tolist()
    assert ethanol.ids.tolist() == [f"ethanol/{k}" for k in range(4)]


def test_the_revised_md17_has_other_keys_and_another_level(tmp_path: Path) -> None:
    a = trajectory()
    path = tmp_path / "rmd17_ethanol.npz"
    np.savez(path, energies=a["E"][:, 0], forces=a["F"], coords=a["R"], nuclear_charges=a["z"], old_indices=np.ones(4))
    labelled = md17.read(path)
    assert labelled.level == "PBE/def2-SVP, tight"
    assert set(labelled.subset) == {"ethanol"}


def test_a_long_trajectory_is_read_at_even_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(md17, "MOST", 4)
    np.savez(tmp_path / "md17_ethanol.npz", **trajectory(10))
    labelled = md17.read(tmp_path)
    assert labelled.official_ids.tolist() == ["ethanol/0", "ethanol/3", "ethanol/6", "ethanol/9"]
    assert labelled.left_out == {"frames beyond an even pick": 6}


def test_unfit_frames_of_md17_are_counted(tmp_path: Path) -> None:
    arrays = trajectory(5)
    arrays["E"][0] = np.nan
    arrays["F"][1, 0, 0] = np.inf
    arrays["R"][2, 0, 0] = np.nan
    np.savez(tmp_path / "md17_ethanol.npz", **arrays)
    labelled = md17.read(tmp_path)
    assert labelled.left_out == {"value not finite": 1, "forces not finite": 1, "positions not finite": 1}
    assert len(labelled) == 2


def test_files_that_are_not_md17_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "md17_ethanol.npz"
    np.savez(path, **{k: v for k, v in trajectory().items() if k != "F"})
    with pytest.raises(InputError, match="not MD17, no 'F'"):
        md17.read(path)
    np.savez(path, **{**trajectory(), "F": np.zeros((4, 8, 3))})
    with pytest.raises(InputError, match=r"F has shape \(4, 8, 3\), expected \(4, 9, 3\)"):
        md17.read(path)
    np.savez(path, **trajectory())
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(InputError, match="cut short"):
        md17.read(path)
    np.savez(path, **{**trajectory(), "E": np.array([{}], dtype=object)})
    with pytest.raises(InputError, match=r"not an .npz file \(.*pickle"):
        md17.read(path)


def conformers(*frames: tuple[str, str]) -> str:
    """Each (comment, second element) as a frame of two atoms."""
    return "".join(f"2\n{comment}\nC 0.0 0.0 0.0\n{e} 0.0 0.0 1.1\n" for comment, e in frames)


def test_wiggle150_is_relative_to_the_relaxed_conformer(tmp_path: Path) -> None:
    path = tmp_path / "ct5c00015_si_003.xyz"
    text = conformers(
        ("ado_00 -603984.7", "H"), ("ado_01 -603884.7", "H"), ("bpn_01 -99.5", "O"), ("bpn_00 -100.5", "O")
    )
    path.write_text(text)
    labelled = wiggle150.read(path)
    assert labelled.official_ids.tolist() == ["ado_00", "ado_01", "bpn_01", "bpn_00"]
    assert labelled.target == pytest.approx([0.0, 100 * KCAL, KCAL, 0.0], abs=1e-8)
    assert labelled.frames.energy[0] == pytest.approx(-603984.7 * KCAL, rel=1e-8)
    assert labelled.frames.groups.tolist() == labelled.official_ids.tolist()
    assert not labelled.left_out


def test_conformers_without_a_reference_or_of_no_element_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "wiggle150.xyz"
    path.write_text(conformers(("ado_00 -1", "H"), ("ado_01 nan", "H"), ("ado_02 -1", "Xx"), ("efa_01 -5", "O")))
    labelled = wiggle150.read(path)
    assert labelled.official_ids.tolist() == ["ado_00"]
    assert labelled.left_out["no _00 of its molecule"] == 1
    assert labelled.left_out["atomic number"] == 1
    assert labelled.left_out["value not finite"] == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("2\nado_00 -1\nC 0 0 0\n", "line 1: truncated inside a frame of 2 atoms"),
        ("1\nado_00\nC 0 0 0\n", "line 2: 'ado_00', expected a name and an energy"),
        ("C 0 0 0\n", "line 1: 'C 0 0 0' is not a number of atoms"),
        ("", "no structure with a value can be read from it .it is empty"),
    ],
)
def test_files_that_are_not_wiggle150_are_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "wiggle150.xyz"
    path.write_text(text)
    with pytest.raises(InputError, match=said):
        wiggle150.read(path)
