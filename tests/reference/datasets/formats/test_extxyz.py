"""Extended XYZ is read as ASE reads it, or refused, for many spellings of the header."""

from __future__ import annotations

import io
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase.stress import voigt_6_to_full_3x3_stress
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.reference.data.structure_table import RejectedStructure, StructureTable
from harness.reference.datasets.readers import s2ef
from harness.reference.errors import InputError
from tests.reference.datasets.official_files.writers import read_all_files, read_remarks

FLAGS = ("T T F", "T, T, F", "true true false", "True False True", "1 1 0", "0 1 0", "F F F", "T F", "t t f", "2 0 1")
QUOTES = ('"{}"', "'{}'", "[{}]", "{{{}}}", '"[{}]"', "{}")
LATTICES = ("5 0 0 0.1 6 0 0 0 7", "5,0,0,0.1,6,0,0,0,7", "5 0 0 0 6 0 0 0", "5. 0 0 1e-1 6 0 0 0 7.")
ENERGIES = ("energy=-12.5", "energy=-12", "energy = -12.5", 'energy="-12.5"', "energy=[-12.5]", "energy=low", "energy")
EXTRAS = (
    "", "config_type=bulk", 'name="a=b c"', "note=x=y", "free_energy=-13", "dft_energy=-12", "charge=-1", "charge=0.5",
    'stress="1 2 3 2 4 5 3 5 6"', 'stress="1 2 3"', 'virial="1 0 0 0 1 0 0 0 1"', 'comment="it\'s \\"quoted\\""',
    '_JSON="{}"', 'tags="1 2 3"', "uid=0012", "key={a b}", "flag", "step=3",
)  # fmt: skip
COLUMNS = {
    "species:S:1:pos:R:3:forces:R:3": lambda s, z, p, f: f"{s} {p} {f}",
    "species:S:1:pos:R:3:move_mask:L:1:tags:I:1:forces:R:3": lambda s, z, p, f: f"{s} {p} 1 0 {f}",
    "pos:R:3:species:S:1:forces:R:3:extra:S:1": lambda s, z, p, f: f"{p} {s} {f} x",
    "Z:I:1:pos:R:3:forces:R:3": lambda s, z, p, f: f"{z} {p} {f}",
    "species:S:1:Z:I:1:pos:R:3:dft_forces:R:3": lambda s, z, p, f: f"{s} {z} {p} {f}",
    "species:S:1:pos:R:3:force:R:3": lambda s, z, p, f: f"{s.lower()} {p} {f}",
    "species:S:1:pos:R:3": lambda s, z, p, f: f"{s} {p} {f}",
    "species:S:1:pos:R:3:forces:R": lambda s, z, p, f: f"{s} {p} {f}",
}


@st.composite
def headers(draw: st.DrawFn) -> str:
    """Draw a frame of two atoms with one of many spellings of the header."""
    properties = draw(st.sampled_from(list(COLUMNS)))
    quoted = draw(st.sampled_from(QUOTES))
    fields = [
        f"Lattice={draw(st.sampled_from(QUOTES)).format(draw(st.sampled_from(LATTICES)))}"
        if draw(st.booleans())
        else "",
        draw(st.sampled_from((f"Properties={properties}", f'Properties="{properties}"'))),
        f"pbc={quoted.format(draw(st.sampled_from(FLAGS)))}" if draw(st.booleans()) else "",
        draw(st.sampled_from(ENERGIES)),
        *draw(st.lists(st.sampled_from(EXTRAS), max_size=3, unique=True)),
    ]
    header = draw(st.sampled_from((" ", "  ", "\t"))).join(draw(st.permutations(fields)))
    rows = [
        COLUMNS[properties](symbol, z, f"0.0 {k}.5 {1.25 * k}", f"0.1 {-0.2 * k} 1e-3")
        for k, (symbol, z) in enumerate((("Si", 14), ("O", 8)))
    ]
    tail = draw(st.sampled_from(("", "  ", "\t")))
    return draw(st.sampled_from(("\n", "\r\n"))).join(["2", header + tail, *(row + tail for row in rows), ""])


def read_text(text: str, folder: Path) -> tuple[StructureTable | None, list[RejectedStructure]]:
    path = folder / "a.extxyz"
    path.write_bytes(text.encode())
    try:
        items = [item for part in s2ef.list_text_chunks([path]) for item in s2ef.read_text_chunk(part)]
    except InputError:
        return None, []
    frames = [item for item in items if isinstance(item, StructureTable)]
    assert len(frames) <= 1
    return (frames[0] if frames else None), [item for item in items if isinstance(item, RejectedStructure)]


