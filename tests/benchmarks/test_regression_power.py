"""What asv over commits tells of real times on this machine (`pytest -s tests/benchmarks/test_regression_power.py`)."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.tracking.test_regression import CONFIG, QUIET, git, regression, said

pytestmark = pytest.mark.slow
PACKAGE = """\
same, six, twenty = {}


def loop(n):
    total = 0
    for k in range(n * 500):
        total += k * k
    return total
"""
BENCHMARKS = """\
import toy


class Loop:
    repeat, number, warmup_time = 10, 1, 0.0

    def time_same(self):
        toy.loop(toy.same)

    def time_six(self):
        toy.loop(toy.six)

    def time_twenty(self):
        toy.loop(toy.twenty)
"""
LENGTHS = {"start": (100, 100, 100), "six": (100, 106, 100), "twenty": (100, 106, 120)}


def test_a_fifth_is_found_and_less_is_found_or_told_to_be_too_little(tmp_path: Path) -> None:
    """Of 6% it may say that the machine is too noisy, but not that there is none; of no change, no alarm."""
    repo, out = tmp_path / "repo", tmp_path / "out"
    for name in ("toy", "benchmarks"):
        (repo / name).mkdir(parents=True)
        (repo / name / "__init__.py").touch()
    (repo / "asv.conf.json").write_text(CONFIG)
    (repo / "benchmarks" / "toys.py").write_text(BENCHMARKS)
    git(repo, "init", "--quiet", "--initial-branch=main")
    for name, lengths in LENGTHS.items():
        (repo / "toy" / "__init__.py").write_text(PACKAGE.format(lengths))
        git(repo, "add", "--all")
        git(repo, "commit", "--quiet", "--message", f"{name} is other")
        git(repo, "tag", name)
    for rounds in ("12", "24", "36"):  # each adds to those before, where others are at work on the machine
        done = regression(repo, out, "start..twenty", "--here", "--rounds", rounds)
        print(done.stdout)
        verdicts = said(done)
        found = re.match(r"slower .* since \w+ \(twenty is other\)", verdicts["twenty"])
        if found:
            break
    assert found
    assert done.returncode == 1, done.stderr
    assert re.match(r"(slower .* since \w+ \(six is other\)|too noisy to tell)", verdicts["six"])
    assert re.match(QUIET, verdicts["same"])
