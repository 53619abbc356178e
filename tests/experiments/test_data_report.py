"""Logs of conversions and of reading become tables, figures and a section of the report."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from harness.document.figures import format_count
from harness.experiments.data.figures import ELEMENT_SYMBOLS, locate_element
from harness.experiments.data.metrics import build_tables
from harness.protocol.events import JsonLinesLog
from harness.report.render import write_report
from harness.results.runs import load_runs
from tests.conftest import read_pages

HEADS = (
    ("Alexandria", 4_500_000, True), ("ANI1x", 5_000_000, False), ("MPTrj", 1_580_000, True),
    ("OC2020", 133_900_000, False), ("OC2022", 9_800_000, False), ("OC25", 7_800_000, False),
    ("ODAC23", 38_000_000, False), ("OMat24", 101_000_000, False), ("OMol25", 100_000_000, False),
    ("OMol25-neutral", 60_000_000, False), ("OMol25-non-neutral", 40_000_000, False), ("OPoly2026", 6_570_000, False),
    ("Nabla2DFT", 12_700_000, False), ("QCML", 33_500_000, False), ("QM7X", 4_200_000, False),
    ("transition1x", 9_600_000, False),
)  # fmt: skip
ORGANIC = ["H", "C", "N", "O", "F", "P", "S", "Cl"]


def make_distribution(values: np.ndarray) -> dict[str, Any]:
    """Return the summary of a distribution in the form that a conversion writes as a fact."""
    fact: dict[str, Any] = {"count": len(values), "bins_per_octave": 32, "zero": int((values == 0).sum())}
    for sign, magnitudes in (("negative", -values[values < 0]), ("positive", values[values > 0])):
        bins, counts = np.unique(np.floor(np.log2(magnitudes) * 32).astype(int), return_counts=True)
        fact[sign] = [[int(k), int(n)] for k, n in zip(bins, counts, strict=True)]
    if len(values):
        fact |= {"mean": values.mean(), "std": values.std(), "rms": math.sqrt((values**2).mean())}
        fact |= {"min": values.min(), "max": values.max()}
        fact["quantiles"] = {str(q): float(np.quantile(values, q)) for q in (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)}
    return json.loads(json.dumps(fact, default=float))


def make_statistics(rng: np.random.Generator, structures: int, molecules: bool, labelled: bool) -> dict[str, Any]:
    sizes = rng.integers(4, 40, structures) if molecules else np.maximum(1, rng.lognormal(2.6, 0.8, structures)).round()
    symbols = (
        ORGANIC
        if molecules
        else [s for s in ELEMENT_SYMBOLS[:94] if rng.uniform() < 0.8 and s not in ("He", "Ne", "Ar")]
    )
    counts = {s: int(max(1, structures * rng.uniform() ** 5)) for s in symbols}
    force = rng.lognormal(-1 if molecules else -3, 1.2, structures * 3) if labelled else np.zeros(0)
    return {
        "structures": structures, "atoms": int(sizes.sum()), "groups_estimate": structures // 3, "sketch_registers": "",
        "elements": {s: {"structures": n, "atoms": 3 * n} for s, n in counts.items()},
        "atoms_per_structure": make_distribution(sizes.astype(float)),
        "energy_ev_per_atom": make_distribution(rng.normal(0, 0.06 if molecules else 0.6, structures)),
        "force_norm_ev_per_angstrom": make_distribution(force),
        "stress_ev_per_angstrom3": make_distribution(np.zeros(0)),
        "charges": {"0": structures}, "spin_multiplicities": {"1": structures},
        "structures_by_periodicity": [structures, 0, 0, 0] if molecules else [0, 0, 0, structures],
        "edges": 0, "edge_atoms": 0, "neighbours_mean": None if molecules else 18.2,
    }  # fmt: skip


def start_case(out: Path, campaign: str, name: str, program: str, time_s: float = 0.0) -> JsonLinesLog:
    """Write the folder of a case with exit code 0, and return its log with the first event."""
    folder = out / "runs" / campaign / name
    folder.mkdir(parents=True)
    case = {"id": name, "name": name, "suite": program, "program": program, "parameters": {}, "system": "local"}
    (folder / "case.json").write_text(json.dumps(case))
    (folder / "provenance.json").write_text(json.dumps({"time_s": time_s}))
    (folder / "exit_code").write_text("0\n")
    log = JsonLinesLog(folder / "events.jsonl")
    log.write("start")
    return log


def write_conversion(out: Path, k: int = 3, *, count: int = 900, name: str = "", time_s: float = 0.0) -> None:
    head, original, sample = HEADS[k]
    log = start_case(out, "data-local", name or f"convert-{head.lower()}", "convert", time_s)
    dataset = {
        "name": head.lower(), "head": head, "data_origin": f"sample of {head}" if sample else "stand-in",
        "level_of_theory": "PBE <& co>",
        "source": "a package", "licence": "CC-BY-4.0", "attribution": "Somebody et al. (2020)",
        "published_structures": original, "store_bytes": 12_345_678,
    }  # fmt: skip
    log.write_fact("dataset", dataset)
    conversion = {
        "structures_read": count + 4, "structures_written": count, "excluded": {"not finite": 3, "duplicate": 1},
        "examples": [], "seconds": 2.0, "structures_per_s": count / 2.0, "workers": 2,
        "splits": {"train": count - 20, "validation": 10, "test": 10}, "edges": True, "cutoff": 5.0,
        "max_neighbours": 20,
    }  # fmt: skip
    log.write_fact("conversion", conversion)
    energies = {"energy_ev": {"H": -13.6}, "undetermined_elements": ["Na", "Cl"], "absent_elements": 115, "rank": 2}
    log.write_fact("reference_energies", energies | {"mae_ev_per_atom": 0.25})
    molecules = k in (1, 8, 9, 10, 11, 12, 13, 14, 15)
    log.write_fact("statistics", make_statistics(np.random.default_rng(k), count, molecules, labelled=k != 14))
    log.write("done")


def write_reading(out: Path, mode: str, ranks: int, us_per_sample: float, floor_us: float | None = None) -> None:
    log = start_case(out, "reading-local", f"read-{mode}-{ranks}", "read")
    reading: dict[str, Any] = {
        "read_mode": mode, "ranks": ranks, "replica_ranks": ranks if mode == "distributed" else None,
        "datasets": ["oc2020", "mptrj"],
        "split": "train", "samples": 1800, "bytes_per_sample_mean": 2000.0, "open_s": 0.01,
        "nodes": 1, "rss_bytes": 2**28, "data_origins": ["stand-in for OC2020", "sample of MPTrj"],
    }  # fmt: skip
    if floor_us:
        reading["floor"] = {"us_per_sample": floor_us, "description": "a copy of as many bytes in memory"}
    log.write_fact("reading", reading)
    for number in range(9):
        seconds = us_per_sample * 1e-6 * 32 * (1 + 0.01 * (number - 4))
        log.write("sample", duration_s=seconds, batch_size=32, bytes=64_000, ranks=ranks, round=number)
    log.write("done")


def write_all_datasets(out: Path) -> None:
    """Write conversions of all sixteen datasets, and readings in four modes on three numbers of ranks."""
    rng = np.random.default_rng(0)
    for k in range(len(HEADS)):
        write_conversion(out, k, count=int(rng.integers(300, 3000)))
    for mode, us in (("disk", 190.0), ("preload", 9.0), ("node-shared", 14.0), ("distributed", 40.0)):
        for ranks in (1, 2, 4):
            write_reading(out, mode, ranks, us * (1 + 0.3 * math.log2(ranks)), floor_us=0.6 + 0.1 * ranks)


def test_tables_contain_the_values_of_facts(tmp_path: Path) -> None:
    write_conversion(tmp_path, 3)
    write_reading(tmp_path, "disk", 4, 100.0, floor_us=2.0)
    tables = build_tables(load_runs(tmp_path / "runs"))
    row = tables["datasets"].iloc[0]
    assert (row["dataset"], row["data_origin"], row["structures"], row["excluded"]) == ("oc2020", "stand-in", 900, 4)
    assert row["excluded_kinds"] == "3 not finite, 1 duplicate"
    assert row["elements"] == len(tables["elements"])
    assert row["undetermined_elements"] == "Na, Cl"
    assert row["periodic_fraction"] == 1.0
    sizes = tables["distributions"][tables["distributions"]["quantity"] == "atoms_per_structure"]
    assert sizes["count"].sum() == 900
    assert (sizes["low"] < sizes["high"]).all()
    energies = tables["distributions"][tables["distributions"]["quantity"] == "energy_ev_per_atom"]
    assert energies["low"].is_monotonic_increasing
    reading = tables["reading"].iloc[0]
    assert reading["us_per_sample"] == pytest.approx(100.0)
    assert (reading["us_per_sample_low"], reading["us_per_sample_high"]) == pytest.approx((97.0, 103.0))
    assert reading["samples_per_s"] == pytest.approx(4 / 100e-6)
    assert reading["mb_per_s"] == pytest.approx(4 * 2000 / 100)
    assert reading["lower_bound_us"] == 2.0


def test_reading_has_one_row_per_mode(tmp_path: Path) -> None:
    log = start_case(tmp_path, "data-local", "read-all", "data")
    modes = ("on_demand", "preload")
    log.write_fact("reading", [{"read_mode": m, "ranks": 2, "datasets": ["qm7x"]} for m in modes])
    for number in range(6):
        for mode, seconds in zip(modes, (1e-2, 1e-3), strict=True):
            log.write("sample", read_mode=mode, duration_s=seconds, batch_size=100, bytes=10**6, ranks=2, round=number)
    log.write("done")
    table = build_tables(load_runs(tmp_path / "runs"))["reading"].set_index("read_mode")
    assert table["us_per_sample"].to_dict() == pytest.approx({"on_demand": 100.0, "preload": 10.0})
    assert table["batches"].tolist() == [6, 6]


def test_official_files_are_not_called_stand_ins(tmp_path: Path) -> None:
    write_conversion(tmp_path, 3)
    log = tmp_path / "runs" / "data-local" / "convert-oc2020" / "events.jsonl"
    log.write_text(log.read_text().replace('"stand-in"', '"official"'))
    write_report(tmp_path)
    page = read_pages(tmp_path)
    assert "official files of OC2020" in page
    assert "stand-in" not in page


def test_only_the_latest_finished_conversion_of_a_dataset_counts(tmp_path: Path) -> None:
    write_conversion(tmp_path, 3, count=700, name="a", time_s=30.0)
    write_conversion(tmp_path, 3, count=500, name="b", time_s=20.0)
    write_conversion(tmp_path, 3, count=300, name="c", time_s=40.0)
    (tmp_path / "runs" / "data-local" / "c" / "exit_code").write_text("1\n")
    assert build_tables(load_runs(tmp_path / "runs"))["datasets"]["structures"].tolist() == [700]


def test_data_section_shows_every_dataset_and_names_stand_ins(tmp_path: Path) -> None:
    write_all_datasets(tmp_path)
    write_report(tmp_path)
    page = read_pages(tmp_path)
    assert 'id="data"' in page
    assert "PBE &lt;&amp; co&gt;" in page
    for head, _, sample in HEADS:
        assert (f"sample of {head}" if sample else f"stand-in for {head}") in page
    for name in ("imbalance", "elements", "elements-by-dataset", "distributions", "reading-local"):
        for ending in ("svg", "png"):
            assert (tmp_path / "figures" / f"data-{name}.{ending}").stat().st_size > 5000
    assert len(pd.read_csv(tmp_path / "tables" / "datasets.csv")) == 16
    assert len(pd.read_csv(tmp_path / "tables" / "reading.csv")) == 12
    assert not re.search(r"\bnan\b", (tmp_path / "report.md").read_text())


def test_data_page_is_empty_without_data(tmp_path: Path) -> None:
    start_case(tmp_path, "ladder-local", "none", "ladder").write("done")
    write_report(tmp_path)
    assert 'id="data"' not in read_pages(tmp_path)
    assert not (tmp_path / "tables" / "datasets.csv").exists()
    assert not list((tmp_path / "figures").glob("data-*"))


@pytest.mark.parametrize("facts", ["conversions", "reading"])
def test_data_section_shows_conversion_or_reading_alone(tmp_path: Path, facts: str) -> None:
    """The conversion has no statistics, and the reading has no floor."""
    if facts == "reading":
        write_reading(tmp_path, "disk", 1, 50.0)
    else:
        write_conversion(tmp_path, 0)
        log = tmp_path / "runs" / "data-local" / "convert-alexandria" / "events.jsonl"
        lines = [line for line in log.read_text().splitlines(keepends=True) if '"statistics"' not in line]
        log.write_text("".join(lines))
    write_report(tmp_path)
    page = read_pages(tmp_path)
    assert 'id="data"' in page
    assert ("data-reading-local.svg" in (tmp_path / "report.md").read_text()) == (facts == "reading")


def test_elements_are_located_in_the_periodic_table() -> None:
    cells = {s: locate_element(z) for z, s in enumerate(ELEMENT_SYMBOLS, 1)}
    assert len(set(cells.values())) == len(ELEMENT_SYMBOLS) == 118
    assert [cells[s] for s in ("H", "He", "Li", "B", "Ne", "Sc", "Zn", "Hf", "Og")] == [
        (0, 0), (0, 17), (1, 0), (1, 12), (1, 17), (3, 2), (3, 11), (5, 3), (6, 17),
    ]  # fmt: skip
    assert cells["La"][1] == 2
    assert cells["Lr"] == (8.4, 16)


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0"), (7, "7"), (999, "999"), (9_996, "10k"), (1_580_000, "1.6M"), (133_900_000, "134M")]
)
def test_format_count_uses_three_digits(count: int, text: str) -> None:
    assert format_count(count) == text
