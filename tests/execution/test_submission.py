"""Campaigns on a fake Slurm that starts no job: limits, rejections, cancelled and held jobs, late files.

The queue is kept in files (tests/support/fake_schedulers.py); test_slurm_limits.py tests the same on a real Slurm.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.cli.main import main
from harness.execution.journal import Journal
from harness.execution.schedulers import command
from harness.execution.schedulers.slurm import SlurmScheduler
from tests.support.fake_schedulers import FakeSlurm, print_error

SUITE = """\
name: fleet
title: Many small cases
program: data_parallel
parameters: {datasets: [mptrj], batch_size: 1, precision: fp32}
matrix: {seed: [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]}
resources: {walltime_minutes: 5}
"""
ARGV = ("run", "fleet.yaml", "--system", "slurm")
LIMIT = "sbatch: error: AssocMaxSubmitJobLimit"
POLICY = "sbatch: error: Batch job submission failed: Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)"  # noqa: E501


@pytest.fixture
def queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    fake_queue = FakeSlurm(tmp_path / "bin")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", fake_queue.path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv(command.RETRY_TIMEOUT_VARIABLE, "1")
    monkeypatch.setattr("harness.cli.reports.report_results", lambda _: 0)  # nothing in the logs to report
    monkeypatch.setattr(SlurmScheduler, "queue_delay_s", 0.0)
    monkeypatch.setattr(SlurmScheduler, "poll_s", (0.01, 0.02))
    (tmp_path / "fleet.yaml").write_text(SUITE)
    return fake_queue


@pytest.fixture
def campaign(tmp_path: Path) -> Path:
    return tmp_path / "results" / "runs" / "fleet-slurm"


def finish_cases(campaign: Path, *, code: int | None = 0, seeds: range = range(1, 11)) -> None:
    """Write the files of finished cases; code: None leaves out the exit code."""
    for seed in seeds:
        [folder] = campaign.glob(f"fleet-seed_{seed}-*")
        (folder / "claim").write_text(f"101_{seed}\n")
        log = [{"event": "start", "time_s": 1.0}, {"event": "done", "time_s": 2.0}]
        (folder / "events.jsonl").write_text("".join(f"{json.dumps(event)}\n" for event in log))
        if code is not None:
            (folder / "exit_code").write_text(f"{code}\n1\n")


def get_status(capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    main(["status", *ARGV[1:]])
    return capsys.readouterr().out


def test_jobs_beyond_the_limit_of_the_queue_are_submitted_later(
    queue: FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    """Arrays are halved until the queue accepts them, down to a single job."""
    queue.set_limit(7, f"{LIMIT}\n{POLICY}")
    assert main([*ARGV, "--submit"]) == 0
    assert sum(queue.accepted) == 7
    output = capsys.readouterr()
    assert "3 jobs (3 cases) held back; run the same command later to submit them" in output.err
    assert "AssocMaxSubmitJobLimit" in output.err
    assert "3 not run" in output.out
    assert main([*ARGV, "--submit"]) == 3
    assert "3 jobs (3 cases) held back" in capsys.readouterr().err
    queue.set_limit(100, "")
    assert main([*ARGV, "--submit"]) == 0
    assert sum(queue.accepted) == 10
    assert len(queue.jobs) == 10
    assert "10 waiting" in get_status(capsys)


@pytest.mark.parametrize("limit", [0, 1, 2, 3, 9])
def test_full_queue_causes_no_double_submission(queue: FakeSlurm, campaign: Path, limit: int) -> None:
    queue.set_limit(limit, f"{LIMIT}\n{POLICY}")
    assert main([*ARGV, "--submit"]) == (0 if limit else 3)
    assert sum(queue.accepted) == limit
    assert len(Journal(campaign).active_jobs) == limit


def test_rejected_array_is_halved(queue: FakeSlurm) -> None:
    """Above MaxArraySize, `--array=1-N` is rejected as an invalid specification."""
    body = (queue.folder / "sbatch.1").read_text()
    too_large = print_error("sbatch: error: Batch job submission failed: Invalid job array specification", 1)
    queue.set_answers(
        "sbatch", body.replace("limit=", f'if [ "${{count:-1}}" -gt 4 ]; then {too_large}; fi\nlimit=', 1)
    )
    assert main([*ARGV, "--submit"]) == 0
    assert sum(queue.accepted) == 10
    assert max(queue.accepted) <= 4


@pytest.mark.parametrize("wait", ["--submit", "--wait"])
def test_unclear_rejection_mentions_both_causes(
    queue: FakeSlurm, capsys: pytest.CaptureFixture[str], wait: str
) -> None:
    """The queue contains no job of the campaign, so that a wait might never end."""
    queue.set_limit(0, POLICY)
    assert main([*ARGV, wait]) == 3
    output = capsys.readouterr().err
    assert "10 jobs (10 cases) held back" in output
    assert "too large or too long for the account" in output


def test_rejected_job_does_not_stop_others(
    queue: FakeSlurm, campaign: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("fleet.yaml").write_text(
        SUITE.replace("{walltime_minutes: 5}", "{walltime_minutes: 5, nodes: '{{ 2 if seed > 7 else 1 }}'}")
    )
    body = (queue.folder / "sbatch.1").read_text()
    refusal = print_error("sbatch: error: Batch job submission failed: Node count specification invalid", 1)
    queue.set_answers(
        "sbatch", body.replace("limit=", f"if grep -q 'nodes=2' \"$script\"; then {refusal}; fi\nlimit=", 1)
    )
    assert main([*ARGV, "--submit"]) == 2
    output = capsys.readouterr().err
    assert output.count("Node count specification invalid") == 1
    assert str(campaign / "jobs") in output.splitlines()[-1]
    assert queue.accepted == [7]
    assert len(queue.get_calls("sbatch")) == 2
    assert len(Journal(campaign).active_jobs) == 7
    queue.set_answers("sbatch", body)
    assert main([*ARGV, "--submit"]) == 0
    assert sum(queue.accepted) == 10


@pytest.mark.parametrize("row", ["101_[1-10]", "101_[1-10%2]", "101_[1,2-10]", "101_[1-4,..."])
def test_cancelled_waiting_array_stays_cancelled(
    queue: FakeSlurm, campaign: Path, capsys: pytest.CaptureFixture[str], row: str
) -> None:
    assert main([*ARGV, "--submit"]) == 0
    queue.clear()
    queue.set_accounting(f"{row}|CANCELLED by 1000")
    assert main([*ARGV, "--submit"]) == 3
    assert queue.accepted == [10]
    assert "10 cases did not succeed; add --retry" in capsys.readouterr().err
    status = get_status(capsys)
    assert status.endswith("10 cancelled\n")
    assert status.count("CANCELLED by 1000") == 10
    assert main([*ARGV, "--submit", "--retry"]) == 0
    assert queue.accepted == [10, 10]


def test_cancelled_running_case_keeps_its_records(
    queue: FakeSlurm, campaign: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*ARGV, "--submit"]) == 0
    for folder in campaign.glob("fleet-seed_*"):
        (folder / "claim").write_text("101_1\n")
        (folder / "events.jsonl").write_text('{"event": "start", "time_s": 1.0}\n')
    queue.clear()
    queue.set_accounting(*(f"101_{k}|CANCELLED by 1000" for k in range(1, 11)))
    assert main([*ARGV, "--submit"]) == 3
    assert get_status(capsys).endswith("10 cancelled\n")
    assert not list(campaign.glob("*/attempt-*"))


def test_files_of_a_completed_job_are_awaited(
    queue: FakeSlurm, campaign: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file system may show an exit code long after the scheduler has said that the job completed."""
    assert main([*ARGV, "--submit"]) == 0
    queue.clear()
    queue.set_accounting(*(f"101_{k}|COMPLETED" for k in range(1, 11)))
    assert main([*ARGV, "--submit"]) == 0
    assert "and 9 more: the scheduler says COMPLETED" in capsys.readouterr().err
    status = get_status(capsys)
    assert status.count("waiting for its files") == 10
    finish_cases(campaign)
    assert main([*ARGV, "--submit"]) == 0
    assert queue.accepted == [10]
    assert get_status(capsys).endswith("10 done\n")
    assert not list(campaign.glob("*/attempt-*"))


