"""Enumeration and neighbour lookup of candidates are far faster than any model."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from harness.reference.data.batch import build_batch
from harness.reference.data.neighbours import build_neighbour_list
from harness.reference.datasets.random_structures import make_random_structures
from harness.reference.programs.screening.candidates.filters import is_charge_balanced
from harness.reference.programs.screening.candidates.prototype_neighbours import Topologies
from harness.reference.programs.screening.candidates.prototype_space import CandidateSpace, PrototypeBlock
from harness.reference.programs.screening.candidates.prototypes import load_prototypes
from harness.reference.programs.screening.candidates.random_workload import build_vacuum_arrays

BLOCK, BATCH = 1 << 16, 512
SPACE = CandidateSpace(
    load_prototypes(), tuple(z for z in range(1, 95) if z not in {43, 61, 84, 85, 86, 87, 88, 89, 91})
)


def spread_runs(count: int) -> list[PrototypeBlock]:
    """Return batches from the whole space, each within a prototype."""
    starts = np.linspace(0, len(SPACE) - BATCH, count).astype(int).tolist()
    return [max(SPACE.block(k, k + BATCH), key=len) for k in starts]


def structures_per_s(work: Callable[[], object], structures: int) -> float:
    """Return the structures per second, the best of three runs."""
    times = []
    for _ in range(3):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return structures / min(times)


def test_enumeration(benchmark: BenchmarkFixture) -> None:
    """A million candidates a second of one core, of four species; 25 million were measured."""
    start = len(SPACE) // 2
    (run,) = benchmark(SPACE.block, start, start + BLOCK)
    assert len(run) == BLOCK
    assert BLOCK / benchmark.stats.stats.median > 1_000_000


def test_neighbours_are_looked_up(benchmark: BenchmarkFixture) -> None:
    """Ten times as fast as a list for each structure; fifty times were measured."""
    topologies, runs = Topologies(SPACE, 5.0, 20), spread_runs(20)
    structures = [SPACE.structure(int(run.index[k])) for run in runs for k in (0, 100)]
    benchmark(lambda: [topologies.arrays(run) for run in runs])
    rate = sum(map(len, runs)) / benchmark.stats.stats.median
    benchmark.extra_info["structures_per_s"] = rate
    assert rate > 10 * structures_per_s(
        lambda: [build_neighbour_list(s, cutoff=5.0, max_neighbours=20) for s in structures], 40
    )


def test_edges_are_counted(benchmark: BenchmarkFixture) -> None:
    topologies, runs = Topologies(SPACE, 5.0, 20), spread_runs(20)
    benchmark(lambda: [topologies.edge_counts(run) for run in runs])
    assert sum(map(len, runs)) / benchmark.stats.stats.median > 500_000


@pytest.mark.parametrize(("atoms", "count"), [((2, 100), 256), ((2, 500), 48)])
def test_random_structures(benchmark: BenchmarkFixture, atoms: tuple[int, int], count: int) -> None:
    """Twice as fast as one by one; four and six times were measured."""
    structures = make_random_structures(count, atoms=atoms)
    benchmark(build_vacuum_arrays, structures, cutoff=5.0, max_neighbours=20)
    rate = count / benchmark.stats.stats.median
    benchmark.extra_info["structures_per_s"] = rate
    one_by_one = structures[: count // 4]
    assert rate > 2 * structures_per_s(
        lambda: build_batch([build_neighbour_list(s, cutoff=5.0, max_neighbours=20) for s in one_by_one]),
        len(one_by_one),
    )


def test_charge_balance(benchmark: BenchmarkFixture) -> None:
    """At most 5 us a candidate, of four species in batches; 1 us was measured."""
    pytest.importorskip("smact")
    run = SPACE.block(len(SPACE) // 2, len(SPACE) // 2 + BATCH)[0]
    benchmark(is_charge_balanced, SPACE.prototypes[run.prototype], run)
    assert benchmark.stats.stats.median / BATCH < 5e-6
