"""Quick functions take at most a few times as long as a floor, a limit that holds on any machine.

A floor is minimal code that does the same kind of work: a copy, a product of matrices, parsing. Function and floor are
timed in turn in one process.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import orjson
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from harness.reference.data.batch import build_batch
from harness.reference.data.neighbours import NeighbourList, build_neighbour_list
from harness.reference.datasets.random_structures import make_random_structures
from harness.reference.inference.bucketing import get_shape
from harness.reference.inference.prediction import batched_heads
from harness.reference.models.config import ModelConfig
from harness.reference.models.foundation import FoundationModel
from harness.reference.profiling.flops import count_work
from harness.tracking.history import Measurement, append_measurements, read_history
from tests.benchmarks.floors import measure_over_floor

BATCH, SIDE = 16, 256


@pytest.fixture(scope="module")
def graphs() -> list[NeighbourList]:
    return [
        build_neighbour_list(s, cutoff=5.0, max_neighbours=20) for s in make_random_structures(BATCH, atoms=(2, 100))
    ]


@pytest.fixture(autouse=True, scope="module")
def use_one_thread() -> None:
    torch.set_num_threads(1)


def test_neighbour_lists_take_less_than_five_times_as_long_as_all_distances(benchmark: BenchmarkFixture) -> None:
    structures = make_random_structures(BATCH, atoms=(2, 100))

    def compute_distances() -> None:
        for s in structures:
            np.linalg.norm(s.positions[:, None] - s.positions, axis=-1)

    def build_lists() -> None:
        for s in structures:
            build_neighbour_list(s, cutoff=5.0, max_neighbours=20)

    assert measure_over_floor(benchmark, build_lists, compute_distances) < 5


def test_collation_takes_less_than_eight_times_as_long_as_concatenation(
    benchmark: BenchmarkFixture, graphs: list[NeighbourList]
) -> None:
    def concatenate() -> None:
        for _ in range(8):
            np.concatenate([g.structure.positions for g in graphs])

    assert measure_over_floor(benchmark, lambda: build_batch(graphs), concatenate) < 8


def test_prediction_takes_less_than_fifteen_times_as_long_as_its_matrix_products(
    benchmark: BenchmarkFixture, graphs: list[NeighbourList]
) -> None:
    """The floor multiplies matrices of 256 x 256; the narrow matrices, gathers and scatters of the model cost more."""
    torch.manual_seed(0)
    model = FoundationModel(ModelConfig()).requires_grad_(False)
    batch = build_batch(graphs).to("cpu", torch.float32)
    weights = model.gate(batch.composition)
    flops = count_work(lambda: batched_heads(model, batch, weights), get_shape(batch)).matrix_flops
    products = max(1, round(flops / (2 * SIDE**3)))
    square = torch.randn(SIDE, SIDE)

    def multiply() -> None:
        for _ in range(products):
            square @ square

    assert measure_over_floor(benchmark, lambda: batched_heads(model, batch, weights), multiply) < 15


def test_history_is_read_in_less_than_eighteen_times_the_time_of_parsing(
    benchmark: BenchmarkFixture, tmp_path: Path
) -> None:
    path = tmp_path / "history.jsonl"
    values = tuple(np.random.default_rng(0).random(5).tolist())
    append_measurements(path, [
        Measurement(source="asv", session="s", commit=f"{k:040x}", committed_s=k, subject="x", commit_index=k,
                    machine="m", name="a benchmark", unit="seconds", better="lower", threshold=0.02, round=r,
                    values=values)
        for k in range(100) for r in range(12)
    ])  # fmt: skip

    def parse() -> None:
        for line in path.read_bytes().splitlines():
            orjson.loads(line)

    assert measure_over_floor(benchmark, lambda: read_history(path), parse) < 18
