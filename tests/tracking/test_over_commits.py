"""The project's own benchmarks over commits run on this commit."""

from __future__ import annotations

import importlib
import itertools
import json
import re
from typing import Any

import pytest

from harness.tracking.asv_runner import load_project
from tests.benchmarks.over_commits.given import Sampled
from tests.conftest import ROOT

MODULES = sorted(path.stem for path in (ROOT / "tests" / "benchmarks" / "over_commits").glob("*.py"))


@pytest.mark.parametrize("name", [m for m in MODULES if m not in ("__init__", "given")])
def test_benchmark_runs(name: str) -> None:
    module = importlib.import_module(f"tests.benchmarks.over_commits.{name}")
    kinds = [k for k in vars(module).values() if isinstance(k, type) and issubclass(k, Sampled) and k is not Sampled]
    assert kinds
    for kind in kinds:
        calls = [call for call in dir(kind) if call.startswith("time_")]
        assert calls
        for point in itertools.product(*getattr(kind, "params", ())):
            benchmark: Any = kind()
            benchmark.setup(*point)
            for call in calls:
                getattr(benchmark, call)(*point)


def test_threshold_patterns_match_existing_benchmarks() -> None:
    project = load_project(ROOT, None)
    assert project.get_threshold("model.Training.time_step") == 0.02
    assert project.get_threshold("store.Get.time_get('preload')") == 0.05
    patterns = project.config["regressions_thresholds"]
    assert all(any(re.match(pattern, f"{m}.x") for m in MODULES) for pattern in patterns), json.dumps(patterns)
