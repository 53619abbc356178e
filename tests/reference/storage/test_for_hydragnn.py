"""Stores written for HydraGNN: what its reader asks for, and the same structures on the way back."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from harness.reference.datasets.__main__ import main
from harness.reference.datasets.catalog import find_source
from harness.reference.datasets.collection import DatasetCollection, NeighbourSpec, open_dataset
from harness.reference.datasets.conversion.convert import convert, plan_conversion
from harness.reference.datasets.conversion.read_part import ConversionRules
from harness.reference.datasets.splits import SPLITS
from harness.reference.storage.adios.reader import BPFile
from harness.reference.storage.sampling.sampler import SampleIndices
from harness.reference.storage.schema import Record
from tests.reference.storage.originals import (
    group_by_split,
    original_records,
    shipped_frames,
    write_authors_store,
    write_original,
)
from tests.reference.storage.test_bp_original import AsOriginal

# What examples/multidataset_hpo_sc26/gfm_mlip_all_mpnn.py of HydraGNN requires of a store.
REQUIRED_KEYS = (
    "pbc", "edge_attr", "energy_per_atom", "forces", "pos", "edge_index", "cell", "edge_shifts", "y",
    "chemical_composition", "natoms", "x", "energy", "graph_attr", "atomic_numbers",
)  # fmt: skip


@pytest.fixture(scope="module", params=["qm7x", "omat24"])
def ours(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    entry = find_source(request.param)
    store = tmp_path_factory.mktemp("ours") / f"{entry.slug}.bp"
    convert(plan_conversion(entry, [], store, ConversionRules(), 1), lambda *_: None)
    return store


@pytest.fixture(scope="module")
def theirs(ours: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("theirs")
    assert main(["convert", ours.stem, str(ours), "--for", "hydragnn", "--to", str(folder), "-q"]) == 0
    assert os.listdir(folder) == [f"{find_source(ours.stem).head}-v2.bp"]
    return next(folder.iterdir())


def total_energy(record: Record, coefficients: np.ndarray) -> float:
    return float(record["energy"][0] + record["chemical_composition"][:, 0] @ coefficients)


def test_its_reader_finds_all_that_it_asks_for(ours: Path, theirs: Path) -> None:
    with BPFile(ours) as file:
        for label in SPLITS:
            reader = AsOriginal(theirs, label)
            coefficients = reader.stream.read_attribute("energy_linear_regression_coeff")
            assert reader.name == ours.stem
            assert set(REQUIRED_KEYS) <= set(reader.keys)
            assert coefficients.shape == (118,)
            assert reader.stream.read_attribute("pna_deg").dtype == np.int64
            assert reader.ndata == file.count_samples(label)
            for k in range(0, reader.ndata, 1 + reader.ndata // 20):
                expected = file.record(label, k)
                if not (reader.count["edge_index"][k] and reader.count["edge_attr"][k]):
                    continue
                result = reader.get(k)
                assert total_energy(result, coefficients) == pytest.approx(expected["energy"][0], rel=1e-12)
                assert result["energy_per_atom"][0] == pytest.approx(expected["energy"][0] / expected["natoms"][0])
                assert result["y"] == result["energy"]
                assert all(np.array_equal(result[key], expected[key]) for key in ("pos", "forces", "cell", "pbc"))
            reader.stream.close()


def test_each_atom_has_its_nearest_twenty_in_row_1(theirs: Path) -> None:
    with BPFile(theirs) as file:
        degrees = np.zeros(21, dtype=np.int64)
        for k in range(file.count_samples("trainset")):
            record = file.record("trainset", k)
            (row, col), pos, n = record["edge_index"], record["pos"], int(record["natoms"][0])
            apart = np.linalg.norm(pos[col] - pos[row] + record["edge_shifts"], axis=1)
            assert np.allclose(apart, record["edge_attr"][:, 0], atol=1e-9)
            degrees += np.bincount(np.bincount(col, minlength=n), minlength=21)
            if k % 50 == 0:
                expected = nearest_distances(record)
                result = [np.sort(apart[col == atom]) for atom in range(n)]
                assert all(np.allclose(a, b, atol=1e-9) for a, b in zip(result, expected, strict=True))
        assert file.attributes["pna_deg"].tolist() == np.trim_zeros(degrees, "b").tolist()


def nearest_distances(record: Record) -> list[np.ndarray]:
    """Return the twenty smallest distances below 5 angstrom, over all images."""
    reach = [0]
    if record["pbc"].any():
        heights = 1.0 / np.linalg.norm(np.linalg.inv(record["cell"]), axis=0)
        reach = list(range(-int(np.ceil(5 / heights.min())) - 1, int(np.ceil(5 / heights.min())) + 2))
    images = np.array([(a, b, c) for a in reach for b in reach for c in reach]) @ record["cell"]
    result = []
    for center in record["pos"]:
        apart = np.linalg.norm(record["pos"][:, None] + images[None] - center, axis=2).reshape(-1)
        result.append(np.sort(apart[(apart < 5.0) & (apart > 1e-6)])[:20])
    return result


def test_export_round_trips(ours: Path, theirs: Path) -> None:
    reach = NeighbourSpec(5.0, 20)
    for split in SPLITS:
        opened = [open_dataset(path, reach, "preload", split=split) for path in (ours, theirs)]
        count = len(opened[0].samples)
        assert len(opened[1].samples) == count
        picked = np.unique(np.linspace(0, count - 1, 200).astype(np.int64))
        indices = SampleIndices(np.zeros_like(picked), picked)
        for a, b in zip(*(DatasetCollection([dataset], reach).load_graphs(indices) for dataset in opened), strict=True):
            assert b.structure.energy == pytest.approx(a.structure.energy, rel=1e-12)
            for name in ("numbers", "positions", "forces", "cell"):
                assert np.array_equal(getattr(a.structure, name), getattr(b.structure, name))
            assert (a.structure.charge, a.structure.periodic) == (b.structure.charge, b.structure.periodic)
            assert np.array_equal(a.receiver, b.receiver)
        assert (opened[0].role, opened[0].level) == (opened[1].role, opened[1].level)


def test_the_regression_is_that_of_total_energies_of_all_splits(tmp_path: Path) -> None:
    frames = shipped_frames()
    assert main(["convert", "qm7x", "--for", "hydragnn", "--to", str(tmp_path), "-q"]) == 0
    assert os.listdir(tmp_path) == ["QM7X-v2.bp"]
    with BPFile(tmp_path / "QM7X-v2.bp") as file:
        blocks = [file.columns(s, 0, file.count_samples(s)).columns for s in SPLITS]
    rest = np.concatenate([columns["energy"].values for columns in blocks])
    composition = np.concatenate([columns["chemical_composition"].values.reshape(-1, 118) for columns in blocks])
    assert len(rest) == len(frames)
    assert np.abs(composition.T @ rest).max() < 1e-6 * np.abs(frames.energy).max()


def test_a_store_of_hydragnn_is_written_anew_with_what_can_be_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frames = shipped_frames()
    splits = group_by_split(frames, original_records(frames, frames.energy))
    splits["trainset"][3]["pos"][0, 0] = np.nan
    origin = write_original(tmp_path / "QM7X-v1.bp", splits, dataset_name="qm7x")
    words = ["convert", "qm7x", str(origin), "--for", "hydragnn", "--to", str(tmp_path), "-q"]
    assert main(words) == 2
    assert f"`harness data convert qm7x {origin}`" in capsys.readouterr().err
    assert main(["convert", "qm7x", str(origin), "-q"]) == 0
    assert main(words) == 0
    assert "192 structures (179 trainset, 10 valset, 3 testset)" in capsys.readouterr().out
    assert main(words) == 2
    assert "there is a store of this name already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--cutoff", "6"], "--cutoff 6: HydraGNN's stores have 5"),
        (["--max-neighbours", "12"], "--max-neighbours 12: HydraGNN's stores have 20"),
        (["--for", "mace"], "invalid choice"),
    ],
)
def test_other_conversion_rules_are_rejected(
    tmp_path: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", "qm7x", "--for", "hydragnn", "--to", str(tmp_path), *words]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_store_of_another_dataset_or_without_a_split_is_refused(
    tmp_path: Path, ours: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", "oc25", str(ours), "--for", "hydragnn", "--to", str(tmp_path)]) == 2
    assert f"its dataset_name is {ours.stem!r}, not oc25" in capsys.readouterr().err
    path = write_authors_store(tmp_path / "QM7X-v2.bp")
    assert main(["convert", "qm7x", str(path), "-q"]) == 0
    shutil.rmtree(path)
    frames = shipped_frames()
    splits = group_by_split(frames, original_records(frames, frames.energy))
    del splits["testset"]
    write_original(path, splits, dataset_name="qm7x")
    Path(f"{path}.harness.json").unlink()
    assert main(["convert", "qm7x", str(path), "-q"]) == 0
    assert main(["convert", "qm7x", str(path), "--for", "hydragnn", "--to", str(tmp_path / "new")]) == 2
    assert "has no testset; HydraGNN needs" in capsys.readouterr().err
