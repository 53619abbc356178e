"""Stores of HydraGNN are checked, converted in place, and read for training with total energies."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.reference.data.structure_table import StructureTable
from harness.reference.datasets.__main__ import main
from harness.reference.datasets.collection import (
    Dataset,
    DatasetCollection,
    NeighbourSpec,
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
from harness.reference.storage.schema import Record
from tests.reference.storage.originals import (
    apply_regression,
    digest,
    fit_regression,
    group_by_split,
    original_records,
    shipped_frames,
    write_authors_store,
    write_original,
)

REACH = NeighbourSpec(5.0, 20)
FRAMES = shipped_frames()


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return write_authors_store(tmp_path / "QM7X-v2.bp")


def run(capsys: pytest.CaptureFixture[str], *words: object, code: int = 0) -> str:
    capsys.readouterr()
    assert main([*map(str, words), *(["-q"] if words[0] != "stats" else [])]) == code
    printed = capsys.readouterr()
    assert code != 2 or printed.err.count("\n") == 1
    return printed.err if code == 2 else printed.out


def frames_of_split(split: str) -> StructureTable:
    return FRAMES[assign_by_name(FRAMES.groups) == SPLITS.index(split)]


def iterate_graphs(dataset: Dataset) -> Iterator[Any]:
    count = len(dataset.samples)
    return iter(
        DatasetCollection([dataset], REACH).load_graphs(
            SampleIndices(np.zeros(count, dtype=np.int64), np.arange(count))
        )
    )


def assert_store_holds(path: Path, split: str = "trainset", mode: ReadMode = "on_demand", *, error: float) -> None:
    """Check that the store's samples are the structures, with total energies."""
    dataset = open_dataset(path, REACH, mode, split=split)
    expected = frames_of_split(split)
    assert len(dataset.samples) == len(expected)
    assert (dataset.name, dataset.head) == ("qm7x", 14)
    for graph, structure in zip(iterate_graphs(dataset), expected.structures(), strict=True):
        assert np.array_equal(graph.structure.numbers, structure.numbers)
        assert np.allclose(graph.structure.positions, structure.positions, rtol=0, atol=1e-5)
        assert np.allclose(graph.structure.forces, structure.forces, rtol=1e-6, atol=1e-6)
        assert graph.structure.energy == pytest.approx(structure.energy, rel=error)
    dataset.samples.close()


@pytest.mark.parametrize("mode", ["on_demand", "preload", "shared", "distributed"])
def test_conversion_leaves_the_store_as_it_is_and_training_reads_total_energies(
    store: Path, mode: ReadMode, capsys: pytest.CaptureFixture[str]
) -> None:
    before = digest(store)
    message = run(capsys, "convert", "QM7X", store)
    assert "193 structures of qm7x can be used for training in place" in message
    assert "residuals of a linear regression, which is added again" in message
    assert digest(store) == before
    assert find_stores(store.parent) == [store]
    for split in SPLITS:
        assert_store_holds(store, split, mode, error=1e-9)


