"""asv for real over a small history: what is slowed down is found at its commit, what is not raises no alarm."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from harness.cli.main import main
from harness.tracking.history import FILE_NAME, read
from tests.conftest import ROOT, needs

# Two kinds of time: the CPU's of a real busy loop, since other tests run beside it, and that of a clock with 1% of
# noise, which the loop's length sets.
PACKAGE = """\
import random

busy, steady, three, six = {}
clock = 0.0


def loop(n):
    total = 0
    for k in range(n * 400):
        total += k * k
    return total


def tick(n):
    global clock
    clock += n * 1e-4 * random.lognormvariate(0, 0.01)
"""
BENCHMARKS = """\
import time

import toy


def clock():
    return toy.clock


class Loop:
    repeat, number, warmup_time = 5, 1, 0.0
    timer = staticmethod(time.process_time)

    def time_busy(self):
        toy.loop(toy.busy)


class Clock:
    repeat, number, warmup_time = 5, 1, 0.0
    timer = staticmethod(clock)

    def time_steady(self):
        toy.tick(toy.steady)

    def time_three(self):
        toy.tick(toy.three)

    def time_six(self):
        toy.tick(toy.six)
"""
CONFIG = '{"version": 1, "project": "toy", "repo": ".", "benchmark_dir": "benchmarks", "launch_method": "forkserver"}'
PROJECT = '[project]\nname = "toy"\nversion = "1"\n[build-system]\nrequires = ["hatchling"]\n'
BACKEND = 'build-backend = "hatchling.build"\n'
LENGTHS = {"start": (100, 100, 100, 100), "three": (100, 100, 103, 100), "six": (100, 100, 103, 106),
           "busy": (300, 100, 103, 106)}  # fmt: skip
Done = subprocess.CompletedProcess[str]
# One series in a hundred steps by chance, by too little to count.
QUIET = r"no change|too noisy to tell|(slower|faster) .*, below the [\d.]+% that counts"


def git(repo: Path, *words: str) -> str:
    author = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    return subprocess.run(["git", "-C", repo, *author, *words], check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone of four commits, each of which but the first makes one thing slower."""
    needs("git")
    repo = tmp_path_factory.mktemp("toy")
    for name in ("toy", "benchmarks"):
        (repo / name).mkdir()
        (repo / name / "__init__.py").touch()
    (repo / "asv.conf.json").write_text(CONFIG)
    (repo / "pyproject.toml").write_text(PROJECT + BACKEND)
    (repo / "benchmarks" / "toys.py").write_text(BENCHMARKS)
    git(repo, "init", "--quiet", "--initial-branch=main")
    for name, lengths in LENGTHS.items():
        (repo / "toy" / "__init__.py").write_text(PACKAGE.format(lengths))
        git(repo, "add", "--all")
        git(repo, "commit", "--quiet", "--message", f"{name} is other")
        git(repo, "tag", name)
    return repo


def regression(repo: Path, out: Path, *words: str) -> Done:
    command = [sys.executable, "-m", "harness", "regression", "-q", "--repo", str(repo), "--out", str(out), *words]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HOME": str(out.parent)}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=out.parent)


@pytest.fixture(scope="module")
def found(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Done, Path]:
    out = tmp_path_factory.mktemp("whole") / "out"
    return regression(toy, out, "start..busy", "--here", "--rounds", "8"), out


def said(done: Done) -> dict[str, str]:
    """Name without its module -> verdict."""
    pairs = re.findall(r"^toys\.\w+\.time_(\w+): (.*)$", done.stdout, re.MULTILINE)
    return dict(pairs)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "percent", "within"), [("busy", 200, 60), ("six", 6, 1.5), ("three", 3, 1.5)])
def test_what_became_slower_is_found_at_its_commit(
    found: tuple[Done, Path], name: str, percent: float, within: float
) -> None:
    """Of a clock with 1% of noise, eight rounds of four commits tell 3%; of a busy loop, three times its length."""
    done, _ = found
    assert done.returncode == 1, done.stderr
    told = re.fullmatch(
        r"slower ([\d.]+)% \[(-?[\d.]+), ([\d.]+)\] \(n = (\d+) and (\d+)\) since (\w{10}) \((.*)\)", said(done)[name]
    )
    assert told is not None, said(done)
    assert float(told[1]) == pytest.approx(percent, abs=within)
    assert float(told[2]) < float(told[1]) < float(told[3])
    assert told[7] == f"{name} is other"


@pytest.mark.slow
def test_what_did_not_change_raises_no_alarm(toy: Path, found: tuple[Done, Path]) -> None:
    _, out = found
    before = (out / FILE_NAME).read_bytes()
    done = regression(toy, out, "start..busy", "--here", "--rounds", "8", "--bench", "steady")
    assert done.returncode == 0, done.stderr
    assert set(said(done)) == {"steady"}
    assert re.match(QUIET, said(done)["steady"])
    assert re.search(r"\bn = 8 and 8\)|that counts$", said(done)["steady"])
    assert (out / FILE_NAME).read_bytes() == before, "what was measured is not measured again"


