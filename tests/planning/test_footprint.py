"""File counts of large jobs follow from those of small runs, and a bound that is exceeded is a warning."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest

from harness.config import resources, suite, system
from harness.planning import footprint
from harness.planning.expand import expand_suite
from harness.planning.footprint import (
    Law,
    MeasuredRun,
    compute_all_reduce_bytes,
    estimate_case,
    find_largest_folders,
    fit_law,
)


def make_run(nodes: int, ranks: int) -> MeasuredRun:
    return MeasuredRun(nodes, ranks, {}, {}, {}, 1.0)


@pytest.fixture
def largest_case() -> dict[str, Any]:
    site = system.load_system(resources.find_resource("systems", "frontier"), {})
    plan = expand_suite(suite.load_suite(resources.find_resource("suites", "scaling"), "frontier"), site)
    return asdict(max(plan.cases, key=lambda case: case.ranks))


def test_law_of_small_runs_is_recovered() -> None:
    law = Law(7.0, 2.0, 3.0)
    runs = [make_run(n, p) for n, p in ((1, 2), (2, 2), (2, 4))]
    fitted = fit_law(runs, [law.compute(run.nodes, run.ranks) for run in runs])
    assert fitted.compute(9400, 75200) == pytest.approx(law.compute(9400, 75200))


def test_all_reduce_never_sends_more_than_twice_the_gradient() -> None:
    assert compute_all_reduce_bytes(2, 100.0) == 100.0
    assert 199.0 < compute_all_reduce_bytes(75_200, 100.0) < 200.0


def test_environment_on_a_shared_file_system_is_a_warning(largest_case: dict[str, Any]) -> None:
    estimates = {e.name: e for e in estimate_case(largest_case, 9400, 75_200)}
    environment = estimates[footprint.PLACES["environment"]]
    assert environment.is_exceeded
    assert "archive" in environment.format()
    largest_case["settings"]["archive"] = "environment.tar.gz"
    assert footprint.PLACES["environment"] not in {e.name for e in estimate_case(largest_case, 9400, 75_200)}
    assert not estimates["files in the case's folder"].is_exceeded
    assert not estimates["event log"].is_exceeded


def test_screening_on_all_nodes_opens_few_files_on_a_shared_disk() -> None:
    site = system.load_system(resources.find_resource("systems", "frontier"), {"archive": "environment.tar.gz"})
    plan = expand_suite(suite.load_suite(resources.find_resource("suites", "screening"), "frontier"), site)
    case = max(plan.cases, key=lambda case: case.ranks)
    assert case.ranks == 75_200
    for estimate in estimate_case(asdict(case), 9400, case.ranks):
        assert not estimate.is_exceeded, estimate.format()
    runs = footprint.load_file_use().programs["screening"].runs
    assert fit_law(runs, [run.opens["case"] for run in runs]).per_rank <= 0.1


def test_sampler_on_every_gpu_fills_a_folder(largest_case: dict[str, Any]) -> None:
    assert "files in telemetry/" not in {e.name for e in estimate_case(largest_case, 1024, 8192)}
    largest_case["settings"]["telemetry"] = "sampler"
    (files,) = [e for e in estimate_case(largest_case, 9400, 75_200) if e.name == "files in telemetry/"]
    assert (files.value, files.is_exceeded) == (75_200, True)


def test_program_that_was_not_measured_has_no_estimate(
    largest_case: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(footprint, "load_file_use", lambda: footprint.FileUse("none", {}))
    assert estimate_case(largest_case, 1024, 8192) == []


def test_numbered_folders_are_counted_one_by_one() -> None:
    """A numbered folder does not grow with the number of nodes, but its parent may."""
    files = {".": 6, "results-00000.bp": 7, "results-00001.bp": 9, "telemetry": 2}
    assert find_largest_folders(files) == {".": 6, "results-*.bp": 9, "telemetry": 2}
    estimates = estimate_case({"program": "screening", "parameters": {}, "settings": {}}, 9400, 75200)
    values = {estimate.name: estimate.value for estimate in estimates}
    assert values["files in results-*.bp/"] == 7
    assert 100 < values["files in the case's folder"] < 10_000
