"""Structures converted a second of one core: 20,000 from HDF5, 5,000 with neighbour lists, 2,000 from aselmdb.

These targets are judged by the time of the processor, at half, for machines slower or busier than a laptop at rest.
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
from harness.reference.datasets.conversion.convert import Conversion, convert
from harness.reference.datasets.conversion.inputs import describe_official
from harness.reference.datasets.conversion.read_part import ConversionRules
from harness.reference.datasets.readers.registry import get_format
from tests.reference.datasets.official_files.writers import array, write_ani1x, write_aselmdb

ATOMS = 50


def timed(slug: str, file: Path, rules: ConversionRules) -> tuple[Callable[[], dict[str, Any]], list[float]]:
    """A conversion to a new store each time, and where the processor's seconds are kept."""
    entry, numbers, spent = find_source(slug), itertools.count(), []

    def once() -> dict[str, Any]:
        store = file.with_name(f"{next(numbers)}.bp")
        began = time.process_time()
        order = Conversion(slug, get_format(entry.format), (file,), store, entry, describe_official(entry), rules)
        found = convert(order, lambda done, total, what: None)
        spent.append(time.process_time() - began)
        return found

    return once, spent


def judge(benchmark: Any, slug: str, file: Path, rules: ConversionRules, target: float) -> None:
    once, spent = timed(slug, file, rules)
    found = benchmark.pedantic(once, rounds=3, warmup_rounds=1)
    rate = found["conversion"]["written"] / min(spent)
    benchmark.extra_info["structures_per_cpu_s"] = rate
    benchmark.extra_info["target"] = target
    assert rate > target / 2, f"{rate:,.0f} structures/s of one core, target {target:,.0f}"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rules", "target"), [(ConversionRules(), 20_000), (ConversionRules(cutoff=5.0, max_neighbours=20), 5_000)]
)
def test_hdf5(benchmark: Any, tmp_path: Path, rules: ConversionRules, target: float) -> None:
    file = tmp_path / "ani1x-release.h5"
    write_ani1x(file, {f"g{k}": 100 for k in range(100)})
    judge(benchmark, "ani1x", file, rules, target)


@pytest.mark.slow
def test_aselmdb(benchmark: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = {k: crystal(rng) for k in range(1, 2001)}
    file = tmp_path / "data.aselmdb"
    write_aselmdb(file, dict(rows))
    judge(benchmark, "omat24", file, ConversionRules(), 2_000)


def crystal(rng: np.random.Generator) -> dict[str, Any]:
    """Fifty atoms of a metal, thrown about."""
    lattice = np.stack(np.meshgrid(*[np.arange(4.0)] * 3), -1).reshape(-1, 3)[:ATOMS] * 2.7
    return {
        "numbers": array(np.full(ATOMS, 29)),
        "positions": array(lattice + rng.normal(0, 0.1, (ATOMS, 3))),
        "cell": array(10.8 * np.eye(3)),
        "pbc": array(np.ones(3, dtype=bool)),
        "energy": float(-3.7 * ATOMS + rng.normal()),
        "forces": array(rng.normal(0, 0.1, (ATOMS, 3))),
        "data": {"sid": f"s{rng.integers(1 << 40)}"},
    }
