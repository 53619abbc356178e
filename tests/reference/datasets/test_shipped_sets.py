"""The shipped sets match their table, and their labels match the codes that computed them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields, replace
from functools import cache
from pathlib import Path

import h5py
import numpy as np
import pytest

from harness.reference.data.structure import Structure
from harness.reference.data.structure_table import StructureTable
from harness.reference.datasets import levels, shipped_sets
from harness.reference.datasets.catalog import HEADS
from harness.reference.datasets.levels import LevelOfTheory, NotConvergedError
from harness.reference.datasets.shipped_sets import (
    CHARGE_VIEWS,
    SHIPPED_SETS,
    ShippedSet,
    find_shipped_set,
    load_structures,
    load_table,
)
from harness.reference.errors import InputError
from tests.builders.mini_sets import pack
from tests.builders.mini_sets.labelling import hash_structure, label_structures
from tests.builders.mini_sets.recipes import RECIPES

# Largest net force of a structure in eV/angstrom: small for analytic forces, larger with integration grids.
NET_FORCE = {"GFN": 1e-4, "wB97X": 0.1, "PBE0": 0.1, "PBE": 1.0}
MEGABYTE = 1_000_000


@cache
def load_frames(name: str) -> StructureTable:
    return load_table(find_shipped_set(name))


def list_sets_with_files() -> list[ShippedSet]:
    return [entry for entry in SHIPPED_SETS if entry.name not in CHARGE_VIEWS]


@pytest.mark.parametrize("entry", SHIPPED_SETS, ids=lambda e: e.name)
def test_a_set_is_complete_and_its_labels_are_in_range(entry: ShippedSet) -> None:
    frames = load_frames(entry.name)
    assert len(frames) == entry.count > 0
    assert np.isfinite(frames.energy).all()
    assert frames.forces is not None
    assert np.isfinite(frames.forces).all()
    assert (frames.stress is not None) == ("stress" in entry.labels)
    assert len(set(frames.ids.tolist())) == len(frames)
    assert (frames.groups != "").all()
    net = np.add.reduceat(frames.forces, frames.ends - frames.sizes)
    limit = next(value for level, value in NET_FORCE.items() if entry.level.startswith(level))
    assert np.abs(net).max() < limit
    largest = np.linalg.norm(frames.forces, axis=1).max()
    assert largest <= (
        30.0 if "computed" in find_shipped_set(CHARGE_VIEWS.get(entry.name, (entry.name,))[0]).provenance else 500.0
    )


@pytest.mark.parametrize("entry", SHIPPED_SETS, ids=lambda e: e.name)
def test_structures_are_unique(entry: ShippedSet) -> None:
    frames = load_frames(entry.name)
    distinct = {
        (s.numbers.tobytes(), s.positions.tobytes(), s.cell.tobytes(), s.charge, s.multiplicity)
        for s in frames.structures()
    }
    assert len(distinct) == len(frames)


def test_loaded_structures_have_the_head_of_their_set() -> None:
    entry = find_shipped_set("opoly2026")
    structures = load_structures(entry)
    assert len(structures) == entry.count
    assert {s.head for s in structures} == {HEADS.index("OPoly2026")}


def test_there_is_one_set_for_each_branch_in_the_order_of_the_branches() -> None:
    assert tuple(entry.head for entry in SHIPPED_SETS) == HEADS
    assert [entry.branch for entry in SHIPPED_SETS] == list(range(len(HEADS)))
    assert set(RECIPES) | set(CHARGE_VIEWS) == {entry.name for entry in SHIPPED_SETS}
    assert {path.name for path in shipped_sets.FOLDER.iterdir()} == {
        *(e.file.name for e in SHIPPED_SETS), "sets.yaml", "README.md"
    }  # fmt: skip


def test_sets_cover_the_periodic_table_and_levels_of_theory_and_are_imbalanced() -> None:
    elements = {int(z) for e in list_sets_with_files() for z in np.unique(load_frames(e.name).numbers)}
    assert len(elements) >= 80
    assert len({e.level.split(",")[0] for e in list_sets_with_files()}) >= 4
    counts = {e.name: e.count for e in list_sets_with_files()}
    assert max(counts.values()) >= 50 * min(counts.values())
    assert max(counts, key=lambda name: counts[name]) == "omol25"
    assert sum(e.file.stat().st_size for e in list_sets_with_files()) < 12 * MEGABYTE


def test_charge_views_divide_the_molecules_by_charge() -> None:
    all_frames, neutral, charged = (load_frames(n) for n in ("omol25", "omol25-neutral", "omol25-non-neutral"))
    assert len(neutral) + len(charged) == len(all_frames)
    assert (neutral.charge == 0).all()
    assert (charged.charge != 0).all()
    assert {*charged.ids.tolist(), *neutral.ids.tolist()} == set(all_frames.ids.tolist())
    assert {-1, 1} < set(charged.charge.tolist())
    assert {1, 2, 3} <= set(all_frames.multiplicity.tolist())


@pytest.mark.parametrize("entry", SHIPPED_SETS, ids=lambda e: e.name)
def test_electrons_allow_the_multiplicity(entry: ShippedSet) -> None:
    frames = load_frames(entry.name)
    electrons = np.add.reduceat(frames.numbers.astype(int), frames.ends - frames.sizes) - frames.charge
    has_multiplicity = frames.multiplicity > 0
    assert ((electrons - frames.multiplicity + 1)[has_multiplicity] % 2 == 0).all()
    assert (electrons >= frames.multiplicity - 1)[has_multiplicity].all()


def test_published_numbers_are_kept_to_the_last_digit() -> None:
    """The values are those of the first frame of alexandria-random-1k.xyz."""
    first = next(load_frames("alexandria").structures())
    assert first.positions[0].tolist() == [8.60224427, 4.96650805, 3.51185152]
    assert first.energy == -17.52450881
    assert first.stress is not None
    assert first.stress[0, 0] == pytest.approx(-0.0011608826242086182, abs=1e-10)
    assert first.group == "AcPbTe2"


@pytest.mark.parametrize("entry", SHIPPED_SETS, ids=lambda e: e.name)
def test_every_set_has_a_role_and_a_provenance(entry: ShippedSet) -> None:
    for field in fields(entry):
        assert getattr(entry, field.name) not in ("", None), field.name
    assert re.fullmatch(r"[0-9a-f]{64}", entry.sha256)
    assert entry.data_origin == f"{'sample of' if entry.sample else 'stand-in for'} {entry.head}"
    assert re.search(r"sha256 [0-9a-f]{64}|computed by .* [0-9.]+;|frames of omol25", entry.provenance)


def test_the_page_agrees_with_the_table() -> None:
    text = (shipped_sets.FOLDER / "README.md").read_text()
    for entry in SHIPPED_SETS:
        kind = "sample" if entry.sample else "stand-in"
        assert f"| {entry.name} | {kind} | {entry.count} | {entry.level} | {entry.chemistry} |" in text


def test_a_changed_or_missing_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipped_sets, "FOLDER", tmp_path)
    with pytest.raises(InputError, match="cannot be read"):
        load_structures(find_shipped_set("qcml"))
    (tmp_path / "qcml.h5").write_bytes(b"something else")
    with pytest.raises(InputError, match="sha256 differs"):
        load_structures(find_shipped_set("qcml"))


def test_unknown_name_suggests_the_closest() -> None:
    with pytest.raises(InputError, match=r"no shipped set 'omol52' \(did you mean 'omol25'\?\)"):
        find_shipped_set("omol52")


def test_incomplete_table_is_rejected(tmp_path: Path) -> None:
    text = (shipped_sets.FOLDER / "sets.yaml").read_text()
    (tmp_path / "sets.yaml").write_text(text.replace("  licence: CC-BY-4.0\n", "", 1))
    with pytest.raises(InputError, match="alexandria lacks licence"):
        shipped_sets.read_table(tmp_path / "sets.yaml")


def test_packing_is_exact_and_deterministic(tmp_path: Path) -> None:
    structures = list(load_frames("mptrj")[:20].structures())
    digests = {pack.write_set(tmp_path / f"{k}.h5", "mptrj", structures, pack.PUBLISHED) for k in (1, 2)}
    assert len(digests) == 1
    with h5py.File(tmp_path / "1.h5") as file:
        written = shipped_sets.decode_columns(file)
    assert written.positions.tobytes() == np.concatenate([s.positions for s in structures]).tobytes()
    assert written.energy.tolist() == [s.energy for s in structures]


def select_small_structures(name: str, count: int, atoms: tuple[int, int]) -> Iterator[Structure]:
    """Return an even selection of the structures of a set whose number of atoms is in a range."""
    result = [s for s in load_frames(name).structures() if atoms[0] <= len(s) <= atoms[1]]
    return iter([result[k] for k in np.linspace(0, len(result) - 1, count).astype(int)])


@pytest.mark.parametrize(
    ("name", "level", "count", "atoms"), [("omol25", levels.GFN2, 40, (4, 20)), ("ani1x", levels.WB97X, 4, (3, 6))]
)
def test_labels_are_reproducible(name: str, level: LevelOfTheory, count: int, atoms: tuple[int, int]) -> None:
    for s in select_small_structures(name, count, atoms):
        energy, forces = level.label(s)
        assert s.forces is not None
        assert energy == pytest.approx(s.energy, abs=1e-4), s.name
        assert np.abs(forces - s.forces).max() < 2e-3, s.name


@pytest.mark.parametrize(
    ("name", "level", "atoms", "tolerance"),
    [
        ("omol25", levels.GFN2, (8, 9), 1e-3),
        ("odac23", levels.GFN1_PERIODIC, (14, 16), 1e-3),
        ("ani1x", levels.WB97X, (3, 4), 3e-2),
    ],
)
def test_forces_are_energy_gradients(name: str, level: LevelOfTheory, atoms: tuple[int, int], tolerance: float) -> None:
    s = next(select_small_structures(name, 1, atoms))
    assert s.forces is not None
    step = 2e-3
    for atom, axis in ((0, 0), (len(s) - 1, 2)):
        energies = []
        for sign in (1, -1):
            positions = s.positions.copy()
            positions[atom, axis] += sign * step
            energies.append(level.label(replace(s, positions=positions))[0])
        gradient = (energies[0] - energies[1]) / (2 * step)
        assert -gradient == pytest.approx(s.forces[atom, axis], abs=tolerance)


def test_an_impossible_multiplicity_is_refused() -> None:
    water = Structure("water", np.array([8, 1, 1]), np.eye(3))
    assert [
        levels.count_unpaired_electrons(replace(water, charge=c, multiplicity=m)) for c, m in ((0, 0), (1, 0), (0, 3))
    ] == [0, 1, 2]
    with pytest.raises(ValueError, match="water: a multiplicity of 2 is impossible"):
        levels.count_unpaired_electrons(replace(water, multiplicity=2))


def compute_test_labels(structure: Structure) -> levels.Labels:
    """Label a structure for the tests: fail for charge 1, return large forces for charge 2."""
    if structure.charge == 1:
        raise NotConvergedError("no")
    return -1.0, np.full((len(structure), 3), 100.0 if structure.charge == 2 else 0.5)


def test_interrupted_build_resumes_and_counts_rejections(tmp_path: Path) -> None:
    level = LevelOfTheory("springs", ("numpy",), compute_test_labels)
    water = Structure("water", np.array([8, 1, 1]), np.eye(3))
    waters = [replace(water, charge=charge) for charge in (0, 1, 2, -1)]
    cache_file = tmp_path / "labels.jsonl"
    first = label_structures(waters, level, cache_file)
    assert [s.charge for s in first.structures] == [0, -1]
    assert first.rejected == {"not converged": 1, "a force above 30 eV/A": 1}
    # only the truncated line is computed again
    truncated = cache_file.read_text().rstrip()[:-20]
    cache_file.write_text(truncated.replace("-1.0", "-7.0"))
    energies = [s.energy for s in label_structures(waters, level, cache_file).structures]
    assert energies == [-7.0, -1.0]
    assert len({hash_structure(s, level) for s in waters}) == 4
