"""The settings that HydraGNN's implementation needs are checked before any job is submitted."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from harness.config import resources
from harness.config.suite import Suite, load_suite
from harness.config.system import ResolvedSystem, load_system
from harness.planning.expand import expand_suite
from harness.protocol.errors import UsageError

SUITE = Suite(
    name="s", title="S", program="ladder", parameters={"workload": "random", "precision": "fp64"},
    matrix={"implementation": ["reference", "hydragnn"]},
)  # fmt: skip


def load(name: str = "local", **settings: str) -> ResolvedSystem:
    """Load a shipped system with settings."""
    return load_system(resources.find_resource("systems", name), settings)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Create a folder that looks like a checkout of HydraGNN."""
    (tmp_path / "hydragnn").mkdir()
    (tmp_path / "hydragnn" / "__init__.py").touch()
    return tmp_path


@pytest.mark.parametrize("name", ["local", "slurm", "pbs"])
def test_error_without_a_checkout_names_the_setting(name: str) -> None:
    with pytest.raises(UsageError, match="needs a checkout of HydraGNN: give -S hydragnn_folder=") as raised:
        expand_suite(SUITE, load(name))
    assert "\n" not in str(raised.value)


def test_checkout_and_interpreter_must_exist_if_jobs_run_on_this_machine(checkout: Path) -> None:
    with pytest.raises(UsageError, match=r"^setting hydragnn_folder: /nowhere is not a checkout of HydraGNN"):
        expand_suite(SUITE, load(hydragnn_folder="/nowhere"))
    with pytest.raises(UsageError, match=r"^setting hydragnn_python: /nowhere/python is not an executable program"):
        expand_suite(SUITE, load(hydragnn_folder=str(checkout), hydragnn_python="/nowhere/python"))
    plan = expand_suite(SUITE, load(hydragnn_folder=str(checkout), hydragnn_python=sys.executable))
    assert [case.name for case in plan.cases] == ["s-reference", "s-hydragnn"]
    assert plan.cases[1].settings["hydragnn_folder"] == str(checkout)


def test_checkout_on_another_machine_need_not_exist_here() -> None:
    assert len(expand_suite(SUITE, load("slurm", hydragnn_folder="/on/the/cluster")).cases) == 2


def test_folder_of_the_checkout_does_not_change_ids(checkout: Path) -> None:
    first, second = (expand_suite(SUITE, load("slurm", hydragnn_folder=str(p))) for p in (checkout, "/elsewhere"))
    assert [case.id for case in first.cases] == [case.id for case in second.cases]


def test_error_names_a_system_without_the_settings(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "name: mine\ntitle: Mine\nscheduler: local\ntemplate: local.sh.j2\nnode: {ranks_per_node: 1}\nlaunch: ['']\n"
    )
    with pytest.raises(UsageError, match="system 'mine' declares no setting 'hydragnn_folder'"):
        expand_suite(SUITE, load_system(path, {}))


def test_error_names_a_program_without_other_implementations(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text("name: s\ntitle: S\nprogram: precision\nmatrix:\n  implementation: [reference, hydragnn]\n")
    with pytest.raises(UsageError, match=r"s\.yaml:5:3: program 'precision' has only one implementation"):
        load_suite(path)
