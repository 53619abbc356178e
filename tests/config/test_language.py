"""What the language of suites means: which cases there are, what they hold, and how files are laid over each other."""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.config import resources as shipped
from harness.config import suite as suites
from harness.config import system as systems
from harness.config.language import expressions
from harness.config.language.evaluation import ExpressionError
from harness.config.suite import Suite
from harness.planning.expand import expand
from harness.protocol.case import Case
from harness.protocol.errors import UsageError

LOCAL = systems.load(shipped.find("systems", "local"), {})
BASE: dict[str, Any] = {"name": "s", "title": "S", "program": "ladder"}
PARAMETERS = {"workload": "random", "precision": "fp64"}
Load = Callable[..., Suite]


def cases(**parts: Any) -> tuple[Case, ...]:
    """The cases of a suite of the ladder on this machine."""
    return expand(Suite(**BASE | {"parameters": PARAMETERS} | parts), LOCAL).cases


def points(**parts: Any) -> list[dict[str, Any]]:
    return [case.point for case in cases(**parts)]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Write files and load the first; `scale_for` as suites.load has it."""

    def call(scale_for: str | None = None, **files: dict[str, Any]) -> Suite:
        for name, data in files.items():
            (tmp_path / f"{name}.yaml").write_text(json.dumps(data))
        return suites.load(tmp_path / f"{next(iter(files))}.yaml", scale_for)

    return call


def test_a_matrix_is_all_combinations_and_the_last_axis_runs_fastest() -> None:
    assert points(matrix={"a": [1, 2], "b": ["x", "y"]}) == [
        {"a": a, "b": b} for a, b in itertools.product([1, 2], ["x", "y"])
    ]
    assert points() == [{}]


def test_axes_of_a_zip_advance_together() -> None:
    zips = {"z": {"seed": [1, 2], "rounds": [3, 4]}}
    assert points(zips=zips) == [{"seed": 1, "rounds": 3}, {"seed": 2, "rounds": 4}]
    found = points(matrix={"a": [1, 2]}, zips=zips | {"y": {"b": [5, 6]}})
    assert len(found) == 8
    assert {(p["seed"], p["rounds"]) for p in found} == {(1, 3), (2, 4)}


def test_exclude_leaves_out_what_matches_a_whole_row() -> None:
    matrix = {"a": [1, 2, 3], "b": ["x", "y"]}
    left = points(matrix=matrix, exclude=[{"a": [1, 2], "b": "x"}, {"a": 3}])
    assert left == [{"a": 1, "b": "y"}, {"a": 2, "b": "y"}]


def test_where_keeps_what_meets_every_condition() -> None:
    matrix = {"a": [1, 2, 3], "b": [1, 2, 3]}
    assert points(matrix=matrix, where=["a < b", "{{ a + b != 4 }}"]) == [{"a": 1, "b": 2}, {"a": 2, "b": 3}]
    assert points(matrix=matrix, variables={"c": "{{ a * b }}"}, where=["c == 9"]) == [{"a": 3, "b": 3}]


@given(
    st.dictionaries(
        st.sampled_from("abc"), st.lists(st.integers(0, 3), min_size=1, max_size=4, unique=True), min_size=1
    ),
    st.dictionaries(st.sampled_from("abc"), st.integers(0, 3), min_size=1),
)
@settings(max_examples=60, deadline=None)
def test_exclude_and_a_condition_that_says_the_same_agree(matrix: dict[str, list[int]], row: dict[str, int]) -> None:
    row = {axis: value for axis, value in row.items() if axis in matrix}
    condition = " or ".join(f"{axis} != {value}" for axis, value in row.items()) or "true"
    every = [dict(zip(matrix, point, strict=True)) for point in itertools.product(*matrix.values())]
    left = [p for p in every if not row or any(p[a] != v for a, v in row.items())]
    if left:
        assert points(matrix=matrix, exclude=[row] if row else []) == points(matrix=matrix, where=[condition]) == left
    else:
        with pytest.raises(UsageError, match="no case"):
            points(matrix=matrix, exclude=[row])


@given(st.permutations(["a", "b", "c", "d"]))
@settings(max_examples=24, deadline=None)
def test_variables_stand_in_any_order(order: list[str]) -> None:
    variables = {"a": 2, "b": "{{ a * seed }}", "c": "{{ [b, a] | max }}", "d": "{{ c + b }}"}
    found = cases(
        matrix={"seed": [1, 5]},
        variables={n: variables[n] for n in order},
        parameters=PARAMETERS | {"rounds": "{{ d }}"},
    )
    assert [c.parameters["rounds"] for c in found] == [4, 20]


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
def test_an_expression_is_of_the_type_of_its_value(text: Any, value: Any) -> None:
    (case,) = cases(matrix={"n": [3]}, sanity=[{"event": "e", "field": "f", "equals": text}])
    found = case.sanity[0]["equals"]
    assert found == value
    assert type(found) is type(value)


def test_values_of_different_types_are_different_work() -> None:
    found = cases(matrix={"a": [1, 1.0, "1", True, 0, False, "", [1]]})
    assert len({c.id for c in found}) == len({c.folder_name for c in found}) == len(found) == 8
    assert {c.name for c in found} >= {"s-a_1", "s-a_1_0", "s-1", "s-a_true", "s-a_0", "s-a_false"}
    kinds = cases(matrix={"a": [1, 1.0, True]}, sanity=[{"event": "e", "field": "f", "equals": "{{ a }}"}])
    assert [type(c.sanity[0]["equals"]) for c in kinds] == [int, float, bool]


def test_the_same_parameters_written_differently_are_the_same_work() -> None:
    with pytest.raises(UsageError, match="are the same work"):
        cases(matrix={"seed": [1, "1"]})
    one, two = cases(matrix={"seed": [1]}), cases(parameters=PARAMETERS | {"seed": 1})
    assert one[0].id == two[0].id


def test_what_changes_no_measurement_changes_no_id() -> None:
    plain = cases(matrix={"seed": [1, 2]})
    told = cases(
        matrix={"seed": [1, 2]},
        description="longer",
        resources={"minutes": 5},
        tags=["fast"],
        pack=2,
        sanity=[{"event": "sample"}],
    )
    assert [c.id for c in plain] == [c.id for c in told]
    assert not {c.id for c in plain} & {c.id for c in cases(matrix={"seed": [1, 2]}, resources={"ranks_per_node": 2})}


def test_the_first_repeat_is_the_case_without_repeats() -> None:
    once, thrice = cases(matrix={"seed": [1, 2]}), cases(matrix={"seed": [1, 2]}, repeats=3)
    assert [c.repeat for c in thrice] == [0, 1, 2] * 2
    assert [c.id for c in once] == [c.id for c in thrice if c.repeat == 0]
    assert len({c.id for c in thrice}) == len({c.name for c in thrice}) == 6


def test_after_makes_the_matching_cases_wait_for_those_that_differ_only_there() -> None:
    found = cases(matrix={"rounds": [2, 1], "seed": [1, 2]}, after=[{"cases": {"rounds": 2}, "needs": {"rounds": 1}}])
    by_name = {c.name: c for c in found}
    for seed in (1, 2):
        first, second = by_name[f"s-rounds_1-seed_{seed}"], by_name[f"s-rounds_2-seed_{seed}"]
        assert first.after == ()
        assert second.after == (first.folder_name,)
        assert found.index(first) < found.index(second)


def test_after_across_an_axis_waits_for_every_value_of_it() -> None:
    rule = {"cases": {"rounds": 2, "seed": 3}, "needs": {"rounds": 1}, "across": ["seed"]}
    found = cases(matrix={"rounds": [2, 1], "seed": [1, 2, 3]}, after=[rule])
    needed = {c.folder_name for c in found if c.point["rounds"] == 1}
    (waiting,) = (c for c in found if c.after)
    assert waiting.point == {"rounds": 2, "seed": 3}
    assert set(waiting.after) == needed
    assert len(needed) == 3


def test_after_without_cases_makes_all_others_wait_and_rules_form_chains() -> None:
    found = cases(matrix={"rounds": [3, 2, 1]}, after=[{"needs": {"rounds": 1}}])
    first = next(c for c in found if c.point["rounds"] == 1)
    assert [c.after for c in found if c is not first] == [(first.folder_name,)] * 2
    rules = [{"cases": {"rounds": k + 1}, "needs": {"rounds": k}} for k in (1, 2)]
    assert [c.point["rounds"] for c in cases(matrix={"rounds": [3, 2, 1]}, after=rules)] == [1, 2, 3]


def test_each_repeat_waits_for_its_own() -> None:
    found = cases(matrix={"rounds": [1, 2]}, repeats=2, after=[{"needs": {"rounds": 1}}])
    folder = {(c.point["rounds"], c.repeat): c.folder_name for c in found}
    assert {c.repeat: c.after for c in found if c.point["rounds"] == 2} == {k: (folder[1, k],) for k in (0, 1)}


FILE: dict[str, Any] = {**BASE, "parameters": {**PARAMETERS, "seed": 1}, "resources": {"minutes": 10}}


def test_scale_is_laid_over_the_suite_only_for_the_system_that_is_asked_for(load: Load) -> None:
    parts = {
        "local": {"parameters": {"seed": 2}},
        "slurm": {"parameters": {"seed": None}, "matrix": {"rounds": [1, 2]}},
    }
    data = FILE | {"scale": parts}
    assert load(None, s=data).parameters == load("aurora", s=data).parameters == FILE["parameters"]
    assert load("local", s=data).parameters == {**PARAMETERS, "seed": 2}
    slurm = load("slurm", s=data)
    assert slurm.parameters == PARAMETERS
    assert slurm.matrix == {"rounds": [1, 2]}
    assert slurm.resources == {"minutes": 10}


def test_a_system_may_say_whose_scale_applies_to_it() -> None:
    frontier, scaling = shipped.find("systems", "frontier"), shipped.find("suites", "scaling")
    assert systems.load(frontier, {"account": "abc"}).system.scale == "frontier"
    assert suites.load(scaling, "perlmutter").matrix["nodes"] == [1, 2, 4, 8, 16, 32, 64, 128]
    assert suites.load(scaling, "frontier").matrix["nodes"] == [8, 16, 32, 64, 128, 256, 512, 1024]


def test_a_system_of_ones_own_takes_the_scale_it_names(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from harness.cli.main import main

    load(s=FILE | {"scale": {"perlmutter": {"matrix": {"rounds": [1, 2, 3]}}}})
    monkeypatch.chdir(tmp_path)
    for name, count in (("perlmutter", 3), ("slurm", 1)):
        (tmp_path / "mine.yaml").write_text(f"extends: slurm\nname: mine\nscale: {name}\n")
        assert main(["list", "s.yaml", "--system", "mine.yaml"]) == 0
        assert len(capsys.readouterr().out.splitlines()) == count


def test_extends_merges_key_by_key_and_null_takes_away(load: Load) -> None:
    base = FILE | {"matrix": {"rounds": [1, 2], "batches": [1]}, "tags": ["a", "b"]}
    top = {"extends": "base", "name": "t", "parameters": {"seed": None}, "matrix": {"rounds": [3]}, "tags": ["c"]}
    suite = load(top=top, base=base)
    assert (suite.name, suite.title, suite.tags) == ("t", "S", ["c"])
    assert suite.parameters == PARAMETERS
    assert suite.matrix == {"rounds": [3], "batches": [1]}


def test_extends_goes_on_through_several_files_and_the_nearest_wins(load: Load) -> None:
    files = {f"s{k}": {"extends": f"s{k + 1}", "description": f"{k}"} for k in range(5)} | {"s5": FILE}
    assert load(**files).description == "0"


def test_a_file_beside_comes_before_one_that_is_shipped(load: Load) -> None:
    mine = load(top={"extends": "ladder"}, ladder=FILE | {"title": "Mine"})
    assert mine.title == "Mine"
    theirs = load(ladder={"extends": "ladder", "description": "with a word of mine"})
    assert (theirs.title, theirs.description) == ("Inference optimization ladder, trained model", "with a word of mine")


def test_files_that_a_base_names_are_beside_the_base(load: Load, tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    for folder in (tmp_path, tmp_path / "below"):
        (folder / "frames.extxyz").write_text("")
    base = FILE | {"parameters": {"workload": "file", "precision": "fp64", "structures": "frames.extxyz"}}
    (tmp_path / "below" / "base.yaml").write_text(json.dumps(base))
    top: dict[str, Any] = {"extends": "below/base.yaml"}
    assert load(top=top).parameters["structures"] == str(tmp_path / "below" / "frames.extxyz")
    over = load(top=top | {"parameters": {"structures": "frames.extxyz"}})
    assert over.parameters["structures"] == str(tmp_path / "frames.extxyz")


def test_expansion_takes_time_in_proportion_to_the_cases() -> None:
    def seconds(count: int) -> float:
        parameters = PARAMETERS | {"batches": "{{ rounds * 2 }}"}
        matrix = {"rounds": list(range(1, 11)), "seed": list(range(count // 10))}
        suite = Suite(**BASE, parameters=parameters, matrix=matrix)
        began = time.process_time()
        assert len(expand(suite, LOCAL).cases) == count
        return time.process_time() - began

    small, large = (min(taken) for taken in zip(*((seconds(10_000), seconds(40_000)) for _ in range(3)), strict=True))
    assert large < 4 * small * 2


TEXT_VALUES = st.one_of(st.booleans(), st.integers(-3, 3), st.floats(-2, 2), st.text(max_size=3))


@given(st.lists(TEXT_VALUES, min_size=1, max_size=6, unique_by=lambda v: (type(v), repr(v))), st.randoms())
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_ids_tell_values_apart_whatever_their_order(values: list[Any], random: Any) -> None:
    shuffled = random.sample(values, len(values))
    one, two = cases(matrix={"a": values}), cases(matrix={"a": shuffled})
    assert len({c.id for c in one}) == len(values)
    assert {c.id for c in one} == {c.id for c in two}


def test_a_library_that_raises_the_recursion_limit_changes_nothing() -> None:
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(20_000)
    try:
        with pytest.raises(ExpressionError, match="nested too deep"):
            expressions.parse("{{ " + "not " * 451 + "1 }}")
        assert sys.getrecursionlimit() == 20_000
    finally:
        sys.setrecursionlimit(before)


def test_text_that_doubles_through_variables_stops_at_the_bound() -> None:
    variables = {"v0": "xxxxxxxx"} | {f"v{k}": f"{{{{ v{k - 1} ~ v{k - 1} }}}}" for k in range(1, 41)}
    with pytest.raises(UsageError, match=r"variables\.v11: a value of more than 10000 letters and items in '{{ v10 ~"):
        cases(variables=variables, parameters=PARAMETERS | {"seed": "{{ 1 if v40 else 2 }}"})


def test_lists_of_lists_of_lists_stop_at_the_bound() -> None:
    hundred = ", ".join(["{0}"] * 100)
    variables = {"v0": 1} | {f"v{k}": "{{ [" + hundred.format(f"v{k - 1}") + "] }}" for k in range(1, 9)}
    with pytest.raises(UsageError, match=r"variables\.v2: a value of more than 10000 letters and items"):
        cases(variables=variables, parameters=PARAMETERS | {"seed": "{{ v8 | length }}"})


def test_sums_of_many_terms_are_compiled_in_time_linear_in_their_length() -> None:
    """Sixty sums of 190 terms took Jinja's compiler half a minute, most of it on folding constants that are none."""
    terms = {f"a{k}": k for k in range(190)}
    calls = 0

    def count(frame: Any, event: str, argument: Any) -> None:
        nonlocal calls
        calls += event == "call"

    sys.setprofile(count)
    try:
        value = expressions.parse("{{ " + " + ".join(terms) + " }}")(terms)
    finally:
        sys.setprofile(None)
    assert value == sum(terms.values())
    assert calls < 100_000