def test_a_store_is_checked_and_summarised_by_split(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = run(capsys, "check", store)
    assert "193 structures as HydraGNN stores them; nothing is wrong" in message
    for split in SPLITS:
        assert f"  {split}: {len(frames_of_split(split)):,} structures of " in message
    assert sorted(path.name for path in store.parent.iterdir()) == ["QM7X-v2.bp"]
    run(capsys, "convert", "qm7x", store)
    assert "nothing is wrong" in run(capsys, "check", store)
    assert "qm7x (official, PBE0+MBD (FHI-aims)): 193 structures of 3 to 14 atoms" in run(capsys, "stats", store)


def test_without_conversion_one_line_says_what_to_run(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = f"`harness data convert qm7x {store}`"
    assert command in run(capsys, "stats", store, code=2)
    with pytest.raises(InputError, match=r"has no harness\.json") as caught:
        open_dataset(store, REACH, "on_demand")
    assert command in str(caught.value)
    assert "\n" not in str(caught.value)


def test_energies_without_a_regression_are_total(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = original_records(FRAMES, FRAMES.energy)
    path = write_original(tmp_path / "QM7X.bp", group_by_split(FRAMES, records), dataset_name="qm7x")
    assert "no linear regression: energies are total" in run(capsys, "convert", "qm7x", path)
    assert_store_holds(path, error=1e-7)


def test_a_regression_of_energies_per_atom_leaves_total_energies(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """NAME-v3.bp: what is subtracted there is subtracted from energy_per_atom alone."""
    path = tmp_path / "QM7X-v3.bp"
    records = original_records(FRAMES, FRAMES.energy)
    coefficients = fit_regression(FRAMES, per_atom=True)
    write_original(
        path, group_by_split(FRAMES, records), energy_linear_regression_coeff=coefficients, dataset_name="qm7x"
    )
    assert "energies are total, as they are stored" in run(capsys, "convert", "qm7x", path)
    assert_store_holds(path, error=1e-7)


def test_references_are_the_regression(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, "convert", "qm7x", store)
    dataset = open_dataset(store, REACH, "on_demand")
    coefficients = fit_regression(FRAMES)
    present = np.unique(FRAMES.numbers)
    assert np.array_equal(dataset.references.energy_ev[present], coefficients[present - 1])
    train = frames_of_split("trainset")
    rest = (train.energy - apply_regression(train, coefficients)) / train.sizes
    assert dataset.references.rmse_ev_per_atom == pytest.approx(np.sqrt((rest**2).mean()), rel=1e-5)
    dataset.samples.close()


def test_coefficients_of_absent_elements_may_be_anything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    coefficients = fit_regression(FRAMES)
    coefficients[[1, 117]] = np.nan, 1e300
    path = write_authors_store(tmp_path / "QM7X-v2.bp", energy_linear_regression_coeff=coefficients)
    run(capsys, "convert", "qm7x", path)
    assert_store_holds(path, error=1e-9)
    coefficients[0] = np.nan
    path = write_authors_store(tmp_path / "qm7x-v2.bp", energy_linear_regression_coeff=coefficients)
    assert "of element 1 is nan" in run(capsys, "convert", "qm7x", path, code=2)


def test_shapes_of_other_converters_are_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of QM7X: an energy in two dimensions and more columns in x; of QCML: integers as atomic numbers."""
    records = original_records(FRAMES, FRAMES.energy)
    for record in records:
        record["energy"] = record["energy"][None]
        record["x"] = np.concatenate([record["x"], record["x"][:, :3]], axis=1)
        record["atomic_numbers"] = record["atomic_numbers"].astype(np.int32)
    path = write_original(tmp_path / "QM7X.bp", group_by_split(FRAMES, records), dataset_name="qm7x")
    run(capsys, "convert", "qm7x", path)
    assert_store_holds(path, error=1e-7)


def test_structures_of_one_size_are_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All arrays then follow along their first axis, edge_index among them."""
    frames = FRAMES[FRAMES.sizes == 9][np.arange(4)]
    records = original_records(frames, frames.energy)
    for record in records:
        edges = min(r["edge_index"].shape[1] for r in records)
        record["edge_index"] = record["edge_index"][:, :edges]
        record["edge_attr"], record["edge_shifts"] = record["edge_attr"][:edges], record["edge_shifts"][:edges]
    path = write_original(tmp_path / "a.bp", {"trainset": records}, dataset_name="qm7x")
    assert f"4 structures of 9 to 9 atoms, {4 * edges} edges" in run(capsys, "check", path)
    run(capsys, "convert", "qm7x", path)
    dataset = open_dataset(path, REACH, "preload")
    assert [g.structure.energy for g in iterate_graphs(dataset)] == pytest.approx(frames.energy.tolist(), rel=1e-7)


def test_a_store_without_a_test_set_is_trained_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As the original makes that of OMat24."""
    splits = group_by_split(FRAMES, original_records(FRAMES, FRAMES.energy))
    del splits["testset"]
    path = write_original(tmp_path / "QM7X-v2.bp", splits, dataset_name="qm7x")
    run(capsys, "convert", "qm7x", path)
    assert list_splits(path) == ("trainset", "valset")
    assert_store_holds(path, "valset", error=1e-7)


def spoil_edge(record: Record) -> None:
    record["edge_index"][0, 0] = len(record["pos"])


def set_value(key: str, value: float) -> Callable[[Record], None]:
    def spoil(record: Record) -> None:
        record[key].reshape(-1)[0] = value

    return spoil


SPOILT = {
    "edges": spoil_edge,
    "natoms": set_value("natoms", 1),
    "atomic number": set_value("atomic_numbers", 119),
    "not finite": set_value("pos", np.nan),
    "unlabelled": set_value("energy", np.nan),
    "energy": set_value("energy", 1e9),
    "force norm": set_value("forces", 2000),
}


@pytest.mark.parametrize("kind", SPOILT)
def test_structures_at_fault_are_counted_and_left_out(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    coefficients = fit_regression(FRAMES)
    records = original_records(FRAMES, FRAMES.energy - apply_regression(FRAMES, coefficients))
    splits = group_by_split(FRAMES, records)
    for k in (0, 7):
        SPOILT[kind](splits["trainset"][k])
    path = tmp_path / "QM7X-v2.bp"
    write_original(path, splits, dataset_name="qm7x", energy_linear_regression_coeff=coefficients)
    message = run(capsys, "check", path, code=1)
    assert f"cannot be used: 2 {kind}" in message
    assert "trainset/7: " in message
    assert "2 left out" in run(capsys, "convert", "qm7x", path)
    dataset = open_dataset(path, REACH, "preload")
    whole = frames_of_split("trainset")
    expected = whole.energy[np.delete(np.arange(len(whole)), [0, 7])]
    assert [g.structure.energy for g in iterate_graphs(dataset)] == pytest.approx(expected.tolist(), rel=1e-9)
    with pytest.raises(InputError, match=r"there are samples 0\.\.\d+, not"):
        dataset.samples.get([len(expected)])


def test_a_store_that_is_mostly_at_fault_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    splits = group_by_split(FRAMES, original_records(FRAMES, FRAMES.energy))
    for record in splits["trainset"][::2]:
        spoil_edge(record)
    path = write_original(tmp_path / "QM7X-v2.bp", splits, dataset_name="qm7x")
    message = run(capsys, "convert", "qm7x", path, code=2)
    assert "of 193 structures cannot be used: 90 edges" in message
    assert sorted(p.name for p in tmp_path.iterdir()) == ["QM7X-v2.bp"]


def test_energies_in_other_units_are_noted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The original stores those of QCML in hartree, as they come."""
    records = original_records(FRAMES, FRAMES.energy / 27.2)
    path = write_original(tmp_path / "QM7X.bp", group_by_split(FRAMES, records), dataset_name="qm7x")
    message = run(capsys, "convert", "qm7x", path)
    assert "unusual: 193 energies unlike PBE0+MBD (FHI-aims)" in message
    assert "hartree taken for eV" in message


def test_the_name_must_be_that_of_the_store(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = run(capsys, "convert", "ani1x", store, code=2)
    assert f"`harness data convert qm7x {store}`" in message
    for option in (["--cutoff", "5"], ["--strict"]):
        assert "converted in place" in run(capsys, "convert", "qm7x", store, *option, code=2)


def test_a_store_is_linked_in_the_folder_that_is_named(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(store.parent.iterdir())
    run(capsys, "convert", "qm7x", store, "--to", store.parent / "mine")
    assert sorted(store.parent.iterdir()) == sorted([*before, store.parent / "mine"])
    [link] = find_stores(store.parent / "mine")
    assert link.is_symlink()
    assert_store_holds(link, error=1e-9)


def test_damage_after_the_conversion_is_refused(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, "convert", "qm7x", store)
    data = bytearray((store / "data.0").read_bytes())
    with BPFile(store) as file:
        place = data.index(file.record("trainset", 50, ["pos"])["pos"].tobytes())
    data[place] ^= 1
    (store / "data.0").write_bytes(data)
    dataset = open_dataset(store, REACH, "on_demand")
    with pytest.raises(InputError, match=r"trainset/pos is not as it was written in block"):
        dataset.samples.get([50])
    assert "trainset/pos is not as it was written" in run(capsys, "check", store, code=2)


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
def test_facts_that_make_no_sense_are_refused_in_one_line(
    store: Path, change: Callable[[Any], None], capsys: pytest.CaptureFixture[str]
) -> None:
    import zlib

    run(capsys, "convert", "qm7x", store)
    seal = store.with_name("QM7X-v2.bp.harness.json")
    content = json.loads(seal.read_text())["content"]
    change(content["facts"])
    checksum = zlib.crc32(json.dumps(content, sort_keys=True).encode())
    seal.write_text(json.dumps({"content": content, "crc32": checksum}))
    assert str(store) in run(capsys, "stats", store, code=2)
    with pytest.raises(InputError) as caught:
        open_dataset(store, REACH, "preload")
    assert "\n" not in str(caught.value)


def test_damaged_metadata_of_a_store_without_a_seal_are_refused(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """ADIOS2 crashes on some of them."""
    whole = (store / "md.0").read_bytes()
    rng = np.random.default_rng(1)
    for _ in range(12):
        garbled = bytearray(whole)
        for place in rng.integers(0, len(whole), 40):
            garbled[place] = rng.integers(256)
        (store / "md.0").write_bytes(garbled)
        capsys.readouterr()
        assert main(["check", str(store), "-q"]) in (1, 2)
        assert "Traceback" not in capsys.readouterr().err


def test_a_store_of_an_older_version_gets_checksums_where_it_lies(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(capsys, "convert", "transition1x", "--to", tmp_path)
    path = tmp_path / "transition1x.bp"
    (path / SUMS).unlink()
    files = {f.name: f for f in path.iterdir() if f.name != SEAL}
    seal = {
        "bytes": {name: f.stat().st_size for name, f in files.items()},
        "crc32": {name: zlib.crc32(f.read_bytes()) for name, f in files.items() if name.startswith("m")},
    }
    (path / SEAL).write_text(json.dumps(seal))
    assert f"`harness data convert DATASET {path}`" in run(capsys, "check", path, code=2)
    assert "not qm7x" in run(capsys, "convert", "qm7x", path, code=2)
    assert "have been added" in run(capsys, "convert", "transition1x", path)
    assert "nothing is wrong" in run(capsys, "check", path)
    (path / SEAL).write_text(json.dumps(seal | {"bytes": seal["bytes"] | {"data.0": 1}}))
    assert "damaged, 'data.0' has" in run(capsys, "convert", "transition1x", path, code=2)
