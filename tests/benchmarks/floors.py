"""A kernel's time over that of a floor, which is measured turn by turn with it."""

from __future__ import annotations

import time
from collections.abc import Callable

from pytest_benchmark.fixture import BenchmarkFixture


def over_floor(
    benchmark: BenchmarkFixture, kernel: Callable[[], object], floor: Callable[[], object], rounds: int = 20
) -> float:
    """The least time of the kernel over the least of its floor, which runs before each of its rounds."""
    taken = []

    def floor_first() -> None:
        began = time.perf_counter()
        floor()
        taken.append(time.perf_counter() - began)

    benchmark.pedantic(kernel, setup=floor_first, rounds=rounds, warmup_rounds=2)
    ratio = float(benchmark.stats.stats.min / min(taken))
    benchmark.extra_info["over_floor"] = ratio
    print(f"{ratio:.2f} times its floor of {1e3 * min(taken):.3f} ms")
    return ratio
