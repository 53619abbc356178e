"""The shipped sets of the tasks match their table, are physical, and do not overlap the sets for pretraining."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path

import h5py
import msgspec
import numpy as np
import pytest

from harness.reference.data.structure import Structure
from harness.reference.data.structure_table import StructureTable
from harness.reference.datasets import levels
from harness.reference.datasets.shipped_sets import CHARGE_VIEWS, SHIPPED_SETS, find_shipped_set, load_table
from harness.reference.errors import InputError
from harness.reference.tasks.catalog import find_task
from harness.reference.tasks.dataset import TaskDataset, split_task
from harness.reference.tasks.load import FOLDER, load_shipped_task, read_shipped_tasks
from harness.reference.tasks.readers.crystals import reduce_formula
from tests.builders.task_sets import composition, dynamics, pack, perovskites
from tests.builders.task_sets.recipes import RECIPES
from tests.builders.task_sets.samples import make_energy_samples

SETS = tuple(read_shipped_tasks())
MEGABYTE = 1_000_000


@cache
def load_set(name: str) -> TaskDataset:
    result = load_shipped_task(name)
    assert result is not None
    return result


def compute_structure_keys(frames: StructureTable) -> set[tuple[bytes, ...]]:
    """Return a key of each structure: its numbers, positions and cell."""
    return {(s.numbers.tobytes(), s.positions.tobytes(), s.cell.tobytes()) for s in frames.structures()}


def test_at_least_seven_tasks_have_data_below_5_megabytes() -> None:
    assert len(SETS) >= 7
    assert set(SETS) == set(RECIPES)
    assert {p.name for p in FOLDER.iterdir()} == {"tasks.yaml", "README.md", *(f"{name}.h5" for name in SETS)}
    assert sum(p.stat().st_size for p in FOLDER.iterdir()) < 5 * MEGABYTE


@pytest.mark.parametrize("name", SETS)
def test_a_set_is_complete_and_can_be_split(name: str) -> None:
    labelled, entry = load_set(name), find_task(name)
    frames = labelled.table
    assert len(labelled) == len(frames) == read_shipped_tasks()[name].count > 0
    assert np.isfinite(labelled.target).all()
    assert labelled.target.std() > 0
    assert len(set(labelled.official_ids.tolist())) == len(labelled)
    assert len(compute_structure_keys(frames)) == len(labelled)
    assert (frames.forces is not None) == (entry.kind == "energy_forces")
    assert np.isfinite(frames.energy).all() == (entry.kind != "property")
    for s in frames.structures():
        s.check()
    pool, test = split_task(labelled, seed=0, test_fraction=0.2)
    assert not set(frames.groups[pool]) & set(frames.groups[test])


@pytest.mark.parametrize("name", SETS)
def test_every_set_has_a_role_and_a_provenance(name: str) -> None:
    entry = read_shipped_tasks()[name]
    for column, value in msgspec.structs.asdict(entry).items():
        assert value not in ("", None), column
    assert load_set(name).data_origin.startswith("official QM9, a sample of" if name == "qm9" else "stand-in for ")
    assert re.search(r"sha256 [0-9a-f]{64}|computed by .* [0-9.]+;|ASE's collection", entry.provenance)


def test_the_page_agrees_with_the_table() -> None:
    text = (FOLDER / "README.md").read_text()
    for name, entry in read_shipped_tasks().items():
        assert f"| {name} | {entry.role} | {entry.count} | {entry.target} | {entry.level} |" in text
    assert "matbench_phonons" in text


def test_a_changed_or_missing_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tasks.yaml").write_text((FOLDER / "tasks.yaml").read_text())
    with pytest.raises(InputError, match="cannot be read"):
        load_shipped_task("oqmd", tmp_path)
    (tmp_path / "oqmd.h5").write_bytes(b"something else")
    with pytest.raises(InputError, match="sha256 differs"):
        load_shipped_task("oqmd", tmp_path)
    assert load_shipped_task("matbench_phonons") is None


def test_a_missing_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"tasks.yaml: cannot be read \(No such file"):
        read_shipped_tasks(tmp_path)


def test_a_table_with_a_fault_is_refused(tmp_path: Path) -> None:
    for text, output in (
        ("", "expected a table of tasks"),
        ("qm9: {", "tasks.yaml: cannot be read"),
        ("qm8: {}\n", "'qm8' is not a task"),
        ("qm9: {role: stand-in}\n", "qm9: Object missing required field `chemistry`"),
        (
            re.sub("role: stand-in", "roll: 1\\n  role: stand-in", (FOLDER / "tasks.yaml").read_text()),
            "unknown field `roll`",
        ),
        (re.sub("role: stand-in", "role: copy", (FOLDER / "tasks.yaml").read_text()), "Invalid enum value 'copy'"),
        (re.sub("count: ", "count: x", (FOLDER / "tasks.yaml").read_text()), "Expected `int`, got `str`"),
    ):
        folder = tmp_path / output.replace(" ", "-").replace("'", "").replace(":", "")
        folder.mkdir()
        (folder / "tasks.yaml").write_text(text)
        with pytest.raises(InputError, match=output):
            read_shipped_tasks(folder)


def test_qm9_energies_are_plausible_atomization_energies() -> None:
    """The targets are total energies, as in qm9_part1.csv (InternalEnergy_0K_au)."""
    labelled = load_set("qm9")
    assert set(np.unique(labelled.table.numbers)) == {1, 6, 7, 8, 9}
    assert labelled.table.sizes.max() <= 29
    free_atom_energies = {1: -0.500273, 6: -37.846772, 7: -54.583861, 8: -75.064579, 9: -99.718730}
    free_atoms = [
        27.211386245988 * sum(free_atom_energies[int(z)] for z in s.numbers) for s in labelled.table.structures()
    ]
    per_atom = (labelled.target - np.array(free_atoms)) / labelled.table.sizes
    # the range of atomization energies per atom; the energies of free atoms are those published with QM9
    assert (per_atom < -2.5).all()
    assert (per_atom > -6.5).all()


def test_no_molecule_or_formula_is_in_a_set_for_pretraining() -> None:
    known = {
        g
        for e in SHIPPED_SETS
        if e.name not in CHARGE_VIEWS
        for g in load_table(find_shipped_set(e.name)).groups.tolist()
    }
    assert not known & set(load_set("qm9").table.groups.tolist())
    assert not known & set(load_set("oqmd").table.groups.tolist())


@pytest.mark.parametrize("name", ["oqmd", "abx3", "matbench_log_kvrh", "ms25"])
def test_no_crystal_is_in_a_set_for_pretraining(name: str) -> None:
    """Crystals are compared by reduced composition and volume per atom, which do not depend on the cell."""
    task_keys = compute_crystal_fingerprints(load_set(name).table)
    for pretraining in ("mptrj", "alexandria", "omat24"):
        assert not task_keys & compute_crystal_fingerprints(load_table(find_shipped_set(pretraining))), pretraining


@pytest.mark.parametrize("name", ["md17", "wiggle150", "abx3"])
def test_no_composition_is_in_a_set_for_pretraining_of_the_same_method(name: str) -> None:
    method = read_shipped_tasks()[name].level.split()[0]
    task_keys = {reduce_formula(s.numbers) for s in load_set(name).table.structures()}
    sets_of_the_method = [e for e in SHIPPED_SETS if e.name not in CHARGE_VIEWS and e.level.startswith(method)]
    assert sets_of_the_method
    for entry in sets_of_the_method:
        assert not task_keys & {reduce_formula(s.numbers) for s in load_table(entry).structures()}, entry.name


def compute_crystal_fingerprints(frames: StructureTable) -> set[tuple[tuple[int, int], ...]]:
    """Return elements with reduced counts, and the volume per atom in thousandths of a cubic angstrom."""
    result = set()
    for s in frames.structures():
        counts = Counter(s.numbers.tolist())
        common = math.gcd(*counts.values())
        volume = round(abs(np.linalg.det(s.cell)) / len(s) * 1000)
        result.add((*((z, c // common) for z, c in sorted(counts.items())), (0, volume)))
    return result


def test_formation_energies_are_residuals_of_a_fit_on_composition() -> None:
    for name in ("oqmd", "abx3"):
        labelled = load_set(name)
        fractions = composition.compute_fractions(list(labelled.table.structures()))
        assert abs(fractions.T @ labelled.target).max() < 1e-5
        assert 0.02 < np.abs(labelled.target).mean() < 1.0


def test_every_element_of_oqmd_occurs_in_five_crystals() -> None:
    fractions = composition.compute_fractions(list(load_set("oqmd").table.structures()))
    assert (fractions > 0).sum(axis=0).min() >= 5


def test_perovskites_have_several_volumes_near_the_minimum() -> None:
    frames = load_set("abx3").table
    assert (frames.sizes == 5).all()
    for group in np.unique(frames.groups)[:10]:
        rows = np.flatnonzero(frames.groups == group)
        edges, energies = frames.cell[rows, 0, 0], load_set("abx3").target[rows]
        assert len(rows) >= 2
        assert len(np.unique(edges)) == len(rows)
        assert np.ptp(energies) < perovskites.HIGHEST_EV_ATOM


def test_conformers_have_higher_energies_than_the_relaxed_one() -> None:
    labelled = load_set("wiggle150")
    relaxed = np.char.endswith(labelled.official_ids, "_00")
    molecules = [name.partition("_")[0] for name in labelled.official_ids.tolist()]
    assert Counter(molecules) == dict.fromkeys(dynamics.WIGGLE_SMILES, 51)
    assert (labelled.target[relaxed] == 0).all()
    # as strained as the conformers of the benchmark: tens to hundreds of kcal/mol
    assert labelled.target[~relaxed].min() > 0.3
    assert labelled.target.max() < 12


def test_energies_of_trajectories_match_their_temperature() -> None:
    """Potential energies vary like those of 3n - 6 classical oscillators, within the noise of one trajectory."""
    labelled = load_set("md17")
    for name in dynamics.MD17_SMILES:
        rows = labelled.subset == name
        modes = 3 * labelled.table.sizes[rows][0] - 6
        expected = np.sqrt(modes / 2) * 8.617333e-5 * dynamics.MD17_KELVIN
        assert rows.sum() == dynamics.MD17_FRAMES
        assert labelled.target[rows].std() == pytest.approx(expected, rel=0.35)


@pytest.mark.parametrize(("name", "level"), [("md17", "GFN1-xTB"), ("wiggle150", "GFN2-xTB")])
def test_energies_match_their_level_of_theory(name: str, level: str) -> None:
    frames = load_set(name).table
    for k in (0, len(frames) // 2, len(frames) - 1):
        energy, _ = levels.compute_xtb(next(frames[k : k + 1].structures()), level)
        assert energy == pytest.approx(frames.energy[k], abs=1e-4)


def test_forces_are_the_negative_gradient_of_the_energy() -> None:
    frames = load_set("md17").table
    structure = next(frames[len(frames) // 2 : len(frames) // 2 + 1].structures())
    assert structure.forces is not None
    direction = np.random.default_rng(0).normal(size=structure.positions.shape)
    step = 1e-3 / np.linalg.norm(direction)
    up, down = (levels.compute_xtb(displace(structure, sign * step * direction), "GFN1-xTB")[0] for sign in (1, -1))
    assert (up - down) / (2 * step) == pytest.approx(-(structure.forces * direction).sum(), abs=2e-3)


def displace(structure: Structure, shift: np.ndarray) -> Structure:
    return replace(structure, positions=structure.positions + shift)


def test_bulk_moduli_match_the_published_collection() -> None:
    labelled = load_set("matbench_log_kvrh")
    assert len(labelled) == 71
    iron = labelled.official_ids.tolist().index("Fe")
    assert 10 ** labelled.target[iron] == pytest.approx(197.652, rel=1e-6)


def test_structures_of_ms25_have_no_net_force() -> None:
    labelled = load_set("ms25")
    assert set(labelled.subset) == {"Ni", "Cu", "Li", "Ge", "Si", "Mo"}
    assert labelled.table.forces is not None
    net = np.add.reduceat(labelled.table.forces, labelled.table.ends - labelled.table.sizes)
    assert np.abs(net).max() < 0.5


def test_packing_is_deterministic(tmp_path: Path) -> None:
    structures = list(load_set("md17").table[:5].structures())
    digests = {pack.write_set(tmp_path / f"{k}.h5", make_energy_samples(structures), pack.Decimals()) for k in range(2)}
    assert len(digests) == 1
    with h5py.File(tmp_path / "0.h5") as file:
        assert file["target"][:].tolist() == [round(float(s.energy or 0) * 1e8) for s in structures]
        assert file["subset"][:].tolist() == [b"ethanol"] * 5
