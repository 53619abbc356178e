"""Enumeration and neighbour look-up of candidates are far faster than any model."""

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


def list_blocks_of_the_whole_space(count: int) -> list[PrototypeBlock]:
    """Return batches from the whole space, each of which has one prototype."""
    starts = np.linspace(0, len(SPACE) - BATCH, count).astype(int).tolist()
    return [max(SPACE.block(k, k + BATCH), key=len) for k in starts]


def measure_structures_per_s(work: Callable[[], object], structures: int) -> float:
    """Return the structures per second of the fastest of three runs."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return structures / min(times)


def test_a_million_candidates_are_enumerated_per_second(benchmark: BenchmarkFixture) -> None:
    """The candidates have four species; one core has reached 25 million per second."""
    start = len(SPACE) // 2
    (run,) = benchmark(SPACE.block, start, start + BLOCK)
    assert len(run) == BLOCK
    assert BLOCK / benchmark.stats.stats.median > 1_000_000


def test_look_up_is_ten_times_as_fast_as_neighbour_lists(benchmark: BenchmarkFixture) -> None:
    """A look-up has been fifty times as fast as building a list for each structure."""
    topologies, runs = Topologies(SPACE, 5.0, 20), list_blocks_of_the_whole_space(20)
    structures = [SPACE.structure(int(run.index[k])) for run in runs for k in (0, 100)]
    benchmark(lambda: [topologies.arrays(run) for run in runs])
    rate = sum(map(len, runs)) / benchmark.stats.stats.median
    benchmark.extra_info["structures_per_s"] = rate
    assert rate > 10 * measure_structures_per_s(
        lambda: [build_neighbour_list(s, cutoff=5.0, max_neighbours=20) for s in structures], 40
    )


def test_half_a_million_edge_counts_are_made_per_second(benchmark: BenchmarkFixture) -> None:
    topologies, runs = Topologies(SPACE, 5.0, 20), list_blocks_of_the_whole_space(20)
    benchmark(lambda: [topologies.edge_counts(run) for run in runs])
    assert sum(map(len, runs)) / benchmark.stats.stats.median > 500_000


@pytest.mark.parametrize(("atoms", "count"), [((2, 100), 256), ((2, 500), 48)])
def test_batched_neighbour_lists_are_twice_as_fast_as_single_ones(
    benchmark: BenchmarkFixture, atoms: tuple[int, int], count: int
) -> None:
    """Ratios of four and six have been measured."""
    structures = make_random_structures(count, atoms=atoms)
    benchmark(build_vacuum_arrays, structures, cutoff=5.0, max_neighbours=20)
    rate = count / benchmark.stats.stats.median
    benchmark.extra_info["structures_per_s"] = rate
    one_by_one = structures[: count // 4]
    assert rate > 2 * measure_structures_per_s(
        lambda: build_batch([build_neighbour_list(s, cutoff=5.0, max_neighbours=20) for s in one_by_one]),
        len(one_by_one),
    )


def test_charge_balance_takes_at_most_five_microseconds(benchmark: BenchmarkFixture) -> None:
    """Candidates have four species and come in batches; 1 us per candidate has been measured."""
    run = SPACE.block(len(SPACE) // 2, len(SPACE) // 2 + BATCH)[0]
    benchmark(is_charge_balanced, SPACE.prototypes[run.prototype], run)
    assert benchmark.stats.stats.median / BATCH < 5e-6
