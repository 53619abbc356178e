"""One core converts 20,000 structures/s from HDF5, 5,000 with neighbour lists, and 2,000 from aselmdb.

The tests require half of these targets, in CPU time, since a machine may be slower or busier than an idle laptop.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.reference.datasets.catalog import find_source
from harness.reference.datasets.conversion.convert import Conversion, convert, describe_official
from harness.reference.datasets.conversion.read_part import ConversionRules
from harness.reference.datasets.readers.registry import get_format
from tests.reference.conftest import ignore_progress
from tests.reference.datasets.official_files.writers import encode_array, write_ani1x, write_aselmdb

ATOMS = 50


def make_timed_conversion(
    slug: str, file: Path, rules: ConversionRules
) -> tuple[Callable[[], dict[str, Any]], list[float]]:
    """Return a function that converts a file to a new store, and the list of CPU seconds to which each call adds."""
    entry, numbers, cpu_times = find_source(slug), itertools.count(), []

    def convert_once() -> dict[str, Any]:
        store = file.with_name(f"{next(numbers)}.bp")
        start = time.process_time()
        conversion = Conversion(slug, get_format(entry.format), (file,), store, entry, describe_official(entry), rules)
        facts = convert(conversion, ignore_progress)
        cpu_times.append(time.process_time() - start)
        return facts

    return convert_once, cpu_times


def check_rate(benchmark: Any, slug: str, file: Path, rules: ConversionRules, target: float) -> None:
    convert_once, cpu_times = make_timed_conversion(slug, file, rules)
    facts = benchmark.pedantic(convert_once, rounds=3, warmup_rounds=1)
    rate = facts["conversion"]["structures_written"] / min(cpu_times)
    benchmark.extra_info["structures_per_cpu_s"] = rate
    benchmark.extra_info["target"] = target
    assert rate > target / 2, f"{rate:,.0f} structures/s of one core, target {target:,.0f}"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rules", "target"), [(ConversionRules(), 20_000), (ConversionRules(cutoff=5.0, max_neighbours=20), 5_000)]
)
def test_conversion_from_hdf5_reaches_its_target(
    benchmark: Any, tmp_path: Path, rules: ConversionRules, target: float
) -> None:
    file = tmp_path / "ani1x-release.h5"
    write_ani1x(file, {f"g{k}": 100 for k in range(100)})
    check_rate(benchmark, "ani1x", file, rules, target)


@pytest.mark.slow
def test_conversion_from_aselmdb_reaches_its_target(benchmark: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = {k: make_crystal_row(rng) for k in range(1, 2001)}
    file = tmp_path / "data.aselmdb"
    write_aselmdb(file, dict(rows))
    check_rate(benchmark, "omat24", file, ConversionRules(), 2_000)


def make_crystal_row(rng: np.random.Generator) -> dict[str, Any]:
    """Return a database row of fifty displaced metal atoms."""
    lattice = np.stack(np.meshgrid(*[np.arange(4.0)] * 3), -1).reshape(-1, 3)[:ATOMS] * 2.7
    return {
        "numbers": encode_array(np.full(ATOMS, 29)),
        "positions": encode_array(lattice + rng.normal(0, 0.1, (ATOMS, 3))),
        "cell": encode_array(10.8 * np.eye(3)),
        "pbc": encode_array(np.ones(3, dtype=bool)),
        "energy": float(-3.7 * ATOMS + rng.normal()),
        "forces": encode_array(rng.normal(0, 0.1, (ATOMS, 3))),
        "data": {"sid": f"s{rng.integers(1 << 40)}"},
    }
