"""Measure the time of a function relative to a floor: minimal code that does the same kind of work."""

from __future__ import annotations

import time
from collections.abc import Callable

from pytest_benchmark.fixture import BenchmarkFixture


def measure_over_floor(
    benchmark: BenchmarkFixture, function: Callable[[], object], floor: Callable[[], object], rounds: int = 20
) -> float:
    """Return the minimum time of a function over that of its floor, which runs before each round of the function."""
    floor_times = []

    def time_floor() -> None:
        start = time.perf_counter()
        floor()
        floor_times.append(time.perf_counter() - start)

    benchmark.pedantic(function, setup=time_floor, rounds=rounds, warmup_rounds=2)
    ratio = float(benchmark.stats.stats.min / min(floor_times))
    benchmark.extra_info["over_floor"] = ratio
    print(f"{ratio:.2f} times its floor of {1e3 * min(floor_times):.3f} ms")
    return ratio
