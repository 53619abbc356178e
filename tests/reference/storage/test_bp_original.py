"""Files of HydraGNN are read, and the ADIOS2 calls of HydraGNN's reader read the files that are written here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import adios2
import numpy as np
import pytest

from harness.reference.storage.adios.reader import BPFile
from harness.reference.storage.open import open_samples
from harness.reference.storage.schema import Sample
from tests.reference.storage.examples import make_example_block, write
from tests.reference.storage.originals import write_original


def make_original_samples(count: int, *, same_size: bool = False) -> list[Sample]:
    """Return samples in single precision, with integers for booleans, and only the keys that HydraGNN writes."""
    rng = np.random.default_rng(1)
    samples = []
    for k in range(count):
        n, e = (3, 4) if same_size else (2 + k % 4, 1 + k % 5)
        numbers, pos, forces = rng.integers(1, 9, (n, 1)), rng.normal(size=(n, 3)), rng.normal(size=(n, 3))
        samples.append(
            {
                "natoms": np.array([n], np.int32),
                "pos": pos.astype(np.float32),
                "cell": np.eye(3, dtype=np.float32),
                "pbc": np.zeros(3, np.int32),
                "edge_index": rng.integers(0, n, (2, e)),
                "edge_attr": rng.random((e, 1)).astype(np.float32),
                "atomic_numbers": numbers.astype(np.float32),
                "chemical_composition": rng.integers(0, 2, (118, 1)).astype(np.float32),
                "x": np.concatenate([numbers, pos, forces], axis=1).astype(np.float32),
                "energy": rng.normal(size=1).astype(np.float32),
                "forces": forces.astype(np.float32),
                "graph_attr": np.array([0, 1], np.float32),
                "y": rng.normal(size=1).astype(np.float32),
            }
        )
    return samples


@pytest.mark.parametrize("same_size", [False, True], ids=["different sizes", "same size"])
def test_files_of_hydragnn_are_read(tmp_path: Path, same_size: bool) -> None:
    """If all samples have the same size, HydraGNN concatenates even edge_index along its first axis."""
    samples = make_original_samples(12, same_size=same_size)
    write_original(tmp_path / "a.bp", {"trainset": samples}, dataset_name="omol25", pna_deg=np.arange(4))
    with BPFile(tmp_path / "a.bp") as file:
        assert file.splits == ("trainset",)
        assert file.keys("trainset")
        assert file.attributes["dataset_name"] == "omol25"
        assert file.attributes["pna_deg"].tolist() == [0, 1, 2, 3]
    for mode in ("on_demand", "preload", "shared"):
        with open_samples(tmp_path / "a.bp", "trainset", mode) as opened:
            for result, expected in zip(opened.get(range(12)), samples, strict=True):
                assert result.keys() == expected.keys()
                assert all(np.array_equal(result[k], v) and result[k].dtype == v.dtype for k, v in expected.items())


class HydraGNNReader:
    """A reader with the ADIOS2 calls of HydraGNN's reader on rank 0."""

    def __init__(self, path: Path, label: str) -> None:
        self.label = label
        self.stream = adios2.Stream(str(path), "r")
        self.stream.__next__()
        self.vars = self.stream.available_variables()
        self.keys = self.stream.read_attribute_string(f"{label}/keys")
        self.ndata = self.stream.read_attribute(f"{label}/ndata").item()
        self.name: Any = self.stream.read_attribute_string("dataset_name")
        read = self.stream.read
        self.count = {k: read(f"{label}/{k}/variable_count") for k in self.keys}
        self.offset = {k: read(f"{label}/{k}/variable_offset") for k in self.keys}
        self.dim = {k: self.stream.read_attribute(f"{label}/{k}/variable_dim").item() for k in self.keys}

    def get(self, index: int) -> Sample:
        result = {}
        for k in self.keys:
            shape = [int(x.strip(",")) for x in self.vars[f"{self.label}/{k}"]["Shape"].strip().split()]
            start, axis = [0] * len(shape), self.dim[k]
            start[axis], shape[axis] = int(self.offset[k][index]), int(self.count[k][index])
            result[k] = self.stream.read(f"{self.label}/{k}", start, shape)
        return result


def test_hydragnn_reader_reads_written_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.reference.storage.adios.split.MIN_CHUNK_BYTES", 20_000)
    blocks = [make_example_block(30, seed, stress=True) for seed in range(4)]
    reader = HydraGNNReader(write(tmp_path / "a.bp", *blocks), "trainset")
    assert reader.ndata == 120
    assert reader.name == "qm9"
    assert "id" not in reader.keys
    assert not [k for k in reader.keys if reader.vars[f"trainset/{k}"]["Type"] not in ("double", "int64_t", "int32_t")]
    records = [r for block in blocks for r in block.iter_samples()]
    for k in [k for k, r in enumerate(records) if r["edge_index"].size][::9]:
        result = reader.get(k)
        assert all(np.array_equal(result[key], records[k][key]) for key in result)
    reader.stream.close()


def test_single_precision_files_have_the_types_of_hydragnn(tmp_path: Path) -> None:
    from harness.reference.storage.structure_codec import encode_table
    from tests.reference.storage.examples import add_random_edges, random_frames

    frames = random_frames(9)
    path = write(tmp_path / "a.bp", encode_table(add_random_edges(frames), dtype="float32"))
    expected = make_original_samples(1)[0]
    with BPFile(path) as file:
        result = file.read_sample("trainset", 8)
    assert {k: (result[k].dtype, result[k].ndim) for k in expected} == {
        k: (v.dtype, v.ndim) for k, v in expected.items()
    }
