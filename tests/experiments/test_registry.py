"""Every experiment defines its tables and costs, and every program belongs to one experiment."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter

import pytest

from harness.experiments.experiment import Experiment
from harness.experiments.registry import SHIPPED, find_experiment, load_experiments
from harness.experiments.tables import build_results
from harness.protocol.registry import PROGRAMS
from tests.conftest import ROOT

EXPERIMENTS = {experiment.package: experiment for experiment in load_experiments()}


def test_registry_lists_every_package_of_experiments() -> None:
    packages = {f"harness.experiments.{p.parent.name}" for p in (ROOT / "harness/experiments").glob("*/metrics.py")}
    assert set(SHIPPED) == packages
    assert set(EXPERIMENTS) == packages


def test_every_program_has_one_experiment() -> None:
    counts = Counter(program for experiment in EXPERIMENTS.values() for program in experiment.programs)
    assert set(PROGRAMS) <= set(counts)
    assert set(counts.values()) == {1}
    assert find_experiment("no program") is None


@pytest.mark.parametrize("experiment", EXPERIMENTS.values(), ids=lambda experiment: experiment.page)
def test_experiment_without_runs_has_empty_tables_and_costs_of_known_tables(experiment: Experiment) -> None:
    tables = experiment.metrics.build_tables([])
    assert tables
    assert all(len(table.columns) and table.empty for table in tables.values())
    assert set(experiment.costs) <= set(tables)
    for name, join in experiment.costs.items():
        assert {*join.keys, *join.name_columns} <= set(tables[name].columns)


def test_tables_of_no_runs_have_all_their_columns() -> None:
    results = build_results([])
    assert {"samples", "figures_of_merit", "ladder", "training_runs", "cost_cases"} <= set(results.tables())
    assert "energy_per_result_j" in results["ladder"].columns


def test_tables_of_experiments_import_neither_pandas_nor_matplotlib() -> None:
    script = "import sys, harness.experiments.tables; sys.exit(bool({'pandas', 'matplotlib'} & sys.modules.keys()))"
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)
