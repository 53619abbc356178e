"""The page on potentials shows the energy that each has used, or why it is unknown."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.experiments.models.metrics import count_work
from harness.experiments.models.page import build_summary_block, describe_models
from harness.experiments.tables import build_results
from harness.protocol.events import JsonLinesLog
from harness.report.render import write_report
from harness.results.runs import load_runs
from tests.conftest import read_pages


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Return results with a finished comparison of two models, without telemetry."""
    folder = tmp_path / "runs" / "models-local" / "models"
    folder.mkdir(parents=True)
    definitions = {name: {"module": "m", "class_name": "C"} for name in ("slow", "fast")}
    case = {"id": "models", "name": "models", "suite": "models", "program": "models"}
    (folder / "case.json").write_text(json.dumps(case | {"parameters": {"definitions": definitions}}))
    (folder / "exit_code").write_text("0\n")
    log = JsonLinesLog(folder / "events.jsonl")
    log.write("start")
    log.write_fact("threads", 1)
    for number in range(6):
        for model, seconds in (("slow", 2.0), ("fast", 1.0)):
            sample = {"model": model, "atoms": 500_000, "round": number, "device_s": seconds, "load_1min": 0.0}
            log.write("sample", **sample)
    log.write("done")
    return tmp_path


def test_energy_without_a_sensor_is_absent_with_its_reason(out: Path) -> None:
    write_report(out)
    page = read_pages(out)
    assert "J per million atoms" in page
    assert "no telemetry" in page


def test_energy_is_divided_by_millions_of_atoms(out: Path) -> None:
    (record,) = load_runs(out / "runs")
    assert count_work(record, "stage", "fast") == (3.0, "million atoms")
    rows = build_results([record]).tables()["models"].assign(energy_per_result_j=[12.0, None], energy_scope="CPUs")
    block = build_summary_block(rows, {"fast": "too short"})
    column = block.columns.index("J per million atoms")
    assert [row[column] for row in block.rows] == ["12 (CPUs)", "too short"]


def test_end_of_the_search_for_the_largest_crystal_has_its_reason(out: Path) -> None:
    log = JsonLinesLog(out / "runs" / "models-local" / "models" / "events.jsonl")
    log.write("largest_size", model="slow", atoms=4000, limit="no answer within 300 s")
    rows = build_results(load_runs(out / "runs")).tables()["models"]
    assert describe_models(rows)[-1] == "Largest crystal of slow: 4,000 atoms; no answer within 300 s."