def test_wait_ends_when_the_files_appear(queue: FakeSlurm, campaign: Path) -> None:
    """The third call of the fake sacct writes the exit codes."""
    assert main([*ARGV, "--submit"]) == 0
    finish_cases(campaign, code=None)
    queue.clear()
    queue.set_accounting(*(f"101_{k}|COMPLETED" for k in range(1, 11)))
    write_exit_codes = f"for case in {campaign}/fleet-seed_*; do printf '0\\n1\\n' > $case/exit_code; done\n"
    body = (queue.folder / "sacct.1").read_text()
    queue.set_answers("sacct", body, body, write_exit_codes + body)
    assert main([*ARGV, "--wait"]) == 0
    assert queue.accepted == [10]
    assert not list(campaign.glob("*/attempt-*"))


@pytest.mark.parametrize("state", ["COMPLETED", ""])
def test_vanished_job_without_history_is_not_submitted_again(queue: FakeSlurm, campaign: Path, state: str) -> None:
    """If Slurm keeps no history of jobs, the harness waits for their files too."""
    assert main([*ARGV, "--submit"]) == 0
    queue.clear()
    queue.set_accounting(*(f"101_{k}|{state}" for k in range(1, 11) if state))
    for _ in range(3):
        assert main([*ARGV, "--submit"]) == 0
    assert queue.accepted == [10]


