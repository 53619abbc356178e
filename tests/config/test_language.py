"""The semantics of suites: the cases to which a suite expands, their contents, and the merging of overlays."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.config import expressions
from harness.config.evaluation import ExpressionError
from harness.config.resources import find_resource
from harness.config.suite import Suite, load_suite
from harness.config.system import load_system
from harness.planning.expand import expand_suite
from harness.protocol.case import Case
from harness.protocol.errors import UsageError

LOCAL = load_system(find_resource("systems", "local"), {})
BASE: dict[str, Any] = {"name": "s", "title": "S", "program": "ladder"}
PARAMETERS = {"workload": "random", "precision": "fp64"}
Load = Callable[..., Suite]


def expand_cases(**parts: Any) -> tuple[Case, ...]:
    """Return the cases of a suite of the ladder on this machine."""
    return expand_suite(Suite(**BASE | {"parameters": PARAMETERS} | parts), LOCAL).cases


def expand_axis_values(**parts: Any) -> list[dict[str, Any]]:
    return [case.axis_values for case in expand_cases(**parts)]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Return a function that writes suites to files and loads the first one with load_suite."""

    def call(system: str | None = None, **files: dict[str, Any]) -> Suite:
        for name, data in files.items():
            (tmp_path / f"{name}.yaml").write_text(json.dumps(data))
        return load_suite(tmp_path / f"{next(iter(files))}.yaml", system)

    return call


def test_a_matrix_expands_to_all_combinations_with_the_last_axis_fastest() -> None:
    assert expand_axis_values(matrix={"a": [1, 2], "b": ["x", "y"]}) == [
        {"a": a, "b": b} for a, b in itertools.product([1, 2], ["x", "y"])
    ]
    assert expand_axis_values() == [{}]


def test_axes_of_a_zip_advance_together() -> None:
    zips = {"z": {"seed": [1, 2], "rounds": [3, 4]}}
    assert expand_axis_values(zips=zips) == [{"seed": 1, "rounds": 3}, {"seed": 2, "rounds": 4}]
    result = expand_axis_values(matrix={"a": [1, 2]}, zips=zips | {"y": {"b": [5, 6]}})
    assert len(result) == 8
    assert {(p["seed"], p["rounds"]) for p in result} == {(1, 3), (2, 4)}


def test_exclude_removes_cases_that_match_a_whole_row() -> None:
    matrix = {"a": [1, 2, 3], "b": ["x", "y"]}
    remaining = expand_axis_values(matrix=matrix, exclude=[{"a": [1, 2], "b": "x"}, {"a": 3}])
    assert remaining == [{"a": 1, "b": "y"}, {"a": 2, "b": "y"}]


def test_where_keeps_cases_that_meet_every_condition() -> None:
    matrix = {"a": [1, 2, 3], "b": [1, 2, 3]}
    assert expand_axis_values(matrix=matrix, where=["a < b", "{{ a + b != 4 }}"]) == [
        {"a": 1, "b": 2},
        {"a": 2, "b": 3},
    ]
    assert expand_axis_values(matrix=matrix, variables={"c": "{{ a * b }}"}, where=["c == 9"]) == [{"a": 3, "b": 3}]


@given(
    st.dictionaries(
        st.sampled_from("abc"), st.lists(st.integers(0, 3), min_size=1, max_size=4, unique=True), min_size=1
    ),
    st.dictionaries(st.sampled_from("abc"), st.integers(0, 3), min_size=1),
)
@settings(max_examples=60, deadline=None)
def test_exclude_agrees_with_the_equivalent_condition(matrix: dict[str, list[int]], row: dict[str, int]) -> None:
    row = {axis: value for axis, value in row.items() if axis in matrix}
    condition = " or ".join(f"{axis} != {value}" for axis, value in row.items()) or "true"
    combinations = [dict(zip(matrix, point, strict=True)) for point in itertools.product(*matrix.values())]
    remaining = [p for p in combinations if not row or any(p[a] != v for a, v in row.items())]
    if remaining:
        assert (
            expand_axis_values(matrix=matrix, exclude=[row] if row else [])
            == expand_axis_values(matrix=matrix, where=[condition])
            == remaining
        )
    else:
        with pytest.raises(UsageError, match="no case"):
            expand_axis_values(matrix=matrix, exclude=[row])


