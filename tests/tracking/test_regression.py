"""With asv on a small history, slowdowns are detected at their commits, and unchanged benchmarks raise no alarm."""

from __future__ import annotations

import errno
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
from harness.protocol.errors import UsageError
from harness.tracking import asv_runner
from harness.tracking.asv_runner import AsvSession, Project
from harness.tracking.git_commits import Commit
from harness.tracking.history import HISTORY_FILE, read_history
from tests.conftest import ROOT, require_program

# Two kinds of time: CPU time of a real loop, since other tests run at the same time, and a simulated clock with 1% of
# noise.
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
# Tag of each commit -> the lengths of the loops busy, steady, three and six.
LOOP_LENGTHS = {"start": (100, 100, 100, 100), "three": (100, 100, 103, 100), "six": (100, 100, 103, 106),
           "busy": (300, 100, 103, 106)}  # fmt: skip
Completed = subprocess.CompletedProcess[str]
# One series in a hundred has a significant change by chance, which is below the threshold.
NO_ALARM = r"no change|too noisy to tell|(slower|faster) .*, below the [\d.]+% that counts"


def git(repo: Path, *arguments: str) -> str:
    author = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    return subprocess.run(["git", "-C", repo, *author, *arguments], check=True, capture_output=True, text=True).stdout


def make_session(folder: Path, *, in_place: bool = True) -> AsvSession:
    commits = [Commit("a" * 40, 1, "a"), Commit("b" * 40, 2, "b")]
    return AsvSession(Project(folder, {}, folder), commits, {"machine": "m"}, in_place, folder / "regression")


def test_session_has_one_identifier_for_all_of_its_rounds(tmp_path: Path) -> None:
    session = make_session(tmp_path)
    before = session.id
    (tmp_path / "bench.py").write_text("a benchmark that is edited between two rounds")
    assert session.id == before
    assert make_session(tmp_path).id != before