def test_completed_job_without_files_is_not_submitted_again(
    queue: FakeSlurm, campaign: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*ARGV, "--submit"]) == 0
    for folder in campaign.glob("fleet-seed_*"):
        (folder / "claim").write_text("101_1\n")
        (folder / "stdout").write_text("all is well\n")
    queue.clear()
    queue.set_accounting(*(f"101_{k}|COMPLETED" for k in range(1, 11)))
    monkeypatch.setenv("GFM_HARNESS_FILES_S", "0.1")
    assert main([*ARGV, "--wait"]) == 3
    assert queue.accepted == [10]
    assert "no exit code was written" in get_status(capsys)
    finish_cases(campaign)  # a late exit code still counts
    assert main([*ARGV, "--wait"]) == 0
    assert queue.accepted == [10]
    assert not list(campaign.glob("*/attempt-*"))


def test_job_alive_in_accounting_is_not_submitted_again(queue: FakeSlurm) -> None:
    """squeue's output may have been truncated."""
    queue.set_answers("scontrol", print_error("slurm_load_jobs error: Unable to contact slurm controller", 1))
    assert main([*ARGV, "--submit"]) == 0
    queue.clear()
    queue.set_accounting("101_[1-10]|PENDING")
    assert main([*ARGV, "--submit"]) == 0
    assert queue.accepted == [10]


def test_id_of_another_job_is_not_trusted(queue: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the output of sbatch is damaged so that its id is that of a failed job, the harness waits for its own job."""
    monkeypatch.setenv("GFM_HARNESS_FILES_S", "100")
    assert main([*ARGV, "--submit"]) == 0
    queue.clear()
    (queue.folder / "submissions").write_text("another 10\n")
    queue.set_accounting(*(f"101_{k}|FAILED" for k in range(1, 11)))
    assert main([*ARGV, "--submit"]) == 0
    assert queue.accepted == [10], "no array has been submitted again"


def test_stuck_jobs_end_the_wait(queue: FakeSlurm, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*ARGV, "--submit"]) == 0
    text = (queue.folder / "jobs").read_text()
    (queue.folder / "jobs").write_text(text.replace("Priority", "launch failed requeued held"))
    assert main([*ARGV, "--wait"]) == 3
    output = capsys.readouterr().err
    assert (
        "and 9 more: waiting, for the scheduler's reason: launch failed requeued held; it will not start by itself"
        in output
    )
    assert "the remaining jobs cannot start" in output
    assert get_status(capsys).count("launch failed requeued held (it will not start by itself)") == 10


def test_unavailable_scheduler_is_reported_at_once(queue: FakeSlurm, capfd: pytest.CaptureFixture[str]) -> None:
    assert main([*ARGV, "--submit"]) == 0
    queue.set_answers(
        "squeue", print_error("slurm_load_jobs error: Unable to contact slurm controller (connect failure)", 1)
    )
    capfd.readouterr()
    assert main([*ARGV, "--submit"]) == 3
    output = [x for x in capfd.readouterr().err.splitlines() if "preflight" not in x]
    assert output[0].startswith("squeue: slurm_load_jobs error: Unable to contact slurm controller")
    assert output[0].endswith("trying again for up to 1 s")
    assert "no work is lost" in output[-1]
    assert queue.accepted == [10]


def test_every_command_reports_that_slurm_is_missing(
    queue: FakeSlurm, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main([*ARGV, "--submit"]) == 0
    for program in ("squeue", "sacct", "scontrol", "sbatch"):
        (queue.folder / program).unlink()
    monkeypatch.setenv("PATH", f"{queue.folder}:/usr/bin-without-slurm")
    for command_line in (["run", *ARGV[1:], "--submit"], ["collect", *ARGV[1:]]):
        assert main(command_line) == 2
        assert "squeue: no such command on this machine" in capfd.readouterr().err.splitlines()[-1]
    assert main(["status", *ARGV[1:]]) == 3
    assert "the states below are the last ones that the scheduler reported" in capfd.readouterr().err


def test_new_attempt_gets_the_number_after_the_highest(queue: FakeSlurm, campaign: Path) -> None:
    assert main([*ARGV, "--submit"]) == 0
    folders = list(campaign.glob("fleet-seed_*"))
    for folder in folders:
        (folder / "attempt-2").mkdir()
        (folder / "attempt-x").mkdir()
    finish_cases(campaign, code=1)
    queue.clear()
    assert main([*ARGV, "--submit", "--retry"]) == 3
    assert main([*ARGV, "--submit", "--retry"]) == 0
    assert all((folder / "attempt-3" / "exit_code").read_text() == "1\n1\n" for folder in folders)
