"""Stores are written and read about as fast as a floor that is timed in the same run (`pytest tests/benchmarks`)."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from harness.reference.storage.adios.reader import BPFile
from harness.reference.storage.open import open_samples
from harness.reference.storage.schema import Block, Column
from harness.reference.storage.structure_codec import encode_table
from tests.benchmarks.floors import measure_over_floor
from tests.reference.storage.examples import add_random_edges, random_frames, run_ranks, write

KEYS = ("pos", "atomic_numbers", "energy", "forces", "cell")
COUNT, BATCH, SAMPLE_BYTES, ROUNDS = 5000, 256, 8192, 40


def measure_median_s(work: Callable[[], object], rounds: int = 15) -> float:
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


@pytest.fixture(scope="module")
def block() -> Block:
    frames = random_frames(COUNT, atoms=(3, 20))
    return encode_table(add_random_edges(frames))


@pytest.fixture(scope="module")
def path(block: Block, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("bp") / "a.bp", block)


def test_structures_are_encoded_quickly(benchmark: BenchmarkFixture) -> None:
    """The minimum is 100,000 molecules per second."""
    frames = random_frames(COUNT, atoms=(3, 20))
    benchmark(encode_table, frames)
    assert COUNT / benchmark.stats.stats.median > 100_000


def test_writing_is_not_much_slower_than_a_plain_file(
    benchmark: BenchmarkFixture, block: Block, tmp_path: Path
) -> None:
    """The limit is 20 times a plain write of as many bytes, since the writer also checks and reads back the data."""
    paths = (tmp_path / f"{k}.bp" for k in range(1000))
    benchmark.pedantic(lambda: write(next(paths), block), rounds=7, warmup_rounds=1)
    content = bytes(block.nbytes)

    def write_plain_file() -> None:
        with open(tmp_path / "plain", "wb") as handle:
            handle.write(content)

    assert benchmark.stats.stats.median < 20 * measure_median_s(write_plain_file) + 0.1


def test_a_sample_on_demand_is_read_within_a_millisecond(benchmark: BenchmarkFixture, path: Path) -> None:
    """A sample consists of five variables."""
    order = iter(np.random.default_rng(0).integers(0, COUNT, 100_000).tolist())
    with BPFile(path) as file:
        benchmark.pedantic(lambda: file.read_sample("trainset", next(order), KEYS), rounds=300, warmup_rounds=5)
    assert benchmark.stats.stats.median < 1e-3


@pytest.mark.parametrize("mode", ["preload", "shared"])
def test_a_sample_in_memory_costs_little_more_than_slicing(benchmark: BenchmarkFixture, path: Path, mode: str) -> None:
    """The limit is three times the slicing of five arrays; on an idle core, a sample takes 2 microseconds."""
    order = np.random.default_rng(0).integers(0, COUNT, BATCH)
    with open_samples(path, "trainset", mode, keys=KEYS) as samples:  # type: ignore[arg-type]
        arrays = list(samples.get([0])[0].values())
        ratio = measure_over_floor(
            benchmark, lambda: samples.get(order), lambda: [[a[0:1] for a in arrays] for _ in range(BATCH)], rounds=300
        )
    assert ratio < 3


def test_a_sample_of_another_rank_costs_little_more_than_the_access(tmp_path: Path) -> None:
    """The limit is six times the plain accesses; a sample of 8 kB in batches of 256 takes 5 microseconds on 2 ranks."""
    rows = SAMPLE_BYTES // 8
    path = write(tmp_path / "a.bp", Block(2000, {"v": Column(np.random.default_rng(0).random(2000 * rows), rows)}))
    result = run_ranks(2, str(Path(__file__).resolve()), str(path))
    assert result.returncode == 0, result.stderr
    medians = json.loads(result.stdout)
    print(medians)
    assert medians["get_us"] < 6 * medians["floor_us"]


def measure_on_each_rank(path: str) -> None:
    """Time batches of the store and plain accesses in turn; rank 0 prints medians in microseconds per sample."""
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    other = (comm.Get_rank() + 1) % comm.Get_size()
    window = MPI.Win.Allocate(1000 * SAMPLE_BYTES, 1, comm=comm)
    np.asarray(window.tomemory())[:] = 1
    window.Lock_all(MPI.MODE_NOCHECK)
    target = memoryview(np.zeros(BATCH * SAMPLE_BYTES, np.uint8))
    rng = np.random.default_rng(comm.Get_rank())

    def get_directly(indices: list[int]) -> None:
        for k, i in enumerate(indices):
            position = (i * SAMPLE_BYTES, SAMPLE_BYTES, MPI.BYTE)
            window.Get((target[k * SAMPLE_BYTES : (k + 1) * SAMPLE_BYTES], MPI.BYTE), other, position)
        window.Flush_all()

    times: dict[str, list[float]] = {"floor_us": [], "get_us": []}
    with open_samples(path, "trainset", "distributed", comm=comm, keys=["v"], backend="rma") as samples:
        for _ in range(ROUNDS):
            for name, work, indices in (
                ("floor_us", get_directly, rng.integers(0, 1000, BATCH).tolist()),
                ("get_us", samples.get, rng.integers(0, len(samples), BATCH).tolist()),
            ):
                comm.Barrier()
                start = time.perf_counter()
                work(indices)
                times[name].append((time.perf_counter() - start) / BATCH * 1e6)
        comm.Barrier()
    window.Unlock_all()
    window.Free()
    if comm.Get_rank() == 0:
        print(json.dumps({name: round(float(np.median(values)), 2) for name, values in times.items()}))


if __name__ == "__main__":
    measure_on_each_rank(sys.argv[1])
