"""Drills plant their fault, pass if the harness reacts as expected, and fail if it does not."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import Mock, call

import pytest

from harness.config.resources import find_resource
from harness.config.system import load_system
from harness.drills import drills, faults
from harness.drills import exercise as exercises
from harness.drills.drills import DRILLS, Recovery, Result, run_drill
from harness.drills.exercise import DrillFailed, DrillImpossible, Exercise
from harness.drills.site import Site
from tests.conftest import Harness

DRILLS_BY_NAME = {drill.name: drill for drill in DRILLS}


def make_site(name: str) -> Site:
    path = find_resource("systems", name)
    return Site(load_system(path, {}), path)


def test_unknown_drill_is_bad_input(harness: Harness) -> None:
    result = harness("drill", "node-die")
    assert result.returncode == 2
    assert result.stderr == "error: unknown drill 'node-die' (did you mean 'node-dies'?)\n"
    listed = harness("drill", "--list").stdout
    assert all(f"{drill.name} " in listed for drill in DRILLS)


def test_fault_that_cannot_be_planted_is_not_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    verdicts = {}
    for system in ("local", "perlmutter"):
        for drill in DRILLS:
            reason = drill.explain_impossible(make_site(system))
            verdicts[system, drill.name] = reason is None
            if reason is not None:
                result = run_drill(drill, make_site(system), tmp_path / "drill", 1)
                assert result.verdict == "not possible"
                assert reason in result.format()
    assert not (tmp_path / "drill").exists()
    assert [name for (system, name), possible in verdicts.items() if possible and system == "local"] == [
        "rank-hangs", "gpu-error",
    ]  # fmt: skip
    assert verdicts["perlmutter", "scheduler-away"]
    assert not verdicts["perlmutter", "disk-full"]


def test_fault_that_the_machine_refuses_is_not_possible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root of a container may not mount disks."""
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr(faults, "DISK_BYTES", "nonsense")
    result = run_drill(DRILLS_BY_NAME["disk-full"], make_site("local"), tmp_path / "drill", 1)
    assert result.verdict == "not possible"
    assert result.detail.startswith("mount: ")


def test_launcher_strikes_one_rank_of_one_case_once(tmp_path: Path) -> None:
    launcher, case = tmp_path / "launcher.sh", tmp_path / "drill-seed_2-x"
    launcher.write_text(exercises.LAUNCHER % "kill -KILL $$")
    launcher.chmod(0o755)
    case.mkdir()
    (case / "events.jsonl").write_text('{"event": "fact", "name": "ranks", "value": []}\n')

    def run(rank: int, folder: str) -> int:
        command = [str(launcher), "sh", "-c", "sleep 3", str(tmp_path / folder)]
        return subprocess.run(command, env={"PATH": "/usr/bin:/bin", "SLURM_PROCID": str(rank)}, check=False).returncode

    assert run(0, case.name) == 0
    assert run(1, "drill-seed_1-x") == 0
    assert run(1, case.name) == -9
    assert run(1, case.name) == 0


class RecordedExercise:
    """What a drill observes after a fault from which the case starts again by itself."""

    output = "one line\nan error of a GPU: 1: NVRM: Xid (PCI:0): 79\n"
    codes: ClassVar[list[int]] = [0]
    states = ("done", "done")
    first_case: ClassVar[list[bytes]] = [b"before", b"before"]
    starts: ClassVar[dict[int, int]] = {1: 1, 2: 2}
    nodes = ("n1", "n3")
    faulty_nodes = "n2 NVRM: Xid\n"

    def __init__(self, site: Site, folder: Path, stall_s: float) -> None:
        self.site, self.stall_s = site, stall_s
        self.campaign = folder
        (folder / "jobs").mkdir(parents=True)
        (folder / "jobs" / "faulty_nodes").write_text(self.faulty_nodes)
        self._codes, self._first_case = iter(self.codes), iter(self.first_case)

    def wait_for_harness(self) -> int:
        return next(self._codes)

    def read_first_case(self) -> bytes:
        return next(self._first_case)

    def list_states(self) -> tuple[str, ...]:
        return self.states

    def count_starts(self, number: int) -> int:
        return self.starts[number]

    def read_ranks(self) -> list[dict[str, str]]:
        return [{"node": node} for node in self.nodes]

    def __getattr__(self, name: str) -> Callable[..., None]:
        assert name in ("write_files", "start_harness", "wait_for", "stop")
        return lambda *_: None


def judge(folder: Path, monkeypatch: pytest.MonkeyPatch, recovery: Recovery, **observed: Any) -> Result:
    monkeypatch.setattr(drills, "Exercise", type("Observed", (RecordedExercise,), observed))
    drill = replace(DRILLS_BY_NAME["gpu-error"], plant=lambda _: None, recovery=recovery)
    return run_drill(drill, make_site("slurm"), folder, 1)


