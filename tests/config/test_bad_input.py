"""What a user gets wrong in a suite or a system is told at its place, in one go, with exit code 2."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import Harness
from tests.support.expected_errors import SUITE, SYSTEM, Judge, Slip, judge, named, slips  # noqa: F401

SUITES = ("keys", "axes", "expressions", "jobs", "checks", "layers", "yaml")


@pytest.mark.parametrize("slip", [slip for name in SUITES for slip in slips(name)], ids=named)
def test_a_malformed_suite(judge: Judge, slip: Slip) -> None:  # noqa: F811
    text = slip.made_in(SUITE)
    assert judge("plan", "suite.yaml", suite=text) == slip.told("suite.yaml", text)


@pytest.mark.parametrize("slip", slips("systems"), ids=named)
def test_a_malformed_system(judge: Judge, slip: Slip) -> None:  # noqa: F811
    text = slip.made_in(SYSTEM)
    assert judge("plan", "suite.yaml", "--system", "here.yaml", suite=SUITE, here=text) == slip.told("here.yaml", text)


LONG = "a" * 300


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("title: A suite", f"title: {LONG}", "2:1: title: expected text of at most 200 letters, got 'aaa"),
        ("name: mine", f"name: {LONG}", "1:1: name: expected text of at most 60 letters, got 'aaa"),
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
            "6:3: parameters.seed: an expression of more than",
        ),
        ("ladder", "lad\u200bder", "3:13: expected plain text, got the invisible character '\\u200b'"),
        ("A suite", "A\u2028suite", "2:9: expected plain text, got the invisible character '\\u2028'"),
        ("A suite", "\x1b[31mred", "2:8: expected plain text, got the invisible character '\\x1b'"),
        ("  precision", "  \u00a0precision", "8:3: keys are words (or in quotes), got '\\xa0precision'"),
    ],
)
def test_what_is_long_or_cannot_be_seen(judge: Judge, old: str, new: str, expected: str) -> None:  # noqa: F811
    lines = judge("plan", "suite.yaml", suite=SUITE.replace(old, new))
    assert lines[0].startswith(f"error: suite.yaml:{expected}")
    assert len(lines) == 2
    assert max(map(len, lines)) < 400


def test_every_error_of_a_file_at_once_in_its_order(judge: Judge) -> None:  # noqa: F811
    text = SUITE.replace("title", "titel").replace("workload", "worklod").replace("fp32", "fp23")
    text += "variables: {a: '{{ nope }}'}\nresources: {nodes: x}\nscale: {nowhere: 3, aurora: {pack: 0}}\n"
    told = [line for line in judge("plan", "suite.yaml", suite=text) if line.startswith("error")]
    places = ["1:1", "2:1", "5:3", "8:21", "9:13", "9:13", "10:13", "11:9", "11:30"]
    assert [":".join(line.split(":")[2:4]) for line in told] == places


def test_what_is_wrong_everywhere_is_told_forty_times(judge: Judge) -> None:  # noqa: F811
    text = SUITE + "".join(f"key{k}: 1\n" for k in range(5000))
    told = [line for line in judge("plan", "suite.yaml", suite=text) if line.startswith("error")]
    assert len(told) == 41
    assert told[-1] == "error: suite.yaml: and more"


def test_an_overlay_is_checked_whichever_system_is_asked_for(judge: Judge) -> None:  # noqa: F811
    text = SUITE + "scale:\n  aurora:\n    parameters: {seed: x}\n"
    said = "error: suite.yaml:11:18: parameters.seed: expected a whole number, got 'x' (scale.aurora)"
    for system in ("local", "perlmutter", "aurora"):
        assert judge("plan", "suite.yaml", "--system", system, suite=text)[0] == said


def test_what_is_wrong_in_a_base_is_told_at_its_own_line(judge: Judge) -> None:  # noqa: F811
    base = SUITE.replace("random", "randm")
    lines = judge("plan", "top.yaml", top="extends: base\nname: top\n", base=base)
    assert lines == [
        "error: base.yaml:5:3: parameters.workload: unknown 'randm' (did you mean 'random'?)",
        "    5 |   workload: randm",
    ]


def test_files_that_extend_each_other_are_refused(judge: Judge) -> None:  # noqa: F811
    lines = judge("plan", "one.yaml", one="extends: two\nname: one\n", two="name: two\nextends: one\n")
    assert lines == ["error: two.yaml:2:1: extends: 'one' leads back to itself", "    2 | extends: one"]
    chain = {f"s{k}": f"extends: s{k + 1}\n" for k in range(15)}
    assert "more than 10 files, one over the other" in judge("plan", "s0.yaml", **chain, s15=SUITE)[0]


def test_a_null_that_takes_nothing_away_from_a_base_is_told(judge: Judge) -> None:  # noqa: F811
    lines = judge("plan", "top.yaml", top="extends: base\nparameters: {chekpoint: null}\n", base=SUITE)
    said = "parameters.chekpoint: null takes a key away, and there is none (did you mean 'checkpoint'?)"
    assert lines[0] == f"error: top.yaml:2:14: {said}"


@pytest.mark.parametrize(
    ("resources", "system", "said"),
    [
        ("{nodes: 3000}", "perlmutter", "case mine-fp64 takes 3000 nodes, and a job on perlmutter has at most 1536"),
        ("{minutes: 1438}", "aurora", "case mine-fp64 takes 1441 minutes with what a job takes beside it, and aurora"),
    ],
)
def test_what_a_site_does_not_allow(judge: Judge, resources: str, system: str, said: str) -> None:  # noqa: F811
    lines = judge("plan", "suite.yaml", "--system", system, suite=f"{SUITE}resources: {resources}\n")
    assert lines[0].startswith(f"error: suite.yaml:9:13: {said}")


def test_a_process_of_its_own_says_the_same(harness: Harness, tmp_path: Path) -> None:
    (tmp_path / "suite.yaml").write_text(SUITE.replace("matrix:", "matrixx:"))
    done = harness("plan", "suite.yaml", timeout=60)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == ("error: suite.yaml:7:1: unknown key 'matrixx' (did you mean 'matrix'?)\n    7 | matrixx:\n")
