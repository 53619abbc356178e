"""BP files round-trip bit for bit, and silent errors of ADIOS2 are caught."""

from __future__ import annotations

import multiprocessing
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from harness.reference.data.structure_table import StructureTable
from harness.reference.errors import InputError
from harness.reference.storage.adios.reader import BPFile
from harness.reference.storage.adios.writer import BPWriter
from harness.reference.storage.schema import Block, Column
from harness.reference.storage.structure_codec import encode_table
from tests.conftest import ROOT
from tests.reference.storage.examples import is_same_record, labelled_frames, make_example_block, random_frames, write


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("bp") / "qm9.bp", make_example_block(20), make_example_block(15, 1))


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(labelled_frames())
def test_tables_round_trip_exactly(frames: StructureTable) -> None:
    block = encode_table(frames)
    with tempfile.TemporaryDirectory() as folder, BPFile(write(Path(folder) / "a.bp", block)) as file:
        assert file.count_samples("trainset") == len(frames)
        for k, record in enumerate(block.iter_samples()):
            assert is_same_record(file.read_sample("trainset", k), record)
        assert all(map(is_same_record, file.columns("trainset", 0, len(frames)).iter_samples(), block.iter_samples()))
        file.verify()


def test_readers_leave_no_profile_on_the_machine(tmp_path: Path) -> None:
    name = f"{tmp_path.name}-profile.bp"
    with BPFile(write(tmp_path / name, make_example_block(5))) as file:
        file.verify()
    assert not list(Path("/tmp").glob(f"{name}*profiling.json"))


def test_blocks_of_several_splits_may_alternate(tmp_path: Path) -> None:
    blocks = [make_example_block(5, seed) for seed in range(6)]
    with BPWriter(tmp_path / "a.bp", {"dataset": "qm9"}) as writer:
        for k, block in enumerate(blocks):
            writer.split("valset" if k % 3 == 2 else "trainset").put(block)
    with BPFile(tmp_path / "a.bp") as file:
        assert file.splits == ("trainset", "valset")
        assert (file.count_samples("trainset"), file.count_samples("valset")) == (20, 10)
        assert is_same_record(file.read_sample("valset", 7), list(blocks[5].iter_samples())[2])
        assert is_same_record(file.read_sample("trainset", 19), list(blocks[4].iter_samples())[4])


def test_large_blocks_are_split_and_small_ones_merged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.reference.storage.adios.split.MIN_CHUNK_BYTES", 10_000)
    large = make_example_block(200)
    records = list(large.iter_samples())
    with BPFile(write(tmp_path / "a.bp", large, *large.pieces(1))) as file:
        for k in (0, 3, 7, 150, 199, 200, 333, 399):
            assert is_same_record(file.read_sample("trainset", k), records[k % 200])
        file.verify()


def test_attributes_round_trip(tmp_path: Path) -> None:
    facts = {
        "level": "PBE",
        "cutoff": 5.0,
        "max_neighbours": 20,
        "units": {"energy": "eV"},
        "words": ["a", "b"],
        "scales": [1.5, 2.5],
        "strict": True,
    }
    write(tmp_path / "a.bp", make_example_block(), **facts, absent=None, pna_deg=np.arange(3))
    with BPFile(tmp_path / "a.bp") as file:
        result = file.attributes
    assert {k: result[k] for k in facts if k != "scales"} == {k: v for k, v in facts.items() if k != "scales"}
    assert result["scales"].tolist() == [1.5, 2.5]
    assert result["pna_deg"].tolist() == [0, 1, 2]
    assert (result["dataset"], result["dataset_name"], result["complete"], result["format"]) == ("QM9", "qm9", 1, 1)
    assert result["total_ndata"] == 20
    assert "absent" not in result


def test_selections_are_independent(path: Path) -> None:
    with BPFile(path) as file:
        records = list(file.columns("trainset", 0, 35).iter_samples())
        for k in (34, 0, 12, 12, 33):
            assert is_same_record(file.read_sample("trainset", k), records[k])
            assert is_same_record(next(file.columns("trainset", k, k + 1).iter_samples()), records[k])


@pytest.mark.parametrize(
    "read",
    [
        lambda f: f.read_sample("trainset", 35),
        lambda f: f.read_sample("trainset", -1),
        lambda f: f.columns("trainset", 30, 36),
        lambda f: f.columns("trainset", -2, 2),
        lambda f: f.columns("trainset", 3, 3),
        lambda f: f.counts("trainset", "pos", 0, 36),
    ],
)
def test_out_of_range_is_an_error_and_not_zeros(path: Path, read: Callable[[BPFile], object]) -> None:
    with BPFile(path) as file, pytest.raises(InputError, match=r"trainset: expected sample indices 0..34, got"):
        read(file)


def test_unknown_names_are_reported(path: Path) -> None:
    with BPFile(path) as file:
        with pytest.raises(InputError, match="no split 'validation'; its splits are trainset"):
            file.count_samples("validation")
        with pytest.raises(InputError, match="has no 'charge'; its keys are"):
            file.read_sample("trainset", 0, ["charge"])


