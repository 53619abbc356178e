"""Settings that another implementation needs are checked before any job is submitted."""

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
    return load_system(resources.find_resource("systems", name), settings)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    (tmp_path / "hydragnn").mkdir()
    (tmp_path / "hydragnn" / "__init__.py").touch()
    return tmp_path


@pytest.mark.parametrize("name", ["local", "slurm", "pbs"])
def test_without_a_checkout_the_setting_is_named(name: str) -> None:
    with pytest.raises(UsageError, match="needs a checkout of HydraGNN: give -S hydragnn_folder=") as raised:
        expand_suite(SUITE, load(name))
    assert "\n" not in str(raised.value)


def test_this_machine_is_searched_for_the_checkout_and_its_interpreter(checkout: Path) -> None:
    with pytest.raises(UsageError, match=r"^setting hydragnn_folder: /nowhere is no checkout of HydraGNN"):
        expand_suite(SUITE, load(hydragnn_folder="/nowhere"))
    with pytest.raises(UsageError, match=r"^setting hydragnn_python: /nowhere/python is no program"):
        expand_suite(SUITE, load(hydragnn_folder=str(checkout), hydragnn_python="/nowhere/python"))
    plan = expand_suite(SUITE, load(hydragnn_folder=str(checkout), hydragnn_python=sys.executable))
    assert [case.name for case in plan.cases] == ["s-reference", "s-hydragnn"]
    assert plan.cases[1].settings["hydragnn_folder"] == str(checkout)


def test_folders_of_other_machines_are_not_searched_for_here() -> None:
    assert len(expand_suite(SUITE, load("slurm", hydragnn_folder="/on/the/cluster")).cases) == 2


def test_the_place_of_a_checkout_does_not_change_ids(checkout: Path) -> None:
    here, there = (expand_suite(SUITE, load("slurm", hydragnn_folder=str(p))) for p in (checkout, "/elsewhere"))
    assert [case.id for case in here.cases] == [case.id for case in there.cases]


def test_a_system_without_the_settings_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "name: mine\ntitle: Mine\nscheduler: local\ntemplate: local.sh.j2\nnode: {ranks_per_node: 1}\nlaunch: ['']\n"
    )
    with pytest.raises(UsageError, match="system 'mine' declares no setting 'hydragnn_folder'"):
        expand_suite(SUITE, load_system(path, {}))


def test_a_program_without_implementations_is_named(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text("name: s\ntitle: S\nprogram: precision\nmatrix:\n  implementation: [reference, hydragnn]\n")
    with pytest.raises(UsageError, match=r"s\.yaml:5:3: program 'precision' has no implementation but its own"):
        load_suite(path)
