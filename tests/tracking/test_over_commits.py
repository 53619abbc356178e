"""The benchmarks that are compared over commits run on this commit."""

from __future__ import annotations

import importlib
import itertools
import json
import re
from typing import Any

import pytest

from harness.tracking.asv_runner import load_project
from tests.benchmarks.over_commits.sampling import Benchmark
from tests.conftest import ROOT

MODULES = sorted(path.stem for path in (ROOT / "tests" / "benchmarks" / "over_commits").glob("*.py"))


@pytest.mark.parametrize("name", [m for m in MODULES if m not in ("__init__", "sampling")])
def test_benchmark_runs(name: str) -> None:
    module = importlib.import_module(f"tests.benchmarks.over_commits.{name}")
    classes = [
        k for k in vars(module).values() if isinstance(k, type) and issubclass(k, Benchmark) and k is not Benchmark
    ]
    assert classes
    for benchmark_class in classes:
        methods = [method for method in dir(benchmark_class) if method.startswith("time_")]
        assert methods
        for parameters in itertools.product(*getattr(benchmark_class, "params", ())):
            benchmark: Any = benchmark_class()
            benchmark.setup(*parameters)
            for method in methods:
                getattr(benchmark, method)(*parameters)


def test_threshold_patterns_match_existing_benchmarks() -> None:
    project = load_project(ROOT, None)
    assert project.get_threshold("model.Training.time_step") == 0.02
    assert project.get_threshold("store.Get.time_get('preload')") == 0.05
    patterns = project.config["regressions_thresholds"]
    assert all(any(re.match(pattern, f"{m}.x") for m in MODULES) for pattern in patterns), json.dumps(patterns)