def test_noncontiguous_arrays_are_written_correctly(tmp_path: Path) -> None:
    values = np.arange(24.0).reshape(4, 6)
    block = Block(2, {"a": Column(values[:, ::2], 2), "b": Column(np.asfortranarray(values), 2)})
    with BPFile(write(tmp_path / "a.bp", block)) as file:
        assert np.array_equal(file.read_sample("trainset", 1)["a"], values[2:, ::2])
        assert np.array_equal(file.read_sample("trainset", 1)["b"], values[2:])


def test_samples_without_edges_are_read_and_splits_without_edges_refused(tmp_path: Path) -> None:
    block = make_example_block(20)
    without_edges = [k for k, r in enumerate(block.iter_samples()) if not r["edge_index"].size]
    with BPFile(write(tmp_path / "a.bp", block)) as file:
        assert without_edges
        assert file.read_sample("trainset", without_edges[0])["edge_index"].shape == (2, 0)
        assert file.read_sample("trainset", without_edges[0])["edge_attr"].shape == (0, 1)
    index = Column(np.zeros((2, 0), np.int64), np.zeros(2, np.int64), 1)
    with pytest.raises(InputError, match="trainset: edge_index has no rows in any sample"):
        write(tmp_path / "b.bp", Block(2, {"y": Column(np.zeros(2), 1), "edge_index": index}))
    assert not list(tmp_path.glob("b.bp*"))


def test_file_can_be_pickled_and_read_by_threads_and_forks(path: Path) -> None:
    with BPFile(path) as file:
        expected = [file.read_sample("trainset", k) for k in range(35)]
        with ThreadPoolExecutor(4) as pool:
            assert all(map(is_same_record, pool.map(lambda k: file.read_sample("trainset", k), range(35)), expected))
        with multiprocessing.get_context("fork").Pool(1) as processes:
            result = processes.map(RecordReader(file), range(35))
    assert all(map(is_same_record, result, expected))


class RecordReader:
    def __init__(self, file: BPFile) -> None:
        self.file = pickle.loads(pickle.dumps(file))

    def __call__(self, index: int) -> dict[str, np.ndarray]:
        return self.file.read_sample("trainset", index)


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (encode_table(random_frames(3)), "edge_attr is not in this block"),
        (Block(1, {"y": Column(np.array([np.nan]), 1)}), "y of sample 20 is not finite"),
        (Block(1, {"y": Column(np.zeros(1, np.float32), 1)}), "atomic_numbers is not in this block"),
    ],
)
def test_bad_block_leaves_no_store(tmp_path: Path, second: Block, message: str) -> None:
    with pytest.raises(InputError, match=rf"trainset: {message}"):
        write(tmp_path / "a.bp", make_example_block(20), second)
    assert not list(tmp_path.iterdir())


def test_types_and_shapes_must_not_change(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a is \('float32', 0, \(3,\)\) in this block, but"):
        write(
            tmp_path / "a.bp",
            Block(1, {"a": Column(np.zeros((2, 3)), 2)}),
            Block(1, {"a": Column(np.zeros((2, 3), np.float32), 2)}),
        )


def test_announced_samples_must_be_written(tmp_path: Path) -> None:
    for announced, message in (
        ({"samples": 21}, "21 samples were announced, 20 were put"),
        ({"totals": {"energy": 19}}, "19 rows of energy were announced, 20 were put"),
    ):
        with pytest.raises(InputError, match=message), BPWriter(tmp_path / "a.bp", {"dataset": "a"}) as writer:
            writer.split("trainset", **announced).put(make_example_block(20))
    assert not list(tmp_path.iterdir())


def write_and_fail(writer: BPWriter) -> None:
    writer.split("trainset").put(make_example_block(20))
    raise KeyError("elsewhere")


def test_error_of_the_caller_leaves_no_files_and_an_old_part_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "a.bp.part").mkdir()
    (tmp_path / "a.bp.part" / "data.0").write_text("old")
    with pytest.raises(KeyError), BPWriter(tmp_path / "a.bp", {"dataset": "a"}) as writer:
        write_and_fail(writer)
    assert not list(tmp_path.iterdir())


def test_writer_rejects_bad_arguments(tmp_path: Path, path: Path) -> None:
    with pytest.raises(InputError, match="exists already"):
        BPWriter(path, {"dataset": "a"})
    with pytest.raises(InputError, match="'dataset' is missing"):
        BPWriter(tmp_path / "a.bp", {})
    with pytest.raises(InputError, match="nothing was written"), BPWriter(tmp_path / "a.bp", {"dataset": "a"}):
        pass
    with pytest.raises(OSError, match="File exists"):
        BPWriter(ROOT / "README.md" / "a.bp", {"dataset": "a"})


MEMORY_SCRIPT = """
import re, sys
from pathlib import Path
from harness.reference.storage.adios.writer import BPWriter
from tests.reference.storage.examples import make_example_block
def peak_kb():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
block = make_example_block(5000)
with BPWriter(Path(sys.argv[1]), {"dataset": "a"}) as writer:
    for k in range(40):
        if k == 4:
            before = peak_kb()
        writer.split("trainset").put(block)
print(peak_kb() - before)
"""


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    command = [sys.executable, "-c", MEMORY_SCRIPT, str(tmp_path / "a.bp")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=True)
    assert sum(file.stat().st_size for file in (tmp_path / "a.bp").iterdir()) > 400_000_000
    assert int(result.stdout) < 40_000
