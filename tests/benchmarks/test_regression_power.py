"""`harness regression` detects a slowdown of 20% on this machine and does not overlook one of 6%.

`pytest -s tests/benchmarks/test_regression_power.py` prints the verdicts.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.tracking.test_regression import CONFIG, NO_ALARM, git, parse_verdicts, run_regression

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
# Tag of each commit -> the lengths of the loops same, six and twenty.
LENGTHS = {"start": (100, 100, 100), "six": (100, 106, 100), "twenty": (100, 106, 120)}


def test_twenty_percent_is_detected_and_six_percent_is_not_called_no_change(tmp_path: Path) -> None:
    """For 6%, the verdict may be "too noisy" but not "no change"; an unchanged benchmark raises no alarm."""
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
        git(repo, "commit", "--quiet", "--message", f"{name} changed")
        git(repo, "tag", name)
    for rounds in ("12", "24", "36"):  # more rounds are needed if other processes keep the machine busy
        result = run_regression(repo, out, "start..twenty", "--here", "--rounds", rounds)
        print(result.stdout)
        verdicts = parse_verdicts(result)
        is_detected = re.match(r"slower .* since \w+ \(twenty changed\)", verdicts["twenty"])
        if is_detected:
            break
    assert is_detected
    assert result.returncode == 1, result.stderr
    assert re.match(r"(slower .* since \w+ \(six changed\)|too noisy to tell)", verdicts["six"])
    assert re.match(NO_ALARM, verdicts["same"])