@given(st.permutations(["a", "b", "c", "d"]))
@settings(max_examples=24, deadline=None)
def test_variables_may_be_defined_in_any_order(order: list[str]) -> None:
    variables = {"a": 2, "b": "{{ a * seed }}", "c": "{{ [b, a] | max }}", "d": "{{ c + b }}"}
    result = expand_cases(
        matrix={"seed": [1, 5]},
        variables={n: variables[n] for n in order},
        parameters=PARAMETERS | {"rounds": "{{ d }}"},
    )
    assert [c.parameters["rounds"] for c in result] == [4, 20]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("{{ 2 + n }}", 5),
        ("{{ n / 2 }}", 1.5),
        ("{{ 7 // n }}", 2),
        ("{{ n ** 2 }}", 9),
        ("{{ n > 2 and not (n == 5) }}", True),
        ("{{ 'a' if n == 3 else 'b' }}", "a"),
        ("{{ [n, 1] | min }}", 1),
        ("{{ [n, n + 1] }}", [3, 4]),
        ("{{ {'k': n} }}", {"k": 3}),
        ("{{ none }}", None),
        ("{{ '12' | int + n }}", 15),
        ("n is {{ n }}", "n is 3"),
        ("{{ n }}{{ n }}", "33"),
        ("{{ system.name ~ '-' ~ n }}", "local-3"),
        ("{{ settings.threads + n }}", 4),
        ("{{ [10, 20, 30, 40][n] }}", 40),
        ([1, "{{ n }}", {"deep": "{{ n }}"}], [1, 3, {"deep": 3}]),
    ],
)
def test_an_expression_has_the_type_of_its_value(text: Any, value: Any) -> None:
    (case,) = expand_cases(matrix={"n": [3]}, sanity=[{"event": "e", "field": "f", "equals": text}])
    result = case.sanity[0]["equals"]
    assert result == value
    assert type(result) is type(value)


def test_values_of_different_types_give_different_ids() -> None:
    result = expand_cases(matrix={"a": [1, 1.0, "1", True, 0, False, "", [1]]})
    assert len({c.id for c in result}) == len({c.folder_name for c in result}) == len(result) == 8
    assert {c.name for c in result} >= {"s-a_1", "s-a_1_0", "s-1", "s-a_true", "s-a_0", "s-a_false"}
    typed = expand_cases(matrix={"a": [1, 1.0, True]}, sanity=[{"event": "e", "field": "f", "equals": "{{ a }}"}])
    assert [type(c.sanity[0]["equals"]) for c in typed] == [int, float, bool]


def test_equal_parameters_give_equal_ids() -> None:
    with pytest.raises(UsageError, match="are identical"):
        expand_cases(matrix={"seed": [1, "1"]})
    in_matrix, in_parameters = expand_cases(matrix={"seed": [1]}), expand_cases(parameters=PARAMETERS | {"seed": 1})
    assert in_matrix[0].id == in_parameters[0].id


def test_keys_that_do_not_affect_measurements_do_not_change_ids() -> None:
    plain = expand_cases(matrix={"seed": [1, 2]})
    annotated = expand_cases(
        matrix={"seed": [1, 2]},
        description="longer",
        resources={"walltime_minutes": 5},
        tags=["fast"],
        pack=2,
        sanity=[{"event": "sample"}],
    )
    assert [c.id for c in plain] == [c.id for c in annotated]
    assert not {c.id for c in plain} & {
        c.id for c in expand_cases(matrix={"seed": [1, 2]}, resources={"ranks_per_node": 2})
    }


def test_the_first_repeat_has_the_id_of_the_case_without_repeats() -> None:
    once, thrice = expand_cases(matrix={"seed": [1, 2]}), expand_cases(matrix={"seed": [1, 2]}, repeats=3)
    assert [c.repeat for c in thrice] == [0, 1, 2] * 2
    assert [c.id for c in once] == [c.id for c in thrice if c.repeat == 0]
    assert len({c.id for c in thrice}) == len({c.name for c in thrice}) == 6


