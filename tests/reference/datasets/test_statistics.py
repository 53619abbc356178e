"""Statistics of datasets do not depend on how the values are divided into blocks, and round-trip through JSON."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.experiments.data.metrics import build_tables
from harness.protocol.events import JsonLinesLog
from harness.protocol.upgrade import convert_fact
from harness.reference.data.structure_table import StructureTable
from harness.reference.datasets.reference_energies import StreamingLeastSquares
from harness.reference.datasets.summary import DistinctCounter, Histogram, Statistics, from_json
from harness.results.runs import load_runs

VALUES = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=80)


def make_crystals(count: int) -> StructureTable:
    """Return structures of 1 to 40 atoms of eight elements with all labels, three frames in each group."""
    rng = np.random.default_rng(count)
    sizes = rng.integers(1, 41, count)
    n = int(sizes.sum())
    numbers = rng.choice([3, 8, 9, 11, 12, 17, 19, 55], n).astype(np.uint8)
    energy = np.bincount(np.repeat(np.arange(count), sizes), -0.5 * numbers) + sizes * rng.normal(0, 0.3, count)
    return StructureTable(
        ids=np.array([f"frame/{k}" for k in range(count)]), groups=np.array([f"group/{k // 3}" for k in range(count)]),
        sizes=sizes, numbers=numbers, positions=rng.normal(size=(n, 3)), energy=energy, cell=np.ones((count, 3, 3)),
        periodic=np.ones((count, 3), dtype=bool), charge=np.zeros(count, dtype=np.int64),
        multiplicity=np.ones(count, dtype=np.int64), forces=rng.normal(0, 0.4, (n, 3)),
        stress=rng.normal(0, 0.01, (count, 3, 3)),
    )  # fmt: skip


@pytest.fixture(scope="module")
def block() -> StructureTable:
    return make_crystals(460)


def assert_equal_up_to_rounding(summary: dict[str, Any], second: dict[str, Any]) -> None:
    """Check that two summaries are equal, up to the rounding of sums."""
    for name, value in summary.items():
        if isinstance(value, dict) and "rms" in value:
            inexact = {k: value.pop(k) for k in ("mean", "sd", "rms")}
            assert {k: second[name].pop(k) for k in inexact} == pytest.approx(inexact, abs=1e-12)
            assert value.pop("quantiles") == pytest.approx(second[name].pop("quantiles"))
    assert summary == second


@settings(deadline=None)
@given(VALUES, st.floats(0, 1))
def test_quantiles_are_accurate_to_a_bin(values: list[float], fraction: float) -> None:
    histogram = Histogram()
    histogram.add(np.array(values))
    exact = np.sort(values)[int(fraction * (len(values) - 1))]
    assert histogram.quantile(fraction) == pytest.approx(exact, rel=0.012, abs=1e-8)
    assert (histogram.low, histogram.high) == (min(values), max(values))


@settings(deadline=None)
@given(VALUES, VALUES, VALUES)
def test_merged_histograms_match_the_whole(
    first_values: list[float], second_values: list[float], third_values: list[float]
) -> None:
    parts = []
    for values in (first_values, second_values, third_values):
        parts.append(Histogram())
        parts[-1].add(np.array(values))
    parts[0].merge(parts[1])
    parts[0].merge(Histogram())
    parts[0].merge(parts[2])
    all_values = np.array([*first_values, *second_values, *third_values])
    summary = parts[0].to_json()
    assert summary["number"] == len(all_values)
    assert summary["mean"] == pytest.approx(all_values.mean(), rel=1e-9, abs=1e-9 * np.abs(all_values).max() + 1e-12)
    assert summary["sd"] == pytest.approx(all_values.std(), rel=1e-6, abs=1e-7 * np.abs(all_values).max() + 1e-12)
    assert summary["rms"] == pytest.approx(np.sqrt((all_values**2).mean()), rel=1e-6, abs=1e-12)
    restored = Histogram.from_json(json.loads(json.dumps(summary, allow_nan=False)))
    assert (restored.counts == parts[0].counts).all()
    assert restored.squares == pytest.approx(parts[0].squares, rel=1e-9, abs=1e-12)


def test_values_that_are_not_finite_are_ignored() -> None:
    histogram = Histogram()
    histogram.add(np.array([math.nan, math.inf]))
    assert histogram.number == 0
    assert math.isnan(histogram.quantile(0.5))
    assert Histogram.from_json(json.loads(json.dumps(histogram.to_json(), allow_nan=False))).number == 0


@pytest.mark.parametrize("count", [1, 50, 2000, 30_000])
def test_distinct_names_are_estimated(count: int) -> None:
    names = np.array([f"frame/{k}-\N{GREEK SMALL LETTER ALPHA}" for k in range(count)])
    first, second = DistinctCounter(), DistinctCounter()
    first.add(np.concatenate([names, names[: count // 2]]))
    second.add(names[count // 3 :].astype("<U40"))
    estimate = first.estimate
    assert estimate == pytest.approx(count, rel=0.05)
    first.merge(DistinctCounter.from_text(second.to_text()))
    assert first.estimate == estimate


def add_edges(block: StructureTable) -> StructureTable:
    """Return the structures with 20 edges for each atom."""
    counts = block.sizes * 20
    zeros = np.zeros(int(counts.sum()), dtype=np.int64)
    return replace(
        block, edge_counts=counts, receiver=zeros, sender=zeros, shift=np.zeros((len(zeros), 3)), distance=zeros * 1.0
    )


def test_merged_statistics_of_workers_match_a_single_pass(block: StructureTable) -> None:
    fit = StreamingLeastSquares()
    fit.add(block)
    references = fit.solve()
    block = add_edges(block)
    single_pass, even, odd = Statistics(), Statistics(), Statistics()
    single_pass.add(block, references)
    for k, first in enumerate(range(0, len(block), 37)):
        part = slice(first, first + 37)
        (even, odd)[k % 2].add(block[part], references)
    even.merge(odd)
    assert_equal_up_to_rounding(single_pass.to_json(), even.to_json())


def test_statistics_match_the_arrays(block: StructureTable) -> None:
    fit = StreamingLeastSquares()
    fit.add(block)
    result = Statistics()
    result.add(add_edges(block), fit.solve())
    summary = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert (summary["structures"], summary["atoms"]) == (len(block), len(block.numbers))
    assert summary["elements"]["Na"]["atoms"] == (block.numbers == 11).sum()
    assert summary["elements"]["Na"]["structures"] == len(set(block.owner[block.numbers == 11].tolist()))
    assert len(summary["elements"]) == len(set(block.numbers.tolist()))
    assert block.forces is not None
    norm = np.linalg.norm(block.forces, axis=1)
    forces = summary["force_norm_ev_per_a"]
    assert (forces["rms"], forces["max"]) == pytest.approx((np.sqrt((norm**2).mean()), norm.max()))
    assert forces["quantiles"]["0.5"] == pytest.approx(np.median(norm), rel=0.02)
    assert block.stress is not None
    assert summary["stress_ev_per_a3"]["rms"] == pytest.approx(np.sqrt((block.stress**2).mean()))
    assert summary["energy_ev_per_atom"]["rms"] == pytest.approx(fit.solve().rmse_ev_per_atom)
    assert summary["sizes"]["max"] == block.sizes.max()
    assert summary["neighbours_mean"] == 20
    assert summary["periodic"] == [0, 0, 0, len(block)]
    assert summary["charges"] == {"0": len(block)}
    assert_equal_up_to_rounding(from_json(summary).to_json(), summary)


def test_missing_labels_give_empty_distributions(block: StructureTable) -> None:
    result = Statistics()
    result.add(replace(block[:20], forces=None, stress=None, periodic=np.zeros((20, 3), dtype=bool)))
    result.add(block[:0])
    summary = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert summary["force_norm_ev_per_a"]["number"] == summary["energy_ev_per_atom"]["number"] == 0
    assert summary["neighbours_mean"] is None
    assert summary["periodic"] == [20, 0, 0, 0]
    assert from_json(summary).to_json() == summary


def test_report_reads_the_facts_of_a_conversion(tmp_path: Path, block: StructureTable) -> None:
    fit = StreamingLeastSquares()
    fit.add(block)
    result = Statistics()
    result.add(add_edges(block), fit.solve())
    folder = tmp_path / "data-local" / "convert-oc25"
    folder.mkdir(parents=True)
    case = {"id": "1", "name": "convert-oc25", "program": "convert", "parameters": {}}
    (folder / "case.json").write_text(json.dumps(case))
    (folder / "exit_code").write_text("0\n")
    log = JsonLinesLog(folder / "events.jsonl")
    log.write("start")
    log.write_fact(
        "dataset", {"name": "oc25", "head": "OC25", "data_origin": "stand-in", "published_structures": 7_800_000}
    )
    log.write_fact("conversion", {"structures_written": len(block)})
    for name, content in (("references", fit.solve().to_json()), ("statistics", result.to_json())):
        log.write_fact(*convert_fact("data", name, content))
    log.write("done")
    tables = build_tables(load_runs(tmp_path))
    (row,) = tables["datasets"].to_dict("records")
    assert (row["structures"], row["atoms"], row["elements"]) == (460, len(block.numbers), 8)
    assert row["size_median"] == pytest.approx(np.median(block.sizes), rel=0.02)
    assert row["neighbours"] == 20
    assert row["reference_matrix_rank"] == 8
    for quantity, values in (("atoms_per_structure", block.sizes), ("energy_ev_per_atom", fit.solve().residual(block))):
        bins = tables["distributions"].set_index("quantity").loc[[quantity]]
        assert bins["count"].sum() == len(block)
        assert bins["low"].min() <= values.min() <= values.max() <= bins["high"].max()