@settings(max_examples=300, deadline=None)
@given(headers())
def test_frames_are_read_like_ase_or_refused(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    frames, faults = read_text(text, tmp_path_factory.mktemp("frame"))
    if frames is None:
        assert all(fault.reason and "\n" not in fault.reason for fault in faults)
        return
    (atoms,) = ase.io.read(io.StringIO(text), ":", format="extxyz")
    (result,) = frames.structures()
    assert np.array_equal(atoms.numbers, result.numbers)
    assert np.array_equal(atoms.positions, result.positions)
    assert np.array_equal(np.array(atoms.cell), result.cell)
    assert atoms.pbc.tolist() == list(result.periodic)
    assert atoms.calc.results["energy"] == result.energy
    forces = atoms.calc.results.get("forces")
    assert (forces is None) == (result.forces is None)
    assert forces is None or np.array_equal(forces, result.forces)
    stress = atoms.calc.results.get("stress")
    assert (stress is None) == (result.stress is None)
    assert stress is None or np.array_equal(voigt_6_to_full_3x3_stress(stress), result.stress)
    assert atoms.info.get("charge", 0) == result.charge


@pytest.mark.parametrize(
    ("written", "periodic"),
    [
        ("[T,T,F]", [True, True, False]),
        ('"T T F"', [True, True, False]),
        ("[true, true, false]", [True, True, False]),
        ("[1,1,0]", [True, True, False]),
        ("{F F T}", [False, False, True]),
        ("T", [True, True, True]),
    ],
)
def test_periodic_directions_are_read_in_every_spelling(tmp_path: Path, written: str, periodic: list[bool]) -> None:
    text = f'1\nLattice="9 0 0 0 9 0 0 0 9" energy=-3 pbc={written}\nCu 0 0 0\n'
    (tmp_path / "a.extxyz").write_text(text)
    frames, faults = read_all_files(s2ef.TEXT_FORMAT, tmp_path)
    assert not faults
    assert frames.periodic.tolist() == [periodic]


def test_ambiguous_pbc_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "a.extxyz").write_text('1\nLattice="9 0 0 0 9 0 0 0 9" energy=-3 pbc="[T, T, F]"\nCu 0 0 0\n')
    items = [item for part in s2ef.list_text_chunks([tmp_path]) for item in s2ef.read_text_chunk(part)]
    assert [(item.kind, item.reason) for item in items if isinstance(item, RejectedStructure)] == [
        ("malformed", "pbc is '[T, T, F]', expected three of T and F, as in pbc=\"T T F\"")
    ]


def test_blank_lines_between_frames_are_rejected(tmp_path: Path) -> None:
    frame = "1\nenergy=-3\nCu 0 0 0\n"
    path = tmp_path / "a.extxyz"
    path.write_text(frame * 2 + "\n \n\n")
    assert len(read_all_files(s2ef.TEXT_FORMAT, path)[0]) == 2
    path.write_text(frame + "\n" + frame)
    with pytest.raises(InputError, match=r"a\.extxyz, line 4: a blank line between frames"):
        read_all_files(s2ef.TEXT_FORMAT, path)


@pytest.mark.parametrize(
    ("column", "extra_fields", "label", "name"),
    [
        ("dft_forces", "", "forces", "dft_forces"),
        ("REF_forces", "", "forces", "REF_forces"),
        ("force", "", "forces", "force"),
        ("forces", 'virial="1 0 0 0 1 0 0 0 1"', "stress", "virial"),
        ("forces", "net_charge=1", "charge", "net_charge"),
    ],
)
def test_similar_label_names_are_suggested(
    tmp_path: Path, column: str, extra_fields: str, label: str, name: str
) -> None:
    path = tmp_path / "a.extxyz"
    path.write_text(
        f"1\nProperties=species:S:1:pos:R:3:{column}:R:3 energy=-3 {extra_fields}\nCu 0 0 0 0.1 0.2 0.3\n" * 3
    )
    assert read_remarks(s2ef.TEXT_FORMAT, path) == [(label, f"no {label} (did you mean {name!r}?)")]
    frames, faults = read_all_files(s2ef.TEXT_FORMAT, path)
    assert not faults
    assert (frames.forces is None) == (label == "forces")
    assert frames.stress is None
    assert frames.charge.tolist() == [0] * 3


@pytest.mark.parametrize("name", ["REF_energy", "dft_energy", "free_energy", "energies", "DFT_energy", "toten"])
def test_similar_energy_names_are_suggested(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.extxyz").write_text(f"1\nProperties=species:S:1:pos:R:3 {name}=-3\nCu 0 0 0\n")
    items = [item for part in s2ef.list_text_chunks([tmp_path]) for item in s2ef.read_text_chunk(part)]
    (fault,) = [item for item in items if isinstance(item, RejectedStructure)]
    assert fault.kind == "unlabelled"
    assert f"no 'energy' (did you mean '{name}'?" in fault.reason