def test_depends_on_adds_dependencies_between_cases_that_differ_in_one_axis() -> None:
    result = expand_cases(
        matrix={"rounds": [2, 1], "seed": [1, 2]},
        depends_on=[{"cases": {"rounds": 2}, "required_cases": {"rounds": 1}}],
    )
    by_name = {c.name: c for c in result}
    for seed in (1, 2):
        first, second = by_name[f"s-rounds_1-seed_{seed}"], by_name[f"s-rounds_2-seed_{seed}"]
        assert first.depends_on == ()
        assert second.depends_on == (first.folder_name,)
        assert result.index(first) < result.index(second)


def test_ignored_axes_add_dependencies_on_every_value_of_an_axis() -> None:
    rule = {"cases": {"rounds": 2, "seed": 3}, "required_cases": {"rounds": 1}, "ignored_axes": ["seed"]}
    result = expand_cases(matrix={"rounds": [2, 1], "seed": [1, 2, 3]}, depends_on=[rule])
    required = {c.folder_name for c in result if c.axis_values["rounds"] == 1}
    (waiting,) = (c for c in result if c.depends_on)
    assert waiting.axis_values == {"rounds": 2, "seed": 3}
    assert set(waiting.depends_on) == required
    assert len(required) == 3


def test_depends_on_without_cases_applies_to_all_other_cases_and_rules_can_be_chained() -> None:
    result = expand_cases(matrix={"rounds": [3, 2, 1]}, depends_on=[{"required_cases": {"rounds": 1}}])
    first = next(c for c in result if c.axis_values["rounds"] == 1)
    assert [c.depends_on for c in result if c is not first] == [(first.folder_name,)] * 2
    rules = [{"cases": {"rounds": k + 1}, "required_cases": {"rounds": k}} for k in (1, 2)]
    assert [c.axis_values["rounds"] for c in expand_cases(matrix={"rounds": [3, 2, 1]}, depends_on=rules)] == [1, 2, 3]


def test_dependencies_match_repeats() -> None:
    result = expand_cases(matrix={"rounds": [1, 2]}, repeats=2, depends_on=[{"required_cases": {"rounds": 1}}])
    folder = {(c.axis_values["rounds"], c.repeat): c.folder_name for c in result}
    assert {c.repeat: c.depends_on for c in result if c.axis_values["rounds"] == 2} == {
        k: (folder[1, k],) for k in (0, 1)
    }


FILE: dict[str, Any] = {**BASE, "parameters": {**PARAMETERS, "seed": 1}, "resources": {"walltime_minutes": 10}}


def test_an_overlay_changes_the_suite_only_for_the_selected_system(load: Load) -> None:
    parts = {
        "local": {"parameters": {"seed": 2}},
        "slurm": {"parameters": {"seed": None}, "matrix": {"rounds": [1, 2]}},
    }
    data = FILE | {"overlays": parts}
    assert load(None, s=data).parameters == load("aurora", s=data).parameters == FILE["parameters"]
    assert load("local", s=data).parameters == {**PARAMETERS, "seed": 2}
    slurm = load("slurm", s=data)
    assert slurm.parameters == PARAMETERS
    assert slurm.matrix == {"rounds": [1, 2]}
    assert slurm.resources == {"walltime_minutes": 10}


def test_a_shipped_system_names_its_overlay() -> None:
    frontier, scaling = find_resource("systems", "frontier"), find_resource("suites", "scaling")
    assert load_system(frontier, {"account": "abc"}).definition.overlay == "frontier"
    assert load_suite(scaling, "perlmutter").matrix["nodes"] == [1, 2, 4, 8, 16, 32, 64, 128]
    assert load_suite(scaling, "frontier").matrix["nodes"] == [8, 16, 32, 64, 128, 256, 512, 1024]