def test_renamed_benchmark_file_begins_another_session(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("1")
    before = make_session(tmp_path).id
    (tmp_path / "a.py").rename(tmp_path / "b.py")
    assert make_session(tmp_path).id != before


@pytest.mark.parametrize("in_place", [True, False])
def test_installed_packages_identify_a_session_that_runs_in_place(
    in_place: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = make_session(tmp_path, in_place=in_place).id
    monkeypatch.setattr(asv_runner, "list_packages", lambda: ["torch 99"])
    assert (make_session(tmp_path, in_place=in_place).id != before) == in_place


def test_results_that_cannot_be_read_are_not_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    truncated, valid = tmp_path / "a.json", tmp_path / "b.json"
    truncated.write_text('{"result": [1')
    valid.write_text('{"result": [1]}')
    asv_runner._remove_truncated(tmp_path)
    assert not truncated.exists()

    def fail(path: Path) -> bytes:
        raise OSError(errno.EIO, "Input/output error", str(path))

    monkeypatch.setattr(Path, "read_bytes", fail)
    with pytest.raises(OSError, match="Input/output error"):
        asv_runner._remove_truncated(tmp_path)
    assert valid.exists()


@pytest.mark.parametrize(("output", "reason"), [("", "no output"), ("a\nb\n \n", "b")])
def test_error_of_asv_is_the_last_line_of_this_call(
    output: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_asv(command: object, handle: int) -> int:
        os.write(handle, output.encode())
        return 1

    session = make_session(tmp_path)
    session.folder.mkdir(parents=True)
    (session.folder / asv_runner.LOG).write_text("the last line of an earlier call\n")
    monkeypatch.setattr(asv_runner, "_run_asv", run_asv)
    with pytest.raises(UsageError, match=rf"^asv stopped: {reason}\n"):
        asv_runner.run_round(session, 1, ())


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a repository of four commits; each commit except the first makes one function slower."""
    require_program("git")
    repo = tmp_path_factory.mktemp("toy")
    for name in ("toy", "benchmarks"):
        (repo / name).mkdir()
        (repo / name / "__init__.py").touch()
    (repo / "asv.conf.json").write_text(CONFIG)
    (repo / "pyproject.toml").write_text(PROJECT + BACKEND)
    (repo / "benchmarks" / "toys.py").write_text(BENCHMARKS)
    git(repo, "init", "--quiet", "--initial-branch=main")
    for name, lengths in LOOP_LENGTHS.items():
        (repo / "toy" / "__init__.py").write_text(PACKAGE.format(lengths))
        git(repo, "add", "--all")
        git(repo, "commit", "--quiet", "--message", f"{name} changed")
        git(repo, "tag", name)
    return repo


def run_regression(repo: Path, out: Path, *arguments: str) -> Completed:
    command = [sys.executable, "-m", "harness", "regression", "-q", "--repo", str(repo), "--out", str(out), *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HOME": str(out.parent)}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=out.parent)


@pytest.fixture(scope="module")
def full_session(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Completed, Path]:
    out = tmp_path_factory.mktemp("full") / "out"
    return run_regression(toy, out, "start..busy", "--here", "--rounds", "8"), out


def parse_verdicts(result: Completed) -> dict[str, str]:
    """Return the verdicts by the name of the benchmark, without its module."""
    return dict(re.findall(r"^toys\.\w+\.time_(\w+): (.*)$", result.stdout, re.MULTILINE))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "percent", "tolerance"), [("busy", 200, 60), ("six", 6, 1.5), ("three", 3, 1.5)])
def test_slowdown_is_detected_at_its_commit(
    full_session: tuple[Completed, Path], name: str, percent: float, tolerance: float
) -> None:
    """Eight rounds of four commits show 3% of a clock with 1% noise, and three times the length of a busy loop."""
    result, _ = full_session
    assert result.returncode == 1, result.stderr
    match = re.fullmatch(
        r"slower ([\d.]+)% \[(-?[\d.]+), ([\d.]+)\] \(n = (\d+) and (\d+)\) since (\w{10}) \((.*)\)",
        parse_verdicts(result)[name],
    )
    assert match is not None, parse_verdicts(result)
    assert float(match[1]) == pytest.approx(percent, abs=tolerance)
    assert float(match[2]) < float(match[1]) < float(match[3])
    assert match[7] == f"{name} changed"


@pytest.mark.slow
def test_unchanged_benchmark_raises_no_alarm_and_is_not_measured_again(
    toy: Path, full_session: tuple[Completed, Path]
) -> None:
    _, out = full_session
    before = (out / HISTORY_FILE).read_bytes()
    result = run_regression(toy, out, "start..busy", "--here", "--rounds", "8", "--bench", "steady")
    assert result.returncode == 0, result.stderr
    assert set(parse_verdicts(result)) == {"steady"}
    assert re.match(NO_ALARM, parse_verdicts(result)["steady"])
    assert re.search(r"\bn = 8 and 8\)|that counts$", parse_verdicts(result)["steady"])
    assert (out / HISTORY_FILE).read_bytes() == before


@pytest.mark.slow
def test_session_writes_only_below_its_output_folder(toy: Path, full_session: tuple[Completed, Path]) -> None:
    _, out = full_session
    assert git(toy, "status", "--porcelain", "--ignored") == ""
    assert not (out.parent / ".asv-machine.json").exists()


@pytest.mark.slow
def test_page_shows_regressions_without_network_access(full_session: tuple[Completed, Path]) -> None:
    _, out = full_session
    page = (out / "regression.html").read_text()
    assert not re.search(
        r'<script [^>]*src=|<link|(src|href)="\w+:', re.sub(r"<metadata>.*?</metadata>", "", page, flags=re.DOTALL)
    )
    assert page.count('class="bad">regression') == 3
    assert "six changed" in page
    assert re.search(r'<img src="figures/[^"]+\.svg"', page)
    for link in re.findall(r'(?:href|src)="([^"#]+)"', page + (out / "index.html").read_text()):
        assert (out / link).exists(), link


@pytest.mark.slow
def test_killed_session_is_resumed_by_the_same_command(toy: Path, tmp_path: Path) -> None:
    """No process of asv survives, finished measurements do not change, and none is missing at the end."""
    out = tmp_path / "out"
    command = [sys.executable, "-m", "harness", "regression", "six..busy", "--here", "--rounds", "2"]
    command += ["--bench", "steady", "--repo", str(toy), "--out", str(out)]
    running = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (measured := sorted(out.glob("regression/*/round-*/results/*/*-sources*.json"))):
        assert time.monotonic() < deadline
        assert running.poll() is None
        time.sleep(0.02)
    asv_processes = psutil.Process(running.pid).children(recursive=True)
    running.send_signal(signal.SIGKILL)
    running.wait()
    gone, alive = psutil.wait_procs(asv_processes, timeout=10)
    assert gone
    assert not alive
    before = measured[0].read_bytes()
    result = run_regression(toy, out, "six..busy", "--here", "--rounds", "2", "--bench", "steady")
    assert result.returncode == 0, result.stderr
    assert measured[0].read_bytes() == before
    measurements = read_history(out / HISTORY_FILE).measurements
    assert all(m.values for m in measurements)
    assert len({m.key for m in measurements}) == len(measurements) == 2 * 2


@pytest.mark.slow
def test_each_commit_is_installed_in_an_environment(toy: Path, tmp_path: Path) -> None:
    """Two rounds are too few for a verdict."""
    out = tmp_path / "out"
    result = run_regression(toy, out, "six..busy", "--rounds", "2", "--bench", "busy")
    assert result.returncode == 0, result.stderr
    assert parse_verdicts(result) == {"busy": "too few rounds to tell (n = 2 and 2)"}
    assert {len(m.values) for m in read_history(out / HISTORY_FILE).measurements} == {5}
    assert list(out.glob("regression/env/*/lib/python*/site-packages/toy"))


@pytest.mark.parametrize(
    ("arguments", "expected"),
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
def test_bad_argument_is_an_error_of_one_line(
    toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], expected: str
) -> None:
    assert main(["regression", "--repo", str(toy), "--out", str(tmp_path / "out"), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert expected in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ("{", "not a configuration of asv"),
        ("[]", "not a configuration of asv"),
        ('{"version": 1, "benchmark_dir": "elsewhere"}', "benchmark_dir: no folder"),
        ('{"version": 1, "regressions_thresholds": {"(": 0.1}}', "thresholds: '(': 0.1, expected a pattern"),
        ('{"version": 1, "regressions_thresholds": {"a": "x"}}', "thresholds: 'a': 'x', expected a pattern"),
    ],
)
def test_bad_configuration_is_an_error_of_one_line(
    toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], config: str, expected: str
) -> None:
    (tmp_path / "benchmarks").mkdir()
    path = tmp_path / "asv.conf.json"
    path.write_text(config)
    assert main(["regression", "start", "--repo", str(toy), "--config", str(path), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {path}: ")
    assert expected in error
    assert len(error.splitlines()) == 1


def test_folder_outside_a_clone_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["regression", "HEAD", "--repo", str(tmp_path)]) == 2
    assert "not in a git clone; --repo DIR names one" in capsys.readouterr().err
