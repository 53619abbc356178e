"""Neighbour lists, batches and predictions reach a minimum speed (`pytest tests/benchmarks` prints the speeds)."""

from __future__ import annotations

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from harness.reference.data.batch import build_batch
from harness.reference.data.neighbours import NeighbourList, build_neighbour_list
from harness.reference.datasets.random_structures import make_random_structures
from harness.reference.inference.prediction import batched_heads
from harness.reference.models.config import ModelConfig
from harness.reference.models.foundation import FoundationModel

BATCH = 16


@pytest.fixture(scope="module")
def graphs() -> list[NeighbourList]:
    structures = make_random_structures(BATCH, atoms=(2, 100))
    return [build_neighbour_list(s, cutoff=5.0, max_neighbours=20) for s in structures]


def test_neighbour_lists_are_faster_than_the_model(benchmark: BenchmarkFixture) -> None:
    """The minimum is 800 random structures per second on one core; the fastest stage evaluates a few hundred."""
    structures = make_random_structures(BATCH, atoms=(2, 100))
    benchmark(lambda: [build_neighbour_list(s, cutoff=5.0, max_neighbours=20) for s in structures])
    assert BATCH / benchmark.stats.stats.median > 800


def test_collation_is_faster_than_the_model(benchmark: BenchmarkFixture, graphs: list[NeighbourList]) -> None:
    benchmark(lambda: build_batch(graphs))
    assert BATCH / benchmark.stats.stats.median > 5000


def test_eager_prediction_reaches_a_minimum_speed(benchmark: BenchmarkFixture, graphs: list[NeighbourList]) -> None:
    """At width 64 in single precision, the eager stage evaluates over 20 structures per second even on a busy core."""
    torch.manual_seed(0)
    model = FoundationModel(ModelConfig()).requires_grad_(False)
    batch = build_batch(graphs).to("cpu", torch.float32)
    weights = model.gate(batch.composition)
    benchmark(lambda: batched_heads(model, batch, weights))
    assert BATCH / benchmark.stats.stats.median > 20
