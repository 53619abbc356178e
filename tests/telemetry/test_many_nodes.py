"""The work for a run grows no faster than its nodes, and few files are open at a time."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.execution.case_files import read_last_progress, read_result
from harness.experiments.scaling.metrics import build_tables
from harness.results.runs import load_run_folder
from harness.telemetry.collect import collect_usage
from harness.telemetry.prometheus_export import MAX_OPEN_FILES, PrometheusExport
from tests.support.large_run import count_operations, make_large_run

SMALL, LARGE = 6, 60
WORK: dict[str, Callable[[Path], Any]] = {
    "collect": read_result,
    "status": read_last_progress,
    "telemetry": lambda folder: collect_usage([load_run_folder(str(folder))]),
    "report": lambda folder: build_tables([load_run_folder(str(folder))]),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("runs")
    return [make_large_run(root / str(nodes), nodes) for nodes in (SMALL, LARGE)]


@pytest.mark.parametrize("name", WORK)
def test_work_grows_at_most_linearly_with_the_nodes(runs: list[Path], name: str) -> None:
    small, large = (count_operations(lambda folder=folder: WORK[name](folder)) for folder in runs)  # type: ignore[misc]
    assert small > 0
    assert large <= LARGE / SMALL * small


def test_large_run_is_read_completely(runs: list[Path]) -> None:
    record = load_run_folder(str(runs[1]))
    assert (record.state, record.error) == ("done", None)
    usages = collect_usage([record]).usages
    assert {(usage.nodes, usage.nodes_sampled) for usage in usages if usage.window.scope == "case"} == {(LARGE, LARGE)}
    energies = [usage.energy_j for usage in usages if usage.window.scope == "case"]
    assert energies[0]["accelerator"] == pytest.approx(300.0 * 8 * LARGE * (record.duration_s or 0.0))
    assert build_tables([record])["scaling"]["ranks"].tolist() == [8 * LARGE]


def test_export_of_many_files_has_few_of_them_open(runs: list[Path]) -> None:
    paths = sorted((runs[1] / "telemetry").iterdir()) * 3
    assert len(paths) > 2 * MAX_OPEN_FILES
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + MAX_OPEN_FILES + 48, before[1]))
    try:
        assert sum(1 for _ in PrometheusExport(*paths).iter_series()) > LARGE
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
