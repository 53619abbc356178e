"""All mistakes in a suite or a system are reported at once, with their locations and exit code 2."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.config.conftest import GetErrors
from tests.conftest import Harness
from tests.support.expected_errors import SUITE, SYSTEM, Mistake, format_id, load_mistakes

MISTAKES_IN_SUITES = ("keys", "axes", "expressions", "jobs", "checks", "layers", "yaml")


@pytest.mark.parametrize(
    "mistake", [mistake for name in MISTAKES_IN_SUITES for mistake in load_mistakes(name)], ids=format_id
)
def test_each_mistake_in_a_suite_is_reported(get_errors: GetErrors, mistake: Mistake) -> None:
    text = mistake.apply(SUITE)
    assert get_errors("plan", "suite.yaml", suite=text) == mistake.list_messages("suite.yaml", text)


@pytest.mark.parametrize("mistake", load_mistakes("systems"), ids=format_id)
def test_each_mistake_in_a_system_is_reported(get_errors: GetErrors, mistake: Mistake) -> None:
    text = mistake.apply(SYSTEM)
    assert get_errors("plan", "suite.yaml", "--system", "here.yaml", suite=SUITE, here=text) == mistake.list_messages(
        "here.yaml", text
    )


LONG = "a" * 300


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("title: A suite", f"title: {LONG}", "2:1: title: expected text of at most 200 characters, got 'aaa"),
        ("name: mine", f"name: {LONG}", "1:1: name: expected text of at most 60 characters, got 'aaa"),
        ("painn-64", LONG, "6:3: parameters.checkpoint: no file 'aaa"),
        ("name: mine", f"name: mine\nextends: {LONG}", "2:1: extends: 'aaa"),
        ("name: mine", f"name: mine\n{LONG}: 3", "2:1: unknown key 'aaa"),
        (
            "checkpoint: painn-64",
            'seed: "{{ ' + "(" * 100 + "1" + ")" * 100 + ' }}"',
            "6:3: parameters.seed: nested too",
        ),
        ("checkpoint: painn-64", 'seed: "{{ ' + "not " * 450 + '1 }}"', "6:3: parameters.seed: nested too deep"),
        ("checkpoint: painn-64", 'seed: "{{ ' + "1+" * 900 + '1 }}"', "6:3: parameters.seed: nested too deep"),
        (
            "checkpoint: painn-64",
            'seed: "{{ ' + "1" * 3000 + ' }}"',
            "6:3: parameters.seed: the expression has more than",
        ),
        ("ladder", "lad\u200bder", "3:13: expected plain text, got the invisible character '\\u200b'"),
        ("A suite", "A\u2028suite", "2:9: expected plain text, got the invisible character '\\u2028'"),
        ("A suite", "\x1b[31mred", "2:8: expected plain text, got the invisible character '\\x1b'"),
        ("  precision", "  \u00a0precision", "8:3: expected text as a key (numbers in quotes), got '\\xa0precision'"),
    ],
)
def test_long_and_invisible_text_is_reported_briefly(get_errors: GetErrors, old: str, new: str, expected: str) -> None:
    lines = get_errors("plan", "suite.yaml", suite=SUITE.replace(old, new))
    assert lines[0].startswith(f"error: suite.yaml:{expected}")
    assert len(lines) == 2
    assert max(map(len, lines)) < 400


def test_all_errors_of_a_file_are_reported_in_order(get_errors: GetErrors) -> None:
    text = SUITE.replace("title", "titel").replace("workload", "worklod").replace("fp32", "fp23")
    text += "variables: {a: '{{ nope }}'}\nresources: {nodes: x}\noverlays: {nowhere: 3, aurora: {pack: 0}}\n"
    lines = [line for line in get_errors("plan", "suite.yaml", suite=text) if line.startswith("error")]
    locations = ["1:1", "2:1", "5:3", "8:21", "9:13", "9:13", "10:13", "11:12", "11:33"]
    assert [":".join(line.split(":")[2:4]) for line in lines] == locations


def test_at_most_forty_problems_are_reported(get_errors: GetErrors) -> None:
    text = SUITE + "".join(f"key{k}: 1\n" for k in range(5000))
    lines = [line for line in get_errors("plan", "suite.yaml", suite=text) if line.startswith("error")]
    assert len(lines) == 41
    assert lines[-1] == "error: suite.yaml: more problems follow"


def test_overlays_of_other_systems_are_checked(get_errors: GetErrors) -> None:
    text = SUITE + "overlays:\n  aurora:\n    parameters: {seed: x}\n"
    message = "error: suite.yaml:11:18: parameters.seed: expected a whole number, got 'x' (overlays.aurora)"
    for system in ("local", "perlmutter", "aurora"):
        assert get_errors("plan", "suite.yaml", "--system", system, suite=text)[0] == message


def test_an_error_in_a_base_is_reported_in_the_base(get_errors: GetErrors) -> None:
    base = SUITE.replace("random", "randm")
    lines = get_errors("plan", "top.yaml", top="extends: base\nname: top\n", base=base)
    assert lines == [
        "error: base.yaml:5:3: parameters.workload: unknown 'randm' (did you mean 'random'?)",
        "    5 |   workload: randm",
    ]


def test_circular_extends_is_refused(get_errors: GetErrors) -> None:
    lines = get_errors("plan", "one.yaml", one="extends: two\nname: one\n", two="name: two\nextends: one\n")
    assert lines == ["error: two.yaml:2:1: extends: 'one' leads back to this file", "    2 | extends: one"]
    chain = {f"s{k}": f"extends: s{k + 1}\n" for k in range(15)}
    assert "more than 10 files extend one another" in get_errors("plan", "s0.yaml", **chain, s15=SUITE)[0]


def test_a_null_that_removes_no_key_is_refused(get_errors: GetErrors) -> None:
    lines = get_errors("plan", "top.yaml", top="extends: base\nparameters: {chekpoint: null}\n", base=SUITE)
    message = "parameters.chekpoint: null removes a key, and the base has no such key (did you mean 'checkpoint'?)"
    assert lines[0] == f"error: top.yaml:2:14: {message}"


@pytest.mark.parametrize(
    ("resources", "system", "message"),
    [
        ("{nodes: 3000}", "perlmutter", "case mine-fp64 needs 3000 nodes, but a job on perlmutter has at most 1536"),
        (
            "{walltime_minutes: 1438}",
            "aurora",
            "case mine-fp64 needs 1441 minutes including the overhead of a job, but aurora",
        ),
    ],
)
def test_cases_beyond_the_limits_of_a_system_are_refused(
    get_errors: GetErrors, resources: str, system: str, message: str
) -> None:
    lines = get_errors("plan", "suite.yaml", "--system", system, suite=f"{SUITE}resources: {resources}\n")
    assert lines[0].startswith(f"error: suite.yaml:9:13: {message}")


def test_the_command_reports_errors_and_exits_with_2(harness: Harness, tmp_path: Path) -> None:
    (tmp_path / "suite.yaml").write_text(SUITE.replace("matrix:", "matrixx:"))
    result = harness("plan", "suite.yaml", timeout=60)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr == (
        "error: suite.yaml:7:1: unknown key 'matrixx' (did you mean 'matrix'?)\n    7 | matrixx:\n"
    )
