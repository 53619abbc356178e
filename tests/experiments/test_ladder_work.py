"""The report shows the arithmetic, traffic and memory of a ladder correctly for logs with known numbers."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from harness.experiments.ladder import page
from harness.experiments.ladder.metrics import build_ladder_table, compute_matmul_rates, compute_roofline
from harness.experiments.ladder.stages import hash_setup
from harness.protocol.events import JsonLinesLog
from harness.report.render import write_report
from harness.results.runs import RunRecord, load_runs
from tests.report.test_report import write_run

CEILINGS = {
    "squares": [{"dtype": "float64", "gflop_per_s": 50.0}, {"dtype": "bfloat16", "gflop_per_s": 250.0}],
    "copy_gb_per_s": 10.0,
    "products": [
        {"operation": "nodes", "dtype": "float64", "sizes": [9, 9, 9], "gflop_per_s": 40.0},
        {"operation": "heads", "dtype": "float64", "sizes": [9, 9, 9, 9], "gflop_per_s": 20.0},
        {"operation": "nodes", "dtype": "bfloat16", "sizes": [9, 9, 9], "gflop_per_s": 200.0},
    ],
}
FLOPS = [
    {"operation": "nodes", "dtype": "float64", "flops": 4e9},
    {"operation": "heads", "dtype": "float64", "flops": 1e9},
]


def test_attainable_time_is_the_longer_one_of_arithmetic_and_traffic() -> None:
    arithmetic_s = 4 / 40 + 1 / 20
    rates = compute_roofline(FLOPS, int(1e9), CEILINGS, 0.3)
    assert rates["attainable_fraction"] == pytest.approx(arithmetic_s / 0.3)
    assert rates["attainable_gflop_per_s"] == pytest.approx(5 / arithmetic_s)
    assert rates["gflop_per_s"] == pytest.approx(5 / 0.3)
    traffic_rates = compute_roofline(FLOPS, int(2e9), CEILINGS, 0.3)
    assert traffic_rates["attainable_fraction"] == pytest.approx(2 / 10 / 0.3)


def test_attainable_time_uses_the_ceiling_of_each_type() -> None:
    bf16_flops = [{"operation": "nodes", "dtype": "bfloat16", "flops": 4e9}, FLOPS[1]]
    assert compute_roofline(bf16_flops, 1, CEILINGS, 0.1)["attainable_fraction"] == pytest.approx(
        (4 / 200 + 1 / 20) / 0.1
    )


def test_matmul_rates_use_square_products_of_same_type() -> None:
    mixed = [
        {"operation": "nodes", "dtype": "bfloat16", "flops": 4e9},
        FLOPS[1],
        {"operation": "messages", "dtype": "x", "flops": 1},
    ]
    rates = compute_matmul_rates(mixed, CEILINGS, 0.1)
    assert rates["matrix_peak_fraction"] == pytest.approx((4 / 250 + 1 / 50) / 0.1)
    assert rates["matrix_gflop_per_s"] == pytest.approx(50.0)
    assert math.isnan(compute_matmul_rates(mixed, {}, 0.1)["matrix_peak_fraction"])


def test_attainable_time_is_absent_without_counts() -> None:
    assert compute_roofline(None, 1, CEILINGS, 1.0) == {}
    assert compute_roofline(FLOPS, 1, {"squares": []}, 1.0) == {}
    assert "attainable_fraction" not in compute_roofline(FLOPS, None, CEILINGS, 1.0)


def add_work(out: Path, precision: str, **fields: Any) -> None:
    """Add counts of arithmetic, traffic, memory and padding to the case that write_run has written."""
    folder = out / "runs" / "ladder-local" / f"case-{precision}"
    log = JsonLinesLog(folder / "events.jsonl")
    log.write_fact("ceilings", CEILINGS)
    log.write_fact("free_bytes", 10 * 2**20)
    for stage in ("baseline", "batched_heads", "torch_compile"):
        log.write(
            "warm_up", stage=stage, first_call_s=1.0, matrix_flops=5e9, flops=FLOPS, memory_traffic_bytes=int(1e9),
            peak_bytes=2**20,
        )  # fmt: skip
    log.write(
        "padding",
        stage="torch_compile",
        shapes=[[17, 960, 100], [17, 992, 100]],
        padding_atom_fraction=0.05,
        padding_edge_fraction=0.01,
    )
    groups = [
        {"group": "matrix products", "ms": 3.0, "fraction": 0.75},
        {"group": "framework", "ms": 1.0, "fraction": 0.25},
    ]
    rows = [{"operation": "aten::mm <x>", "calls": 3, "ms": 3.0, "fraction": 0.75}]
    log.write("profile", stage="torch_compile", groups=groups, rows=rows)
    log.write("done")


def test_ladder_table_has_traffic_batch_size_and_padding(tmp_path: Path) -> None:
    write_run(tmp_path)
    add_work(tmp_path, "fp64")
    last = build_ladder_table(load_runs(tmp_path / "runs")).set_index("stage").loc["torch_compile"]
    assert last["memory_traffic_gb"] == 1.0
    assert last["max_batch_size"] == 160, "16 structures need a tenth of the free memory"
    assert (last["padding_atom_fraction"], last["padding_edge_fraction"], last["shapes"]) == (0.05, 0.01, 2)
    assert last["attainable_fraction"] == pytest.approx(0.15 / (10.5 / 40))


def test_ladder_page_shows_work_roofline_and_profile(tmp_path: Path) -> None:
    write_run(tmp_path)
    add_work(tmp_path, "fp64")
    write_report(tmp_path)
    page = (tmp_path / "ladder.html").read_text()
    for text in (
        "FP64: arithmetic, traffic and memory", "Time by kind of operation: torch compile, FP64", "aten::mm &lt;x&gt;",
        "75.0%", "matrix products", ">160<",
    ):  # fmt: skip
        assert text in page, text
    assert list((tmp_path / "figures").glob("*-roofline.png"))


def test_long_page_names_the_table_that_has_the_other_ladders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path)
    write_report(tmp_path)
    mentions = (tmp_path / "ladder.html").read_text().count("FP64 in detail")
    shutil.copytree(tmp_path / "runs" / "ladder-local", tmp_path / "runs" / "ladder-other")
    monkeypatch.setattr(page, "MAX_LADDERS", 1)
    write_report(tmp_path)
    text = (tmp_path / "ladder.html").read_text()
    assert text.count("FP64 in detail") == mentions
    assert "tables/ladder.csv contains 1 ladder more." in text
    assert pd.read_csv(tmp_path / "tables" / "ladder.csv")["folder"].nunique() == 2


def test_ladder_page_shows_logs_without_counts(tmp_path: Path) -> None:
    write_run(tmp_path)
    write_report(tmp_path)
    table = pd.read_csv(tmp_path / "tables" / "ladder.csv")
    assert table["attainable_fraction"].isna().all()
    assert not list((tmp_path / "figures").glob("*-roofline.png"))


def test_repeats_are_ladders_of_their_own() -> None:
    case = {"suite": "ladder", "parameters": {"workload": "random", "precision": "fp64"}, "repeat": 0}
    first, fp32, repeat = (
        hash_setup(RunRecord("c/a", case | changes, "done"))
        for changes in ({}, {"parameters": {"workload": "random", "precision": "fp32"}}, {"repeat": 1})
    )
    assert first == fp32 != repeat
