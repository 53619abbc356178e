"""What a user gets wrong is told in one line each, with its place in the file, and exit code 2."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import Harness

SUITE = """\
name: mine
title: A suite
program: ladder
parameters:
  workload: random
  checkpoint: painn-64
matrix:
  precision: [fp64, fp32]
"""
SYSTEM = """\
name: here
title: Here
scheduler: local
template: local.sh.j2
settings:
  threads: {help: threads, default: 1}
"""


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("matrix:", "matrixx:", "suite.yaml:7:1: unknown key 'matrixx' (did you mean 'matrix'?)"),
        ("title: A suite\n", "", "suite.yaml:1:1: 'title' is missing"),
        ("program: ladder", "program: lader", "suite.yaml:3:1: unknown program 'lader' (did you mean 'ladder'?)"),
        ("program: ladder\n", "", "suite.yaml:1:1: 'program' is missing (there are: ladder, train)"),
        ("fp64, fp32", "fp64, fp23", "suite.yaml:8:21: matrix.precision.1: unknown 'fp23' (did you mean 'fp32'?)"),
        ("workload: random", "workload: randm", "suite.yaml:5:3: parameters.workload: unknown 'randm' (did you mean"),
        ("workload: random", "stages: [basline]\n  workload: random", "suite.yaml:5:12: parameters.stages.0: unknown"),
        ("workload: random", "rounds: 0\n  workload: random", "suite.yaml:5:3: parameters.rounds: Input should be gre"),
        (
            "workload: random",
            "rouns: 3\n  workload: random",
            "suite.yaml:5:3: unknown key 'rouns' (did you mean 'rounds'?",
        ),
        ("  workload: random\n", "", "suite.yaml:1:1: program 'ladder' needs 'workload'"),
        ("checkpoint: painn-64", "precision: fp64", "suite.yaml:8:3: 'precision' stands in both parameters and matrix"),
        ("name: mine", "name: My Suite", "suite.yaml:1:1: name: String should match pattern"),
        ("painn-64", "painn-46", "suite.yaml:6:3: painn-46: no such file (did you mean 'painn-64'?)"),
        (
            "workload: random",
            "stages: [baseline, baseline]\n  workload: random",
            "suite.yaml:5:3: parameters.stages: V",
        ),
        ("[fp64, fp32]", "[]", "suite.yaml:8:3: matrix.precision: List should have at least 1 item"),
        ("[fp64, fp32]", "[fp64, fp32", "suite.yaml:9:1: expected ',' or ']'"),
        ("title: A suite", "name: mine", 'suite.yaml:2:1: found duplicate key "name"'),
        (SUITE, "- just\n- a list\n", "suite.yaml:1:1: expected a mapping of keys at the top of the file"),
        (SUITE, "", "suite.yaml:1:1: expected a mapping of keys at the top of the file"),
    ],
)
def test_a_malformed_suite(harness: Harness, tmp_path: Path, old: str, new: str, expected: str) -> None:
    assert old in SUITE
    (tmp_path / "suite.yaml").write_text(SUITE.replace(old, new))
    done = harness("plan", "suite.yaml")
    assert done.returncode == 2
    assert any(line.startswith("error: " + expected) for line in done.stderr.splitlines()), done.stderr
    assert "Traceback" not in done.stderr


def test_every_error_of_a_file_at_once(harness: Harness, tmp_path: Path) -> None:
    (tmp_path / "suite.yaml").write_text(SUITE.replace("title", "titel").replace("workload", "worklod"))
    lines = harness("plan", "suite.yaml").stderr.splitlines()
    assert len(lines) == 3, lines
    assert all(line.startswith("error: suite.yaml:") for line in lines)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("scheduler: local", "scheduler: locl", "here.yaml:3:1: scheduler: unknown 'locl' (did you mean 'local'?)"),
        ("template: local.sh.j2", "template: none.j2", "here.yaml: its template 'none.j2' is not beside it"),
        ("help: threads, ", "", "here.yaml:6:3: 'settings.threads.help' is missing"),
        ("title:", "titel:", "here.yaml:2:1: unknown key 'titel' (did you mean 'title'?)"),
    ],
)
def test_a_malformed_system(harness: Harness, tmp_path: Path, old: str, new: str, expected: str) -> None:
    (tmp_path / "local.sh.j2").write_text("true\n")
    (tmp_path / "here.yaml").write_text(SYSTEM.replace(old, new))
    done = harness("plan", "ladder", "--system", "here.yaml")
    assert done.returncode == 2
    assert f"error: {expected}" in done.stderr


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["run", "laddr"], "no suite named 'laddr' (did you mean 'ladder'?)"),
        (["run", "ladder", "--system", "locl"], "no system named 'locl' (did you mean 'local'?)"),
        (["rn", "ladder"], "unknown command 'rn' (did you mean 'run'?)"),
        (["run", "nothing.yaml"], "nothing.yaml: no such file"),
        (["run", "ladder", "-S", "thread=2"], "-S thread: no such setting of system 'local' (did you mean 'threads'?)"),
        (["run", "ladder", "-S", "threads=two"], "-S threads=two: expected int, as 1"),
        (["run", "ladder", "-S", "threads"], "-S threads: expected key=value"),
        (["run", "ladder", "-n", "fp16"], "suite 'ladder': no case is left by -n, -t and -x"),
        (["run", "ladder", "--sytem", "local"], "unrecognized arguments: --sytem local"),
        (["run"], "the following arguments are required: SUITE"),
        (["report", "--out", "empty"], "empty/runs: no run folders"),
    ],
)
def test_a_wrong_command_line(harness: Harness, words: list[str], expected: str) -> None:
    done = harness(*words)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {expected}"), done.stderr
    assert len(done.stderr.splitlines()) == 1
