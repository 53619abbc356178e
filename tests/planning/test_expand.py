"""A suite expands to cases whose ids depend only on their content."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.config import resources
from harness.config.suite import Suite, load_suite
from harness.config.system import load_system
from harness.planning.expand import expand_suite, filter_cases
from harness.protocol.errors import UsageError
from tests.conftest import Harness

LOCAL = load_system(resources.find_resource("systems", "local"), {})
BASE = {"workload": "random", "precision": "fp64"}


@given(
    st.dictionaries(st.sampled_from("abcdef"), st.lists(st.integers(0, 9), min_size=1, unique=True), max_size=4),
    st.randoms(),
)
def test_ids_do_not_depend_on_the_order_of_axes_and_values(matrix: dict[str, list[int]], random: st.Random) -> None:  # type: ignore[name-defined]
    keys = list(matrix)
    random.shuffle(keys)
    shuffled = {k: random.sample(matrix[k], len(matrix[k])) for k in keys}
    plan, shuffled_plan = (
        expand_suite(Suite(name="s", title="S", program="ladder", parameters=BASE, matrix=m), LOCAL)
        for m in (matrix, shuffled)
    )
    count = 1
    for values in matrix.values():
        count *= len(values)
    assert len({c.id for c in plan.cases}) == len(plan.cases) == count
    assert {c.id for c in plan.cases} == {c.id for c in shuffled_plan.cases}


def test_cases_with_equal_parameters_are_refused() -> None:
    suite = Suite(name="s", title="S", program="ladder", parameters=BASE, matrix={"seed": [1, 2, 1]})
    with pytest.raises(UsageError, match="are identical"):
        expand_suite(suite, LOCAL)


def test_settings_that_affect_results_change_ids() -> None:
    suite = Suite(name="s", title="S", program="ladder", parameters=BASE)
    two_threads = load_system(resources.find_resource("systems", "local"), {"threads": "2"})
    assert expand_suite(suite, LOCAL).cases[0].id != expand_suite(suite, two_threads).cases[0].id


def test_cases_are_filtered_by_name_and_tag() -> None:
    plan = expand_suite(load_suite(resources.find_resource("suites", "ladder")), LOCAL)
    assert [c.name for c in filter_cases(plan, ["random"], [], ["fp32"]).cases] == ["ladder-random-fp64"]
    assert filter_cases(plan, [], ["inference"], []).cases == plan.cases
    assert not filter_cases(plan, [], ["benchmark"], []).cases


def test_list_shows_every_shipped_suite_and_system(harness: Harness) -> None:
    result = harness("list")
    assert result.returncode == 0
    names = [*resources.list_resources("suites"), *resources.list_resources("systems")]
    assert all(f" {name} " in result.stdout for name in names)
    assert result.stdout.count("\n") == len(names)
