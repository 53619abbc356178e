"""Stores exported for HydraGNN have the keys that its reader requires, and are read back with the same structures."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from harness.reference.data.neighbours import NeighbourSpec
from harness.reference.datasets.__main__ import main
from harness.reference.datasets.catalog import find_source
from harness.reference.datasets.collection import DatasetCollection, open_dataset
from harness.reference.datasets.conversion.convert import convert, plan_conversion
from harness.reference.datasets.conversion.read_part import ConversionRules
from harness.reference.datasets.splits import SPLITS
from harness.reference.storage.adios.reader import BPFile
from harness.reference.storage.sampling.sampler import SampleIndices
from harness.reference.storage.schema import Sample
from tests.reference.storage.originals import (
    group_by_split,
    load_shipped_frames,
    make_original_records,
    write_authors_store,
    write_original,
)
from tests.reference.storage.test_bp_original import HydraGNNReader

# The keys that examples/multidataset_hpo_sc26/gfm_mlip_all_mpnn.py of HydraGNN requires.
REQUIRED_KEYS = (
    "pbc", "edge_attr", "energy_per_atom", "forces", "pos", "edge_index", "cell", "edge_shifts", "y",
    "chemical_composition", "natoms", "x", "energy", "graph_attr", "atomic_numbers",
)  # fmt: skip


@pytest.fixture(scope="module", params=["qm7x", "omat24"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    entry = find_source(request.param)
    path = tmp_path_factory.mktemp("store") / f"{entry.slug}.bp"
    convert(plan_conversion(entry, [], path, ConversionRules(), 1), lambda *_: None)
    return path


@pytest.fixture(scope="module")
def exported(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("theirs")
    assert main(["convert", store.stem, str(store), "--for", "hydragnn", "--to", str(folder), "-q"]) == 0
    assert os.listdir(folder) == [f"{find_source(store.stem).head}-v2.bp"]
    return next(folder.iterdir())


def compute_total_energy(record: Sample, coefficients: np.ndarray) -> float:
    return float(record["energy"][0] + record["chemical_composition"][:, 0] @ coefficients)


def test_hydragnn_reader_finds_the_required_keys_and_the_same_values(store: Path, exported: Path) -> None:
    with BPFile(store) as file:
        for label in SPLITS:
            reader = HydraGNNReader(exported, label)
            coefficients = reader.stream.read_attribute("energy_linear_regression_coeff")
            assert reader.name == store.stem
            assert set(REQUIRED_KEYS) <= set(reader.keys)
            assert coefficients.shape == (118,)
            assert reader.stream.read_attribute("pna_deg").dtype == np.int64
            assert reader.ndata == file.count_samples(label)
            for k in range(0, reader.ndata, 1 + reader.ndata // 20):
                expected = file.read_sample(label, k)
                if not (reader.count["edge_index"][k] and reader.count["edge_attr"][k]):
                    continue
                result = reader.get(k)
                assert compute_total_energy(result, coefficients) == pytest.approx(expected["energy"][0], rel=1e-12)
                assert result["energy_per_atom"][0] == pytest.approx(expected["energy"][0] / expected["natoms"][0])
                assert result["y"] == result["energy"]
                assert all(np.array_equal(result[key], expected[key]) for key in ("pos", "forces", "cell", "pbc"))
            reader.stream.close()


def test_each_atom_receives_edges_from_its_twenty_nearest_neighbours(exported: Path) -> None:
    with BPFile(exported) as file:
        degrees = np.zeros(21, dtype=np.int64)
        for k in range(file.count_samples("trainset")):
            record = file.read_sample("trainset", k)
            (row, col), pos, n = record["edge_index"], record["pos"], int(record["natoms"][0])
            distances = np.linalg.norm(pos[col] - pos[row] + record["edge_shifts"], axis=1)
            assert np.allclose(distances, record["edge_attr"][:, 0], atol=1e-9)
            degrees += np.bincount(np.bincount(col, minlength=n), minlength=21)
            if k % 50 == 0:
                expected = compute_nearest_distances(record)
                result = [np.sort(distances[col == atom]) for atom in range(n)]
                assert all(np.allclose(a, b, atol=1e-9) for a, b in zip(result, expected, strict=True))
        assert file.attributes["pna_deg"].tolist() == np.trim_zeros(degrees, "b").tolist()


def compute_nearest_distances(record: Sample) -> list[np.ndarray]:
    """Return the twenty smallest distances below 5 angstrom, over all images."""
    multiples = [0]
    if record["pbc"].any():
        heights = 1.0 / np.linalg.norm(np.linalg.inv(record["cell"]), axis=0)
        multiples = list(range(-int(np.ceil(5 / heights.min())) - 1, int(np.ceil(5 / heights.min())) + 2))
    images = np.array([(a, b, c) for a in multiples for b in multiples for c in multiples]) @ record["cell"]
    result = []
    for center in record["pos"]:
        distances = np.linalg.norm(record["pos"][:, None] + images[None] - center, axis=2).reshape(-1)
        result.append(np.sort(distances[(distances < 5.0) & (distances > 1e-6)])[:20])
    return result


def test_export_round_trips(store: Path, exported: Path) -> None:
    neighbour_spec = NeighbourSpec(5.0, 20)
    for split in SPLITS:
        opened = [open_dataset(path, neighbour_spec, "preload", split=split) for path in (store, exported)]
        count = len(opened[0].samples)
        assert len(opened[1].samples) == count
        selected = np.unique(np.linspace(0, count - 1, 200).astype(np.int64))
        indices = SampleIndices(np.zeros_like(selected), selected)
        for a, b in zip(
            *(DatasetCollection([dataset], neighbour_spec).load_graphs(indices) for dataset in opened), strict=True
        ):
            assert b.structure.energy == pytest.approx(a.structure.energy, rel=1e-12)
            for name in ("numbers", "positions", "forces", "cell"):
                assert np.array_equal(getattr(a.structure, name), getattr(b.structure, name))
            assert (a.structure.charge, a.structure.periodic) == (b.structure.charge, b.structure.periodic)
            assert np.array_equal(a.receiver, b.receiver)
        assert (opened[0].data_origin, opened[0].level) == (opened[1].data_origin, opened[1].level)


def test_regression_is_fitted_to_total_energies_of_all_splits(tmp_path: Path) -> None:
    frames = load_shipped_frames()
    assert main(["convert", "qm7x", "--for", "hydragnn", "--to", str(tmp_path), "-q"]) == 0
    assert os.listdir(tmp_path) == ["QM7X-v2.bp"]
    with BPFile(tmp_path / "QM7X-v2.bp") as file:
        blocks = [file.columns(s, 0, file.count_samples(s)).columns for s in SPLITS]
    residuals = np.concatenate([columns["energy"].values for columns in blocks])
    composition = np.concatenate([columns["chemical_composition"].values.reshape(-1, 118) for columns in blocks])
    assert len(residuals) == len(frames)
    assert np.abs(composition.T @ residuals).max() < 1e-6 * np.abs(frames.energy).max()


def test_export_of_a_hydragnn_store_keeps_only_usable_structures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frames = load_shipped_frames()
    splits = group_by_split(frames, make_original_records(frames, frames.energy))
    splits["trainset"][3]["pos"][0, 0] = np.nan
    origin = write_original(tmp_path / "QM7X-v1.bp", splits, dataset_name="qm7x")
    arguments = ["convert", "qm7x", str(origin), "--for", "hydragnn", "--to", str(tmp_path), "-q"]
    assert main(arguments) == 2
    assert f"`harness data convert qm7x {origin}`" in capsys.readouterr().err
    assert main(["convert", "qm7x", str(origin), "-q"]) == 0
    assert main(arguments) == 0
    assert "192 structures (179 trainset, 10 valset, 3 testset)" in capsys.readouterr().out
    assert main(arguments) == 2
    assert "there is a store of this name already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--cutoff", "6"], "--cutoff 6: HydraGNN's stores have 5"),
        (["--max-neighbours", "12"], "--max-neighbours 12: HydraGNN's stores have 20"),
        (["--for", "mace"], "invalid choice"),
    ],
)
def test_other_conversion_rules_are_rejected(
    tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", "qm7x", "--for", "hydragnn", "--to", str(tmp_path), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_store_of_another_dataset_or_without_a_split_is_refused(
    tmp_path: Path, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", "oc25", str(store), "--for", "hydragnn", "--to", str(tmp_path)]) == 2
    assert f"its dataset_name is {store.stem!r}, not oc25" in capsys.readouterr().err
    path = write_authors_store(tmp_path / "QM7X-v2.bp")
    assert main(["convert", "qm7x", str(path), "-q"]) == 0
    shutil.rmtree(path)
    frames = load_shipped_frames()
    splits = group_by_split(frames, make_original_records(frames, frames.energy))
    del splits["testset"]
    write_original(path, splits, dataset_name="qm7x")
    Path(f"{path}.harness.json").unlink()
    assert main(["convert", "qm7x", str(path), "-q"]) == 0
    assert main(["convert", "qm7x", str(path), "--for", "hydragnn", "--to", str(tmp_path / "new")]) == 2
    assert "has no testset; HydraGNN needs" in capsys.readouterr().err
