"""Stores of HydraGNN are checked, converted in place, and read for training with total energies."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.reference.data.neighbours import NeighbourSpec
from harness.reference.data.structure_table import StructureTable
from harness.reference.datasets.__main__ import main
from harness.reference.datasets.collection import (
    Dataset,
    DatasetCollection,
    find_stores,
    list_splits,
    open_dataset,
)
from harness.reference.datasets.splits import SPLITS, assign_by_name
from harness.reference.errors import InputError
from harness.reference.storage.adios.integrity import SEAL, SUMS
from harness.reference.storage.adios.reader import BPFile
from harness.reference.storage.open import ReadMode
from harness.reference.storage.sampling.sampler import SampleIndices
from harness.reference.storage.schema import Sample
from tests.reference.storage.originals import (
    apply_regression,
    fit_regression,
    group_by_split,
    hash_folder,
    load_shipped_frames,
    make_original_records,
    write_authors_store,
    write_original,
)

NEIGHBOUR_SPEC = NeighbourSpec(5.0, 20)
FRAMES = load_shipped_frames()


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return write_authors_store(tmp_path / "QM7X-v2.bp")


def run_command(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> str:
    capsys.readouterr()
    assert main([*map(str, arguments), *(["-q"] if arguments[0] != "stats" else [])]) == code
    output = capsys.readouterr()
    assert code != 2 or output.err.count("\n") == 1
    return output.err if code == 2 else output.out


def select_split(split: str) -> StructureTable:
    return FRAMES[assign_by_name(FRAMES.groups) == SPLITS.index(split)]


def iterate_graphs(dataset: Dataset) -> Iterator[Any]:
    count = len(dataset.samples)
    return iter(
        DatasetCollection([dataset], NEIGHBOUR_SPEC).load_graphs(
            SampleIndices(np.zeros(count, dtype=np.int64), np.arange(count))
        )
    )


def assert_store_holds(path: Path, split: str = "trainset", mode: ReadMode = "on_demand", *, error: float) -> None:
    """Check that the samples of a split match the structures and have total energies."""
    dataset = open_dataset(path, NEIGHBOUR_SPEC, mode, split=split)
    expected = select_split(split)
    assert len(dataset.samples) == len(expected)
    assert (dataset.name, dataset.head) == ("qm7x", 14)
    for graph, structure in zip(iterate_graphs(dataset), expected.structures(), strict=True):
        assert np.array_equal(graph.structure.numbers, structure.numbers)
        assert np.allclose(graph.structure.positions, structure.positions, rtol=0, atol=1e-5)
        assert np.allclose(graph.structure.forces, structure.forces, rtol=1e-6, atol=1e-6)
        assert graph.structure.energy == pytest.approx(structure.energy, rel=error)
    dataset.samples.close()


@pytest.mark.parametrize("mode", ["on_demand", "preload", "shared", "distributed"])
def test_conversion_does_not_change_the_store_and_training_reads_total_energies(
    store: Path, mode: ReadMode, capsys: pytest.CaptureFixture[str]
) -> None:
    before = hash_folder(store)
    message = run_command(capsys, "convert", "QM7X", store)
    assert "193 structures of qm7x can be used for training in place" in message
    assert "residuals of a linear regression, which is added again" in message
    assert hash_folder(store) == before
    assert find_stores(store.parent) == [store]
    for split in SPLITS:
        assert_store_holds(store, split, mode, error=1e-9)


def test_a_store_is_checked_and_summarised_by_split(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = run_command(capsys, "check", store)
    assert "193 structures as HydraGNN stores them; nothing is wrong" in message
    for split in SPLITS:
        assert f"  {split}: {len(select_split(split)):,} structures of " in message
    assert sorted(path.name for path in store.parent.iterdir()) == ["QM7X-v2.bp"]
    run_command(capsys, "convert", "qm7x", store)
    assert "nothing is wrong" in run_command(capsys, "check", store)
    assert "qm7x (official, PBE0+MBD (FHI-aims)): 193 structures of 3 to 14 atoms" in run_command(
        capsys, "stats", store
    )


def test_unconverted_store_is_refused_with_the_command_to_run(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = f"`harness data convert qm7x {store}`"
    assert command in run_command(capsys, "stats", store, code=2)
    with pytest.raises(InputError, match=r"has no harness\.json") as caught:
        open_dataset(store, NEIGHBOUR_SPEC, "on_demand")
    assert command in str(caught.value)
    assert "\n" not in str(caught.value)


def test_energies_without_a_regression_are_total(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = make_original_records(FRAMES, FRAMES.energy)
    path = write_original(tmp_path / "QM7X.bp", group_by_split(FRAMES, records), dataset_name="qm7x")
    assert "no linear regression: energies are total" in run_command(capsys, "convert", "qm7x", path)
    assert_store_holds(path, error=1e-7)


def test_a_regression_of_energies_per_atom_leaves_total_energies(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stores named NAME-v3.bp have the regression subtracted only from energy_per_atom."""
    path = tmp_path / "QM7X-v3.bp"
    records = make_original_records(FRAMES, FRAMES.energy)
    coefficients = fit_regression(FRAMES, per_atom=True)
    write_original(
        path, group_by_split(FRAMES, records), energy_linear_regression_coeff=coefficients, dataset_name="qm7x"
    )
    assert "energies are total, as they are stored" in run_command(capsys, "convert", "qm7x", path)
    assert_store_holds(path, error=1e-7)