@pytest.mark.slow
def test_nothing_is_written_but_into_the_results(toy: Path, found: tuple[Done, Path]) -> None:
    _, out = found
    assert git(toy, "status", "--porcelain", "--ignored") == ""
    assert not (out.parent / ".asv-machine.json").exists()


@pytest.mark.slow
def test_the_page_tells_it_without_a_network(found: tuple[Done, Path]) -> None:
    _, out = found
    page = (out / "regression.html").read_text()
    assert not re.search(
        r'<script|<link|(src|href)="\w+:', re.sub(r"<metadata>.*?</metadata>", "", page, flags=re.DOTALL)
    )
    assert page.count('class="bad">regression') == 3
    assert "six is other" in page
    assert "<svg" in page
    for link in re.findall(r'href="([^"#]+)"', page + (out / "index.html").read_text()):
        assert (out / link).exists(), link


@pytest.mark.slow
def test_killed_in_the_middle_the_same_command_carries_on(toy: Path, tmp_path: Path) -> None:
    """Nothing of asv stays behind, what was measured stays as it was, and nothing is missing in the end."""
    out = tmp_path / "out"
    command = [sys.executable, "-m", "harness", "regression", "six..busy", "--here", "--rounds", "2"]
    command += ["--bench", "steady", "--repo", str(toy), "--out", str(out)]
    running = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=subprocess.DEVNULL)
    give_up = time.monotonic() + 60
    while not (measured := sorted(out.glob("regression/*/round-*/results/*/*-sources*.json"))):
        assert time.monotonic() < give_up
        assert running.poll() is None
        time.sleep(0.02)
    of_asv = psutil.Process(running.pid).children(recursive=True)
    running.send_signal(signal.SIGKILL)
    running.wait()
    gone, alive = psutil.wait_procs(of_asv, timeout=10)
    assert gone
    assert not alive
    before = measured[0].read_bytes()
    done = regression(toy, out, "six..busy", "--here", "--rounds", "2", "--bench", "steady")
    assert done.returncode == 0, done.stderr
    assert measured[0].read_bytes() == before
    entries = read(out / FILE_NAME).entries
    assert {(e.name, e.commit, e.round) for e in entries if e.values} == {(e.name, e.commit, e.round) for e in entries}
    assert len(entries) == 2 * 2


@pytest.mark.slow
def test_each_commit_is_built_and_installed_in_an_environment(toy: Path, tmp_path: Path) -> None:
    """Two rounds are too few to tell anything, and that is what is said."""
    out = tmp_path / "out"
    done = regression(toy, out, "six..busy", "--rounds", "2", "--bench", "busy")
    assert done.returncode == 0, done.stderr
    assert said(done) == {"busy": "too few rounds to tell (n = 2 and 2)"}
    assert {len(e.values) for e in read(out / FILE_NAME).entries} == {5}
    assert list(out.glob("regression/env/*/lib/python*/site-packages/toy"))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["strat..busy"], "no commit, branch or tag 'strat' (did you mean 'start'?)"),
        (["start..bussy"], "no commit, branch or tag 'bussy' (did you mean 'busy'?)"),
        (["busy..start"], "range 'busy..start': busy does not come before start"),
        (["start...busy"], "range 'start...busy': expected A..B or A, commits, branches or tags"),
        (["busy"], "one commit alone"),
        (["start", "--bench", "("], "--bench (: not a regular expression: missing )"),
        (["start", "--config", "nowhere.json"], "nowhere.json: no such file"),
        (["start", "--rounds", "0"], "argument --rounds: expected a whole number of at least 1, got '0'"),
        (["start", "--repo", "/nowhere"], "/nowhere: no such folder"),
    ],
)
def test_bad_input(
    toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], expected: str
) -> None:
    assert main(["regression", "--repo", str(toy), "--out", str(tmp_path / "out"), *words]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert expected in told
    assert len(told.splitlines()) == 1


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ("{", "not a configuration of asv"),
        ("[]", "not a configuration of asv"),
        ('{"version": 1, "benchmark_dir": "elsewhere"}', "benchmark_dir: no folder"),
        ('{"version": 1, "regressions_thresholds": {"(": 0.1}}', "regressions_thresholds: expected patterns"),
        ('{"version": 1, "regressions_thresholds": {"a": "x"}}', "regressions_thresholds: expected patterns"),
    ],
)
def test_a_bad_configuration(
    toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], config: str, expected: str
) -> None:
    (tmp_path / "benchmarks").mkdir()
    path = tmp_path / "asv.conf.json"
    path.write_text(config)
    assert main(["regression", "start", "--repo", str(toy), "--config", str(path), "--out", str(tmp_path / "out")]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"error: {path}: ")
    assert expected in told
    assert len(told.splitlines()) == 1


def test_outside_a_clone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["regression", "HEAD", "--repo", str(tmp_path)]) == 2
    assert "not in a git clone; --repo DIR names one" in capsys.readouterr().err