def test_expected_reaction_is_ok(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = judge(tmp_path / "a", monkeypatch, "starts again by itself")
    assert (result.verdict, result.detail) == (
        "ok", "'an error of a GPU: 1: NVRM: Xid (PCI:0): 79'; the case starts again by itself",
    )  # fmt: skip
    assert judge(tmp_path / "b", monkeypatch, "starts again with --retry", codes=[3, 0]).verdict == "ok"
    assert judge(tmp_path / "c", monkeypatch, "continues", starts={1: 1, 2: 1}).verdict == "ok"


@pytest.mark.parametrize(
    ("recovery", "observed", "message"),
    [
        ("starts again by itself", {"output": "killed"}, "no line in the output matches"),
        ("starts again by itself", {"codes": [3]}, "the harness ended with exit code 3, expected 0"),
        ("starts again with --retry", {"codes": [0]}, "the harness ended with exit code 0, expected 3"),
        ("starts again with --retry", {"codes": [3, 3]}, "exit code 3 after the fault, expected 0"),
        ("starts again by itself", {"states": ("done", "lost")}, "the states of the cases are done, lost"),
        ("starts again by itself", {"states": ()}, "the states of the cases are unknown"),
        ("starts again by itself", {"first_case": [b"before", b"after"]}, "the records of the first case"),
        ("starts again by itself", {"starts": {1: 2, 2: 2}}, "the first case, which had ended, was started again"),
        ("continues", {}, "number of starts of the second case: 2, expected 1;"),
        ("starts again by itself", {"starts": {1: 1, 2: 1}}, "of the second case: 1, expected more than 1;"),
        ("starts again by itself", {"nodes": ("n1", "n2")}, "ran again on n2, where a GPU had reported an error"),
        ("starts again by itself", {"faulty_nodes": ""}, "no node is excluded from further jobs"),
    ],
)
def test_every_other_reaction_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recovery: Recovery, observed: dict[str, Any], message: str
) -> None:
    result = judge(tmp_path / "drill", monkeypatch, recovery, **observed)
    assert result.verdict == "failed"
    assert message in result.detail
    assert f"its files are in {tmp_path / 'drill'}" in result.detail


def test_error_of_the_drill_itself_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other drills still take place."""
    monkeypatch.setattr(drills, "Exercise", RecordedExercise)
    for error in (RuntimeError("n2 is not back\na log"), OSError("no space"), subprocess.TimeoutExpired("squeue", 9)):

        def plant(_: Exercise, error: Exception = error) -> None:
            raise error

        folder = tmp_path / type(error).__name__
        result = run_drill(replace(DRILLS_BY_NAME["node-dies"], plant=plant, explain_impossible=lambda _: None),
                           make_site("slurm"), folder, 1)  # fmt: skip
        assert (result.verdict, result.detail) == ("failed", f"{str(error).splitlines()[0]}; its files are in {folder}")
        assert str(error) in (folder / "traceback.txt").read_text()


def test_commands_that_cannot_plant_and_those_that_cannot_remove_a_fault_differ() -> None:
    for command in ("false", "no-such-command"):
        with pytest.raises(DrillImpossible, match=command):
            faults.run_or_give_up(command)
    with pytest.raises(RuntimeError, match="false: exit code 1"):
        faults.run_command("false")


def test_node_is_started_again_after_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Mock()
    exercise = Exercise(replace(make_site("slurm"), cluster=cluster), tmp_path / "drill", 1)
    monkeypatch.setattr(exercise, "read_ranks", lambda: [{"node": "n1"}, {"node": "n2"}])
    monkeypatch.setattr(exercise, "wait_for_harness", Mock(side_effect=DrillFailed("no end")))
    with pytest.raises(DrillFailed, match="no end"):
        faults.kill_node(exercise)
    assert cluster.mock_calls == [call.kill_node("n2"), call.restart_node("n2")]


def test_disk_that_the_case_fills_first_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exercise = Exercise(make_site("local"), tmp_path / "drill", 1)
    exercise.results.mkdir()
    wait = Mock()
    monkeypatch.setattr(exercise, "wait_for_harness", wait)
    monkeypatch.setattr("os.statvfs", lambda _: Mock(f_bavail=1, f_frsize=1))
    monkeypatch.setattr(Path, "write_bytes", Mock(side_effect=OSError("no space")))
    faults.fill_disk(exercise)
    wait.assert_called_once()
    assert not list(exercise.results.iterdir())


def test_launcher_that_did_not_strike_and_missing_records_are_failures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exercise = Exercise(make_site("local"), tmp_path / "drill", 1)
    monkeypatch.setattr(exercise, "wait_for_harness", lambda: 0)
    with pytest.raises(DrillFailed, match="did not strike"):
        faults.wait_for_end(exercise)
    (exercise.folder / "launcher.sh.struck").mkdir()
    faults.wait_for_end(exercise)
    with pytest.raises(DrillFailed, match=r"has no file events\.jsonl"):
        exercise.read_first_case()


@pytest.mark.parametrize("command", ["exit 1", "trap '' TERM; echo; exec sleep 60"], ids=["ended", "ignores SIGTERM"])
def test_jobs_are_cancelled_after_any_end_of_the_harness(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setattr(exercises, "STOP_TIMEOUT_S", 0.5)
    exercise = Exercise(make_site("local"), tmp_path / "drill", 1)
    exercise.write_files()
    with subprocess.Popen(["sh", "-c", command], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        exercise._process = process
        exercise.stop()
        assert process.returncode in (1, -9)
    assert exercise.output == "drill-drill: 0 jobs cancelled\n"


def test_exercise_uses_the_settings_of_the_user(tmp_path: Path) -> None:
    path = find_resource("systems", "slurm")
    site = Site(load_system(path, {"partition": "debug"}), path)
    exercise = Exercise(site, tmp_path / "drill", 1)
    exercise.write_files("true")
    system = load_system(tmp_path / "drill" / "system.yaml", {})
    assert system.definition.launch[-1].endswith("launcher.sh")
    assert system.definition.launch[:-1] == site.system.definition.launch