def test_reference_energies_are_the_coefficients_of_the_regression(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_command(capsys, "convert", "qm7x", store)
    dataset = open_dataset(store, NEIGHBOUR_SPEC, "on_demand")
    coefficients = fit_regression(FRAMES)
    present = np.unique(FRAMES.numbers)
    assert np.array_equal(dataset.references.energy_ev[present], coefficients[present - 1])
    train = select_split("trainset")
    residuals = (train.energy - apply_regression(train, coefficients)) / train.sizes
    assert dataset.references.rmse_ev_per_atom == pytest.approx(np.sqrt((residuals**2).mean()), rel=1e-5)
    dataset.samples.close()


def test_coefficients_of_absent_elements_may_be_anything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    coefficients = fit_regression(FRAMES)
    coefficients[[1, 117]] = np.nan, 1e300
    path = write_authors_store(tmp_path / "QM7X-v2.bp", energy_linear_regression_coeff=coefficients)
    run_command(capsys, "convert", "qm7x", path)
    assert_store_holds(path, error=1e-9)
    coefficients[0] = np.nan
    path = write_authors_store(tmp_path / "qm7x-v2.bp", energy_linear_regression_coeff=coefficients)
    assert "of element 1 is nan" in run_command(capsys, "convert", "qm7x", path, code=2)


def test_shapes_of_other_converters_are_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """QM7X has two-dimensional energies and more columns in x; QCML has integer atomic numbers."""
    records = make_original_records(FRAMES, FRAMES.energy)
    for record in records:
        record["energy"] = record["energy"][None]
        record["x"] = np.concatenate([record["x"], record["x"][:, :3]], axis=1)
        record["atomic_numbers"] = record["atomic_numbers"].astype(np.int32)
    path = write_original(tmp_path / "QM7X.bp", group_by_split(FRAMES, records), dataset_name="qm7x")
    run_command(capsys, "convert", "qm7x", path)
    assert_store_holds(path, error=1e-7)


def test_structures_of_one_size_are_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All arrays, even edge_index, are then concatenated along their first axis."""
    frames = FRAMES[FRAMES.sizes == 9][np.arange(4)]
    records = make_original_records(frames, frames.energy)
    for record in records:
        edges = min(r["edge_index"].shape[1] for r in records)
        record["edge_index"] = record["edge_index"][:, :edges]
        record["edge_attr"], record["edge_shifts"] = record["edge_attr"][:edges], record["edge_shifts"][:edges]
    path = write_original(tmp_path / "a.bp", {"trainset": records}, dataset_name="qm7x")
    assert f"4 structures of 9 to 9 atoms, {4 * edges} edges" in run_command(capsys, "check", path)
    run_command(capsys, "convert", "qm7x", path)
    dataset = open_dataset(path, NEIGHBOUR_SPEC, "preload")
    assert [g.structure.energy for g in iterate_graphs(dataset)] == pytest.approx(frames.energy.tolist(), rel=1e-7)


def test_a_store_without_a_test_set_is_trained_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """HydraGNN writes such a store for OMat24."""
    splits = group_by_split(FRAMES, make_original_records(FRAMES, FRAMES.energy))
    del splits["testset"]
    path = write_original(tmp_path / "QM7X-v2.bp", splits, dataset_name="qm7x")
    run_command(capsys, "convert", "qm7x", path)
    assert list_splits(path) == ("trainset", "valset")
    assert_store_holds(path, "valset", error=1e-7)


def corrupt_edge(record: Sample) -> None:
    record["edge_index"][0, 0] = len(record["pos"])


def set_value(key: str, value: float) -> Callable[[Sample], None]:
    def corrupt(record: Sample) -> None:
        record[key].reshape(-1)[0] = value

    return corrupt


CORRUPTIONS = {
    "edges": corrupt_edge,
    "natoms": set_value("natoms", 1),
    "atomic number": set_value("atomic_numbers", 119),
    "not finite": set_value("pos", np.nan),
    "unlabelled": set_value("energy", np.nan),
    "energy": set_value("energy", 1e9),
    "force norm": set_value("forces", 2000),
}


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_faulty_structures_are_counted_and_left_out(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    coefficients = fit_regression(FRAMES)
    records = make_original_records(FRAMES, FRAMES.energy - apply_regression(FRAMES, coefficients))
    splits = group_by_split(FRAMES, records)
    for k in (0, 7):
        CORRUPTIONS[kind](splits["trainset"][k])
    path = tmp_path / "QM7X-v2.bp"
    write_original(path, splits, dataset_name="qm7x", energy_linear_regression_coeff=coefficients)
    message = run_command(capsys, "check", path, code=1)
    assert f"cannot be used: 2 {kind}" in message
    assert "trainset/7: " in message
    assert "2 left out" in run_command(capsys, "convert", "qm7x", path)
    dataset = open_dataset(path, NEIGHBOUR_SPEC, "preload")
    intact = select_split("trainset")
    expected = intact.energy[np.delete(np.arange(len(intact)), [0, 7])]
    assert [g.structure.energy for g in iterate_graphs(dataset)] == pytest.approx(expected.tolist(), rel=1e-9)
    with pytest.raises(InputError, match=r"expected sample indices 0\.\.\d+, got"):
        dataset.samples.get([len(expected)])


def test_store_with_too_many_faulty_structures_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    splits = group_by_split(FRAMES, make_original_records(FRAMES, FRAMES.energy))
    for record in splits["trainset"][::2]:
        corrupt_edge(record)
    path = write_original(tmp_path / "QM7X-v2.bp", splits, dataset_name="qm7x")
    message = run_command(capsys, "convert", "qm7x", path, code=2)
    assert "of 193 structures cannot be used: 90 edges" in message
    assert sorted(p.name for p in tmp_path.iterdir()) == ["QM7X-v2.bp"]


def test_energies_in_other_units_are_noted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """HydraGNN stores the energies of QCML in hartree, without conversion."""
    records = make_original_records(FRAMES, FRAMES.energy / 27.2)
    path = write_original(tmp_path / "QM7X.bp", group_by_split(FRAMES, records), dataset_name="qm7x")
    message = run_command(capsys, "convert", "qm7x", path)
    assert "unusual: 193 energies unlike PBE0+MBD (FHI-aims)" in message
    assert "hartree taken for eV" in message


def test_dataset_must_match_the_store(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = run_command(capsys, "convert", "ani1x", store, code=2)
    assert f"`harness data convert qm7x {store}`" in message
    for option in (["--cutoff", "5"], ["--strict"]):
        assert "converted in place" in run_command(capsys, "convert", "qm7x", store, *option, code=2)


def test_store_is_linked_in_the_requested_folder(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(store.parent.iterdir())
    run_command(capsys, "convert", "qm7x", store, "--to", store.parent / "mine")
    assert sorted(store.parent.iterdir()) == sorted([*before, store.parent / "mine"])
    [link] = find_stores(store.parent / "mine")
    assert link.is_symlink()
    assert_store_holds(link, error=1e-9)


def test_damage_after_the_conversion_is_refused(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_command(capsys, "convert", "qm7x", store)
    data = bytearray((store / "data.0").read_bytes())
    with BPFile(store) as file:
        position = data.index(file.read_sample("trainset", 50, ["pos"])["pos"].tobytes())
    data[position] ^= 1
    (store / "data.0").write_bytes(data)
    dataset = open_dataset(store, NEIGHBOUR_SPEC, "on_demand")
    with pytest.raises(InputError, match=r"trainset/pos is not as it was written in block"):
        dataset.samples.get([50])
    assert "trainset/pos is not as it was written" in run_command(capsys, "check", store, code=2)


@pytest.mark.parametrize(
    "change",
    [
        lambda facts: facts.clear(),
        lambda facts: facts.update(about=3),
        lambda facts: facts["about"].update(slug="none"),
        lambda facts: facts.update(energies="other"),
        lambda facts: facts["references"].update(energy_ev=[1]),
        lambda facts: facts["references"]["energy_ev"].update(Xx=1.0),
        lambda facts: facts.update(left_out_samples={"trainset": [10**12]}),
        lambda facts: facts.update(left_out_samples={"none": [1]}),
        lambda facts: facts.update(left_out_samples={"trainset": [3, 3]}),
    ],
)
def test_invalid_facts_are_refused_in_one_line(
    store: Path, change: Callable[[Any], None], capsys: pytest.CaptureFixture[str]
) -> None:
    import zlib

    run_command(capsys, "convert", "qm7x", store)
    seal = store.with_name("QM7X-v2.bp.harness.json")
    content = json.loads(seal.read_text())["content"]
    change(content["facts"])
    checksum = zlib.crc32(json.dumps(content, sort_keys=True).encode())
    seal.write_text(json.dumps({"content": content, "crc32": checksum}))
    assert str(store) in run_command(capsys, "stats", store, code=2)
    with pytest.raises(InputError) as caught:
        open_dataset(store, NEIGHBOUR_SPEC, "preload")
    assert "\n" not in str(caught.value)


def test_damaged_metadata_of_a_store_without_a_seal_are_refused(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """ADIOS2 crashes on some damaged metadata."""
    intact = (store / "md.0").read_bytes()
    rng = np.random.default_rng(1)
    for _ in range(12):
        damaged = bytearray(intact)
        for position in rng.integers(0, len(intact), 40):
            damaged[position] = rng.integers(256)
        (store / "md.0").write_bytes(damaged)
        capsys.readouterr()
        assert main(["check", str(store), "-q"]) in (1, 2)
        assert "Traceback" not in capsys.readouterr().err


def test_store_of_an_older_version_gets_checksums_in_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_command(capsys, "convert", "transition1x", "--to", tmp_path)
    path = tmp_path / "transition1x.bp"
    (path / SUMS).unlink()
    files = {f.name: f for f in path.iterdir() if f.name != SEAL}
    seal = {
        "bytes": {name: f.stat().st_size for name, f in files.items()},
        "crc32": {name: zlib.crc32(f.read_bytes()) for name, f in files.items() if name.startswith("m")},
    }
    (path / SEAL).write_text(json.dumps(seal))
    assert f"`harness data convert DATASET {path}`" in run_command(capsys, "check", path, code=2)
    assert "not qm7x" in run_command(capsys, "convert", "qm7x", path, code=2)
    assert "have been added" in run_command(capsys, "convert", "transition1x", path)
    assert "nothing is wrong" in run_command(capsys, "check", path)
    (path / SEAL).write_text(json.dumps(seal | {"bytes": seal["bytes"] | {"data.0": 1}}))
    assert "damaged, 'data.0' has" in run_command(capsys, "convert", "transition1x", path, code=2)
