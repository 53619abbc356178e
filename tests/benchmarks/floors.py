"""The time of a kernel over that of a floor, measured in turn."""

from __future__ import annotations

import time
from collections.abc import Callable

from pytest_benchmark.fixture import BenchmarkFixture


def measure_over_floor(
    benchmark: BenchmarkFixture, kernel: Callable[[], object], floor: Callable[[], object], rounds: int = 20
) -> float:
    """Return the least time of the kernel over the least of its floor, which runs before each of its rounds."""
    floor_times = []

    def time_floor() -> None:
        began = time.perf_counter()
        floor()
        floor_times.append(time.perf_counter() - began)

    benchmark.pedantic(kernel, setup=time_floor, rounds=rounds, warmup_rounds=2)
    ratio = float(benchmark.stats.stats.min / min(floor_times))
    benchmark.extra_info["over_floor"] = ratio
    print(f"{ratio:.2f} times its floor of {1e3 * min(floor_times):.3f} ms")
    return ratio
