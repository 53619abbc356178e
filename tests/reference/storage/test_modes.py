"""Samples in one process: every mode returns the same records, in any order, and refuses invalid requests."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.reference.distributed.launch import LostRank
from harness.reference.errors import InputError
from harness.reference.storage import collectives
from harness.reference.storage.adios.reader import BPFile
from harness.reference.storage.adios.writer import BPWriter
from harness.reference.storage.memory.shared import SharedSamples
from harness.reference.storage.open import open_samples
from harness.reference.storage.record_codec import RecordSchema
from harness.reference.storage.samples import ConcatenatedSamples, PreloadedSamples, split_evenly
from harness.reference.storage.schema import Block, Column, Sample
from tests.reference.storage.examples import is_same_record, make_example_block

MODES = ["on_demand", "preload", "shared", "distributed"]
COUNT = 35


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    result = tmp_path_factory.mktemp("bp") / "qm9.bp"
    with BPWriter(result, {"dataset": "qm9"}) as writer:
        writer.split("trainset").put(make_example_block(COUNT))
        writer.split("valset").put(make_example_block(4, 1))
    return result


@pytest.fixture(scope="module")
def expected(path: Path) -> list[Sample]:
    with BPFile(path) as file:
        return [file.read_sample("trainset", k) for k in range(COUNT)]


@pytest.mark.parametrize("mode", MODES)
def test_modes_return_the_content_of_the_file(path: Path, expected: list[Sample], mode: Any) -> None:
    order = [34, 0, 7, 7, 20]
    with open_samples(path, "trainset", mode) as samples:
        assert len(samples) == COUNT
        for indices in (order, np.array(order), range(COUNT), []):
            assert all(map(is_same_record, samples.get(indices), [expected[k] for k in indices]))


@pytest.mark.parametrize("mode", MODES)
def test_modes_return_the_requested_keys(path: Path, expected: list[Sample], mode: Any) -> None:
    keys = ("energy", "edge_index", "id")
    with open_samples(path, "trainset", mode, keys=keys) as samples:
        assert is_same_record(samples.get([3])[0], {k: expected[3][k] for k in keys})


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("indices", [[COUNT], [0, -1], np.array([0, 10**9])])
def test_modes_reject_indices_out_of_range(path: Path, mode: Any, indices: Any) -> None:
    with (
        open_samples(path, "trainset", mode) as samples,
        pytest.raises(InputError, match=rf"0..34, got {indices[-1]}"),
    ):
        samples.get(indices)


def test_unknown_modes_are_reported(path: Path) -> None:
    with pytest.raises(InputError, match="unknown mode 'elsewhere'"):
        open_samples(path, "trainset", "elsewhere")  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", MODES)
def test_wrong_names_are_reported(path: Path, mode: Any) -> None:
    with pytest.raises(InputError, match="no split 'all'"):
        open_samples(path, "all", mode)
    with pytest.raises(InputError, match="has no 'velocity'"):
        open_samples(path, "trainset", mode, keys=["velocity"])


def test_samples_in_memory_cannot_be_changed(path: Path) -> None:
    for mode in ("preload", "shared"):
        with open_samples(path, "trainset", mode) as samples, pytest.raises(ValueError, match="read-only"):
            samples.get([0])[0]["pos"][0] = 1


def test_unknown_backends_and_widths_are_rejected(path: Path) -> None:
    with pytest.raises(InputError, match="unknown backend 'smoke'"):
        open_samples(path, "trainset", "distributed", backend="smoke")
    with pytest.raises(InputError, match="groups of 2 ranks, there are 1"):
        open_samples(path, "trainset", "distributed", width=2)


def read_first_energies(samples: SharedSamples) -> list[float]:
    return [float(r["energy"][0]) for r in samples.get(range(5))]


def test_shared_samples_can_be_used_by_other_processes(path: Path, expected: list[Sample]) -> None:
    with open_samples(path, "trainset", "shared") as samples:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            assert pool.apply(read_first_energies, (samples,)) == [r["energy"][0] for r in expected[:5]]
        reference = pickle.dumps(samples)
    with pytest.raises(InputError, match=r"shared samples of process .* cannot be accessed"):
        pickle.loads(reference)


def hold_shared(path: Path, connection: Any) -> None:
    samples = open_samples(path, "trainset", "shared")
    connection.send(len(samples))
    signal.pause()


def test_shared_memory_is_freed_when_a_process_is_killed(path: Path) -> None:
    before = set(os.listdir("/dev/shm"))
    receiving_end, sending_end = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=hold_shared, args=(path, sending_end))
    process.start()
    assert receiving_end.recv() == COUNT
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    assert not [name for name in set(os.listdir("/dev/shm")) - before if not name.startswith(("sem.", "mpich_shm"))]


def make_numbered_samples(first: int, count: int) -> PreloadedSamples:
    return PreloadedSamples.from_block(Block(count, {"n": Column(np.arange(first, first + count), 1)}))


@given(st.lists(st.integers(1, 5), min_size=1, max_size=6), st.data())
def test_concatenated_datasets_keep_their_order(sizes: list[int], data: st.DataObject) -> None:
    starts = np.cumsum([0, *sizes]).tolist()
    concatenated = ConcatenatedSamples(
        [make_numbered_samples(first, size) for first, size in zip(starts, sizes, strict=False)]
    )
    assert len(concatenated) == starts[-1]
    indices = data.draw(st.lists(st.integers(0, starts[-1] - 1), max_size=10))
    assert [int(r["n"][0]) for r in concatenated.get(indices)] == indices
    owners = np.repeat(np.arange(len(sizes)), sizes)
    assert concatenated.find_datasets(np.arange(starts[-1])).tolist() == owners.tolist()
    assert all(concatenated.index(int(owners[i]), i - starts[owners[i]]) == i for i in indices)
    with pytest.raises(InputError, match="got -1"):
        concatenated.get([-1])


def test_concatenation_of_no_datasets_is_rejected() -> None:
    with pytest.raises(InputError, match="no datasets"):
        ConcatenatedSamples([])


@given(st.integers(0, 50), st.integers(1, 9))
def test_shares_are_complete_and_even(samples: int, ranks: int) -> None:
    parts = [split_evenly(samples, rank, ranks) for rank in range(ranks)]
    assert [k for first, stop in parts for k in range(first, stop)] == list(range(samples))
    sizes = [stop - first for first, stop in parts]
    assert max(sizes) - min(sizes) <= 1


def test_records_are_packed_and_unpacked_bit_for_bit() -> None:
    block = make_example_block(25, stress=True)
    records = list(block.iter_samples())
    schema = RecordSchema.from_sample(records[0], {"edge_index": 1})
    lengths = schema.compute_lengths({name: c.rows(25) for name, c in block.columns.items()})
    memory = np.zeros(int(lengths.sum()), np.int64)
    schema.pack_block(block, memory)
    starts = np.cumsum(lengths) - lengths
    for start, length, record in zip(starts.tolist(), lengths.tolist(), records, strict=True):
        result = schema.unpack(memory, start)
        assert is_same_record(result, record)
        assert schema.pack(record) == memory[start : start + length].tobytes()
        for values in result.values():
            assert np.shares_memory(values, memory) or not values.size
            assert values.__array_interface__["data"][0] % 8 == 0 or not values.size


def test_records_of_another_schema_are_rejected() -> None:
    schema = RecordSchema.from_sample({"a": np.zeros((2, 3))}, {})
    with pytest.raises(InputError, match="a: float32"):
        schema.pack({"a": np.zeros((2, 3), np.float32)})
    with pytest.raises(InputError, match="records of 4 units do not fit into 2 units"):
        schema.pack_block(Block(1, {"a": Column(np.zeros((1, 3)), 1)}), np.zeros(2, np.int64))


def test_a_rank_that_fails_like_a_lower_one_keeps_its_error_as_the_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collectives, "_get_minimum", lambda: None)
    comm = SimpleNamespace(
        Get_size=lambda: 2, Get_rank=lambda: 1, allreduce=lambda *_, **__: 0, bcast=lambda *_, **__: "no disk"
    )
    with pytest.raises(LostRank, match="rank 0: no disk") as caught:
        collectives.run_collectively(comm, lambda: 1 / 0)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
