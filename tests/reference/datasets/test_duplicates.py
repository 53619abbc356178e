"""Equal structures are detected whatever their names, and no structure is in two splits."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import pdist
from scipy.spatial.transform import Rotation

from harness.reference.data.structure import Structure
from harness.reference.data.structure_table import concatenate, tabulate
from harness.reference.datasets.__main__ import main
from harness.reference.datasets.catalog import find_source
from harness.reference.datasets.collection import load_shipped_splits
from harness.reference.datasets.conversion.convert import Conversion, convert, describe_official
from harness.reference.datasets.conversion.read_part import ConversionRules
from harness.reference.datasets.duplicates import (
    assign_structures,
    compute_fingerprints,
    find_repeats,
    label_equal,
    sort_fingerprints,
)
from harness.reference.datasets.readers import ani1x, qm7x
from harness.reference.datasets.shipped_sets import SHIPPED_SETS, find_shipped_set, load_table
from harness.reference.datasets.splits import SPLITS, assign_by_name, measure_shapes
from harness.reference.storage.adios.reader import BPFile
from harness.reference.storage.structure_codec import decode_text
from tests.reference.conftest import ignore_progress
from tests.reference.datasets.official_files.writers import ATOM_ENERGIES_EV, HARTREE, METHANOL, METHANOL_POSITIONS

CELL = np.array([[4.1, 0.0, 0.0], [0.7, 5.2, 0.0], [-0.4, 0.9, 6.3]])


def label_equal_structures(*structures: Structure) -> list[int]:
    shapes = measure_shapes(tabulate(structures))
    return label_equal(shapes.composition, shapes.lengths).tolist()


def make_random_molecule(rng: np.random.Generator, size: int, name: str = "a") -> Structure:
    """Return a structure of random atoms, about half an angstrom or more apart."""
    return Structure(name, rng.choice([1, 6, 8], size), rng.uniform(0, 1.5 * size ** (1 / 3), (size, 3)), charge=-1)


def make_random_crystal(rng: np.random.Generator, size: int, periodic: tuple[bool, bool, bool]) -> Structure:
    fractions = rng.uniform(0, 1, (size, 3))
    return Structure("a", rng.choice([3, 22, 8], size), fractions @ CELL, cell=CELL, periodic=periodic)


def transform_randomly(s: Structure, rng: np.random.Generator, *, mirror: bool) -> Structure:
    """Return the structure rotated, translated and with its atoms permuted."""
    rotation = Rotation.random(random_state=int(rng.integers(2**31))).as_matrix() * (-1 if mirror else 1)
    order = rng.permutation(len(s))
    positions = (s.positions @ rotation.T + rng.normal(0, 3, 3))[order]
    return replace(s, name="b", numbers=s.numbers[order], positions=positions, cell=s.cell @ rotation.T)


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("size", [1, 2, 3, 5, 9, 30, 1030])
def test_fingerprint_is_invariant_for_molecules(size: int, mirror: bool) -> None:
    rng = np.random.default_rng(size)
    for _ in range(10):
        s = make_random_molecule(rng, size)
        assert label_equal_structures(s, transform_randomly(s, rng, mirror=mirror)) == [0, 0]


@pytest.mark.parametrize("periodic", [(True, True, True), (True, True, False), (False, False, True)])
def test_fingerprint_is_invariant_for_periodic_structures(
    periodic: tuple[bool, bool, bool],
) -> None:
    rng = np.random.default_rng(1)
    for size in (1, 2, 5, 12):
        s = make_random_crystal(rng, size, periodic)
        assert label_equal_structures(s, transform_randomly(s, rng, mirror=True)) == [0, 0]
        k = periodic.index(True)
        wrapped = s.positions + np.outer(rng.integers(-2, 3, size), s.cell[k]) + rng.normal(0, 1, 3)
        assert label_equal_structures(s, replace(s, positions=wrapped)) == [0, 0]
        doubling = np.eye(3)
        doubling[k, k] = 2
        repeated = replace(
            s,
            numbers=np.tile(s.numbers, 2),
            positions=np.concatenate([s.positions, s.positions + s.cell[k]]),
            cell=doubling @ s.cell,
        )
        assert label_equal_structures(s, repeated) == [0, 0]
        if sum(periodic) > 1:
            other = np.eye(3)
            other[0, 1] = 1  # a + b in place of a
            assert label_equal_structures(s, replace(s, cell=other @ s.cell)) == [0, 0]
            assert label_equal_structures(s, replace(s, cell=s.cell[[1, 0, 2]])) == [0, 0]


@pytest.mark.parametrize("decimals", [5, 6, 7])
def test_rounding_does_not_separate_equal_structures(decimals: int) -> None:
    rng = np.random.default_rng(decimals)
    for size in (2, 4, 12, 30):
        s = make_random_molecule(rng, size)
        copies = [transform_randomly(s, rng, mirror=False) for _ in range(50)]
        assert set(label_equal_structures(*[replace(m, positions=m.positions.round(decimals)) for m in copies])) == {0}


def test_different_structures_have_different_fingerprints() -> None:
    rng = np.random.default_rng(0)
    for size in (3, 5, 20):
        s = make_random_molecule(rng, size)
        moved = s.positions.copy()
        moved[0] += (moved[0] - moved[1]) / np.linalg.norm(moved[0] - moved[1]) * 0.05
        shaken = [replace(s, positions=s.positions + rng.normal(0, 0.03, s.positions.shape)) for _ in range(200)]
        assert (
            len(
                set(
                    label_equal_structures(
                        s, replace(s, positions=moved), replace(s, charge=0), replace(s, multiplicity=3)
                    )
                )
            )
            == 4
        )
        assert len(set(label_equal_structures(*shaken))) == 200
        c = make_random_crystal(rng, size, (True, True, True))
        shaken = [replace(c, positions=c.positions + rng.normal(0, 0.03, c.positions.shape)) for _ in range(200)]
        assert len(set(label_equal_structures(c, replace(c, cell=c.cell * 1.01), *shaken))) == 202


def test_conformers_with_different_torsions_are_distinguished() -> None:
    """Staggered and eclipsed ethane have the same distances to the centre and moments of inertia."""
    angles = np.array([0, 2 * np.pi / 3, 4 * np.pi / 3])
    hydrogens = np.column_stack([np.cos(angles), np.sin(angles), np.full(3, 1.16)])
    result = []
    for twist in (0.0, np.pi / 3):
        other = np.column_stack([np.cos(angles + twist), np.sin(angles + twist), np.full(3, -1.16)])
        positions = np.concatenate([[[0, 0, 0.76], [0, 0, -0.76]], hydrogens, other])
        result.append(Structure("ethane", np.array([6, 6, 1, 1, 1, 1, 1, 1]), positions))
    assert label_equal_structures(*result) == [0, 1]


def test_crowded_cell_has_no_fingerprint() -> None:
    dense = Structure("dense", np.array([1]), np.zeros((1, 3)), cell=np.eye(3) * 1e-2, periodic=(True, True, True))
    sheet = Structure("sheet", np.array([1]), np.zeros((1, 3)), cell=np.eye(3) * 1e-3, periodic=(True, True, False))
    notes = compute_fingerprints(tabulate([dense, dense, sheet]), seed=17)
    assert np.isnan(notes["lengths"]).all()
    assert find_repeats([sort_fingerprints(notes)]).count == 0


def test_shipped_sets_are_split_by_the_names_of_groups() -> None:
    """No shared geometry moves a group of a shipped set to another split, so that earlier results stay valid."""
    for entry in SHIPPED_SETS:
        frames = load_table(entry)
        for shares in ((0.9, 0.05, 0.05), (0.85, 0.05, 0.1)):
            assert np.array_equal(
                assign_structures(frames, shares=shares), assign_by_name(frames.groups, shares=shares)
            )


def test_splits_of_shipped_sets_keep_equal_structures_together(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = load_table(find_shipped_set("ani1x"))
    names = np.array([f"alias-{k}" for k in range(40)])
    aliases = replace(frames[np.zeros(40, dtype=np.int64)], ids=names, groups=names)
    monkeypatch.setattr(
        "harness.reference.datasets.collection.load_table", lambda entry: concatenate([aliases, frames])
    )
    first = frames.positions[: frames.sizes[0]]
    for seed in range(4):
        result = load_shipped_splits("ani1x", test_fraction=0.3, seed=seed)
        copies = {
            split: sum(np.array_equal(r["pos"], first) for r in d.samples.get(np.arange(len(d.samples))))
            for split, d in result.items()
        }
        assert sorted(copies.values()) == [0, 0, 41]


def write_molecules(path: Path, molecules: dict[str, list[Structure]]) -> None:
    """Write a file of ANI-1x with these conformations; all conformations of a group have the same composition."""
    with h5py.File(path, "w") as file:
        for name, result in molecules.items():
            group = file.create_group(name)
            numbers = result[0].numbers
            group["atomic_numbers"] = numbers.astype(np.uint8)
            group["coordinates"] = np.array([s.positions for s in result])
            group["wb97x_dz.energy"] = np.full(len(result), (ATOM_ENERGIES_EV[numbers].sum() - 20.0) / HARTREE)
            group["wb97x_dz.forces"] = np.zeros((len(result), len(numbers), 3))


def sort_atoms(s: Structure) -> Structure:
    """Return the structure with its atoms sorted by element."""
    order = np.argsort(s.numbers, kind="stable")
    return replace(s, numbers=s.numbers[order], positions=s.positions[order])


def convert_files(
    files: list[Path], store: Path, dataset_format: Any = ani1x.FORMAT, slug: str = "ani1x"
) -> dict[str, Any]:
    entry = find_source(slug)
    return convert(
        Conversion(
            slug, dataset_format, tuple(files), store, entry, describe_official(entry), ConversionRules(cutoff=3.0)
        ),
        ignore_progress,
    )


def find_splits_by_shape(store: Path) -> dict[tuple[Any, ...], set[str]]:
    """Return the splits that contain each shape, which is a composition with sorted distances to 0.01 angstrom."""
    result: dict[tuple[Any, ...], set[str]] = defaultdict(set)
    with BPFile(store) as file:
        for label in file.splits:
            for k in range(file.count_samples(label)):
                record = file.read_sample(label, k)
                distances = np.sort(pdist(record["pos"])).round(2)
                result[(*sorted(record["atomic_numbers"].ravel().tolist()), *distances)].add(label)
    return result


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32 - 1))
def test_no_structure_and_no_group_is_in_two_splits(seed: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("repeats")
    rng = np.random.default_rng(seed)
    shapes = [
        Structure("m", METHANOL, METHANOL_POSITIONS + rng.normal(0, 0.1, METHANOL_POSITIONS.shape))
        for _ in range(int(rng.integers(5, 60)))
    ]
    total = 0
    for k in range(2):
        groups = {}
        for g in range(int(rng.integers(2, 12))):
            selected = rng.integers(0, len(shapes), rng.integers(1, 5))
            groups[f"g{k}-{g}"] = [
                sort_atoms(transform_randomly(shapes[n], rng, mirror=False)) for n in selected.tolist()
            ]
            total += len(selected)
        write_molecules(folder / f"{k}.h5", groups)
    facts = convert_files([folder / "0.h5", folder / "1.h5"], folder / "s.bp")
    result = find_splits_by_shape(folder / "s.bp")
    assert all(len(splits) == 1 for splits in result.values())
    assert facts["conversion"]["structures_written"] == total
    assert facts["conversion"]["duplicate_structures"] == total - len(result)
    assert facts["statistics"]["structures"] == total
    assert facts["reference_energies"]["structures"] == facts["conversion"]["splits"]["train"]
    ids = []
    splits_by_group: dict[str, set[str]] = defaultdict(set)
    with BPFile(folder / "s.bp") as file:
        assert file.attributes["pna_deg"].sum() == sum(
            len(file.read_sample("trainset", k)["atomic_numbers"]) for k in range(file.count_samples("trainset"))
        )
        for label in file.splits:
            for k in range(file.count_samples(label)):
                ids.append(decode_text(file.read_sample(label, k)["id"]))
                splits_by_group[ids[-1].rpartition("/")[0]].add(label)
    assert len(set(ids)) == total
    assert all(len(splits) == 1 for splits in splits_by_group.values())


def test_repeated_structure_is_in_one_split_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(3)
    methanol = Structure("m", METHANOL, METHANOL_POSITIONS)
    aliases = {}
    for k in range(40):
        rotation = Rotation.random(random_state=k).as_matrix()
        aliases[f"alias-{k}"] = [replace(methanol, positions=methanol.positions @ rotation.T)]
    others = {
        f"other-{k}": [replace(methanol, positions=METHANOL_POSITIONS + rng.normal(0, 0.1, (6, 3)))] for k in range(60)
    }
    write_molecules(tmp_path / "x.h5", dict(list(aliases.items())[:20]) | others)
    write_molecules(tmp_path / "y.h5", dict(list(aliases.items())[20:]))
    assert len(set(assign_by_name(np.array(list(aliases))).tolist())) > 1
    assert main(["convert", "ani1x", str(tmp_path / "x.h5"), str(tmp_path / "y.h5"), "--to", str(tmp_path), "-q"]) == 0
    assert "39 structures have the geometry of another" in capsys.readouterr().out
    with BPFile(tmp_path / "ani1x.bp") as file:
        result = {
            label
            for label in file.splits
            for k in range(file.count_samples(label))
            if "alias" in decode_text(file.read_sample(label, k)["id"])
        }
        assert len(result) == 1
        assert set(file.splits) == set(SPLITS)


def test_molecules_of_qm7x_that_are_published_twice_stay_together(tmp_path: Path) -> None:
    """DupMols.dat lists such molecules: the same equilibrium has two numbers, in two files, each with displacements."""
    rng = np.random.default_rng(5)
    for number in range(30):
        shape = METHANOL_POSITIONS + rng.normal(0, 0.1, METHANOL_POSITIONS.shape)
        for k, number_text in enumerate((f"{number + 1:04d}", f"{number + 5001:04d}")):
            with h5py.File(tmp_path / f"{(1000, 6000)[k]}.hdf5", "a") as file:
                rotation = Rotation.random(random_state=number).as_matrix() if k else np.eye(3)
                for name in ("opt", "d1", "d2"):
                    group = file.create_group(f"{number_text}/Geom-m{number + 1}-i1-c1-{name}")
                    moved = shape if name == "opt" else shape + rng.normal(0, 0.05, shape.shape)
                    group["atNUM"], group["atXYZ"] = METHANOL, moved @ rotation.T
                    group["ePBE0+MBD"] = [ATOM_ENERGIES_EV[METHANOL].sum() - 20.0]
                    group["totFOR"] = np.zeros((6, 3))
    files = [tmp_path / "1000.hdf5", tmp_path / "6000.hdf5"]
    facts = convert_files(files, tmp_path / "s.bp", qm7x.FORMAT, "qm7x")
    assert facts["conversion"]["duplicate_structures"] == 30
    splits: dict[int, set[str]] = defaultdict(set)
    with BPFile(tmp_path / "s.bp") as file:
        for label in file.splits:
            for k in range(file.count_samples(label)):
                splits[int(decode_text(file.read_sample(label, k)["id"]).split("/")[-2]) % 5000].add(label)
    assert len(splits) == 30
    assert all(len(result) == 1 for result in splits.values())
