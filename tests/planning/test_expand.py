"""Suites expand to cases whose ids depend on their content alone."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.config import resources, system
from harness.config import suite as suites
from harness.config.suite import Suite
from harness.planning.expand import expand, select
from harness.protocol.errors import UsageError
from tests.conftest import ROOT, Harness

LOCAL = system.load(resources.find("systems", "local"), {})
BASE = {"workload": "random", "precision": "fp64"}


@given(
    st.dictionaries(st.sampled_from("abcdef"), st.lists(st.integers(0, 9), min_size=1, unique=True), max_size=4),
    st.randoms(),
)
def test_ids_do_not_depend_on_order(matrix: dict[str, list[int]], random: st.Random) -> None:  # type: ignore[name-defined]
    keys = list(matrix)
    random.shuffle(keys)
    shuffled = {k: random.sample(matrix[k], len(matrix[k])) for k in keys}
    one, two = (
        expand(Suite(name="s", title="S", program="ladder", parameters=BASE, matrix=m), LOCAL)
        for m in (matrix, shuffled)
    )
    count = 1
    for values in matrix.values():
        count *= len(values)
    assert len({c.id for c in one.cases}) == len(one.cases) == count
    assert {c.id for c in one.cases} == {c.id for c in two.cases}


def test_equal_work_is_refused() -> None:
    suite = Suite(name="s", title="S", program="ladder", parameters=BASE, matrix={"seed": [1, 2, 1]})
    with pytest.raises(UsageError, match="are the same work"):
        expand(suite, LOCAL)


def test_settings_are_part_of_the_work() -> None:
    suite = Suite(name="s", title="S", program="ladder", parameters=BASE)
    two_threads = system.load(resources.find("systems", "local"), {"threads": "2"})
    assert expand(suite, LOCAL).cases[0].id != expand(suite, two_threads).cases[0].id


def test_selection_by_name_and_tag() -> None:
    plan = expand(suites.load(resources.find("suites", "ladder")), LOCAL)
    assert [c.name for c in select(plan, ["random"], [], ["fp32"]).cases] == ["ladder-random-fp64"]
    assert select(plan, [], ["inference"], []).cases == plan.cases
    assert not select(plan, [], ["benchmark"], []).cases


def test_every_shipped_suite_and_system_is_valid(harness: Harness) -> None:
    done = harness("list")
    assert done.returncode == 0
    for name in [*resources.names("suites"), *resources.names("systems")]:
        assert f" {name} " in done.stdout
        assert done.stdout.count("\n") == len(resources.names("suites")) + len(resources.names("systems"))


def test_help_answers_fast_and_without_torch() -> None:
    """In processor time, which the load of a machine changes little."""
    assert min(_seconds([sys.executable, "-m", "harness", "--help"]) for _ in range(5)) < 0.3
    script = "import sys; from harness.cli.main import main; main(['plan', 'ladder']); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def _seconds(command: list[str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