def test_a_user_system_uses_the_overlay_that_it_names(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from harness.cli.main import main

    load(s=FILE | {"overlays": {"perlmutter": {"matrix": {"rounds": [1, 2, 3]}}}})
    monkeypatch.chdir(tmp_path)
    for name, count in (("perlmutter", 3), ("slurm", 1)):
        (tmp_path / "mine.yaml").write_text(f"extends: slurm\nname: mine\noverlay: {name}\n")
        assert main(["list", "s.yaml", "--system", "mine.yaml"]) == 0
        assert len(capsys.readouterr().out.splitlines()) == count


def test_extends_merges_keys_and_null_removes_them(load: Load) -> None:
    base = FILE | {"matrix": {"rounds": [1, 2], "batches": [1]}, "tags": ["a", "b"]}
    top = {"extends": "base", "name": "t", "parameters": {"seed": None}, "matrix": {"rounds": [3]}, "tags": ["c"]}
    suite = load(top=top, base=base)
    assert (suite.name, suite.title, suite.tags) == ("t", "S", ["c"])
    assert suite.parameters == PARAMETERS
    assert suite.matrix == {"rounds": [3], "batches": [1]}


def test_extends_chains_and_the_nearest_file_wins(load: Load) -> None:
    files = {f"s{k}": {"extends": f"s{k + 1}", "description": f"{k}"} for k in range(5)} | {"s5": FILE}
    assert load(**files).description == "0"


def test_a_base_in_the_same_folder_takes_precedence_over_a_shipped_one(load: Load) -> None:
    local_base = load(top={"extends": "ladder"}, ladder=FILE | {"title": "Mine"})
    assert local_base.title == "Mine"
    shipped_base = load(ladder={"extends": "ladder", "description": "my description"})
    assert (shipped_base.title, shipped_base.description) == (
        "Inference optimization ladder, trained model",
        "my description",
    )


def test_paths_in_a_base_are_relative_to_the_base(load: Load, tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    for folder in (tmp_path, tmp_path / "below"):
        (folder / "frames.extxyz").write_text("")
    base = FILE | {"parameters": {"workload": "file", "precision": "fp64", "structure_file": "frames.extxyz"}}
    (tmp_path / "below" / "base.yaml").write_text(json.dumps(base))
    top: dict[str, Any] = {"extends": "below/base.yaml"}
    assert load(top=top).parameters["structure_file"] == str(tmp_path / "below" / "frames.extxyz")
    overridden = load(top=top | {"parameters": {"structure_file": "frames.extxyz"}})
    assert overridden.parameters["structure_file"] == str(tmp_path / "frames.extxyz")


def test_files_of_a_holdout_are_found_next_to_the_suite(load: Load, tmp_path: Path) -> None:
    (tmp_path / "new.extxyz").write_text("")
    top = FILE | {"program": "train", "parameters": {"holdout": {"files": {"QCML": "new.extxyz"}}}, "sanity": []}
    path = str(tmp_path / "new.extxyz")
    assert load(top=top).parameters["holdout"]["files"] == {"QCML": path}
    axis = {"parameters": {}, "matrix": {"holdout": [{"files": {"QCML": "new.extxyz"}}, {"elements": ["S"]}]}}
    assert load(top=top | axis).matrix["holdout"][0]["files"] == {"QCML": path}
    missing = {"parameters": {"holdout": {"files": {"QCML": "old.extxyz"}}}}
    with pytest.raises(UsageError, match=r"top\.yaml:[\d:]+ parameters\.holdout.files.QCML: no file 'old.extxyz'"):
        load(top=top | missing)


def count_calls(work: Callable[[], object]) -> int:
    """Return the number of Python function calls that `work` makes."""
    calls = 0

    def count(frame: Any, event: str, argument: Any) -> None:
        nonlocal calls
        calls += event == "call"

    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(None)
    return calls


def test_number_of_function_calls_grows_linearly_with_the_number_of_cases() -> None:
    def expand(count: int) -> None:
        parameters = PARAMETERS | {"batches": "{{ rounds * 2 }}"}
        matrix = {"rounds": list(range(1, 11)), "seed": list(range(count // 10))}
        suite = Suite(**BASE, parameters=parameters, matrix=matrix)
        assert len(expand_suite(suite, LOCAL).cases) == count

    expand(10)
    small, large = count_calls(lambda: expand(500)), count_calls(lambda: expand(2000))
    assert large < 4.5 * small


AXIS_VALUES = st.one_of(st.booleans(), st.integers(-3, 3), st.floats(-2, 2), st.text(max_size=3))


@given(st.lists(AXIS_VALUES, min_size=1, max_size=6, unique_by=lambda v: (type(v), repr(v))), st.randoms())
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_ids_depend_on_the_values_of_an_axis_and_not_on_their_order(values: list[Any], random: Any) -> None:
    shuffled = random.sample(values, len(values))
    cases, shuffled_cases = expand_cases(matrix={"a": values}), expand_cases(matrix={"a": shuffled})
    assert len({c.id for c in cases}) == len(values)
    assert {c.id for c in cases} == {c.id for c in shuffled_cases}


def test_a_raised_recursion_limit_does_not_affect_parsing() -> None:
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(20_000)
    try:
        with pytest.raises(ExpressionError, match="nested too deep"):
            expressions.parse("{{ " + "not " * 451 + "1 }}")
        assert sys.getrecursionlimit() == 20_000
    finally:
        sys.setrecursionlimit(before)


def test_text_that_doubles_with_each_variable_is_refused_at_the_limit() -> None:
    variables = {"v0": "xxxxxxxx"} | {f"v{k}": f"{{{{ v{k - 1} ~ v{k - 1} }}}}" for k in range(1, 41)}
    with pytest.raises(UsageError, match=r"variables\.v11: the result has more than 10000 characters and items in"):
        expand_cases(variables=variables, parameters=PARAMETERS | {"seed": "{{ 1 if v40 else 2 }}"})


def test_lists_that_grow_with_each_variable_are_refused_at_the_limit() -> None:
    hundred = ", ".join(["{0}"] * 100)
    variables = {"v0": 1} | {f"v{k}": "{{ [" + hundred.format(f"v{k - 1}") + "] }}" for k in range(1, 9)}
    with pytest.raises(UsageError, match=r"variables\.v2: the result has more than 10000 characters and items"):
        expand_cases(variables=variables, parameters=PARAMETERS | {"seed": "{{ v8 | length }}"})


def test_mappings_that_grow_with_each_variable_are_refused_at_the_limit() -> None:
    ten = {f"k{k}": "{{ {0} }}" for k in range(10)}
    variables: dict[str, Any] = {"v0": 1}
    for k in range(1, 9):
        variables[f"v{k}"] = {key: text.replace("{0}", f"v{k - 1}") for key, text in ten.items()}
    with pytest.raises(UsageError, match=r"variables\.v4: the result has more than 10000 characters and items"):
        expand_cases(variables=variables, parameters=PARAMETERS | {"seed": "{{ v8 | length }}"})


@pytest.mark.parametrize("text", ["{{ [v{0}] }}", {"key": "{{ v{0} }}"}])
def test_values_that_nest_with_each_variable_are_refused_at_the_limit(text: Any) -> None:
    variables: dict[str, Any] = {"v0": 1}
    for k in range(1, 100):
        variables[f"v{k}"] = json.loads(json.dumps(text).replace("{0}", str(k - 1)))
    with pytest.raises(UsageError, match=r"variables\.v41.*: the result has more than 40 levels"):
        expand_cases(variables=variables, parameters=PARAMETERS | {"seed": "{{ v99 | length }}"})


def test_a_number_that_no_case_file_can_hold_is_refused() -> None:
    with pytest.raises(UsageError, match=r"^s\.yaml:1:1: parameters: Integer exceeds 64-bit range \(in case s\)"):
        expand_cases(parameters=PARAMETERS | {"seed": "{{ (2 ** 1000) | lower }}"})


def test_long_sums_compile_in_linear_time() -> None:
    """Jinja2's own compiler took half a minute for sixty sums of 190 terms."""
    terms = {f"a{k}": k for k in range(190)}
    text = "{{ " + " + ".join(terms) + " }}"
    assert count_calls(lambda: expressions.parse(text)(terms)) < 100_000
    assert expressions.parse(text)(terms) == sum(terms.values())
