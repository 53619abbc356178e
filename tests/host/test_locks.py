"""Locks exclude other processes, on file systems with and without flock."""

from __future__ import annotations

import errno
import fcntl
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from harness.host.locks import FileLock, LockTaken, hold_folder_lock, hold_lock, is_locked
from harness.protocol.errors import UsageError
from harness.reference.datasets.conversion.spool import Spool
from harness.reference.errors import InputError
from harness.reference.profiling.node_sampler import NodeSampler
from tests.execution.test_run_case import ScriptedJob, make_job

ERRORS_WITHOUT_LOCKING = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)


@pytest.fixture(params=ERRORS_WITHOUT_LOCKING, ids=lambda number: errno.errorcode[number])
def failing_flock(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make flock fail as it does on Lustre and NFS without locking."""

    def refuse(*_: Any) -> None:
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", refuse)


@pytest.fixture(params=["with flock", "without flock"])
def with_or_without_flock(request: pytest.FixtureRequest) -> None:
    if request.param == "without flock":
        request.getfixturevalue("monkeypatch").setattr(fcntl, "flock", _not_implemented)


def _not_implemented(*_: Any) -> None:
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))


def test_lock_is_held_until_released(tmp_path: Path, with_or_without_flock: None) -> None:
    path = tmp_path / "lock"
    assert not is_locked(path)
    with hold_lock(path):
        assert is_locked(path)
        with pytest.raises(LockTaken), hold_lock(path):
            pass
        assert is_locked(path)
    assert not is_locked(path)
    with hold_lock(path):
        pass


def test_refused_lock_names_its_holder(tmp_path: Path, failing_flock: None) -> None:
    with hold_lock(tmp_path / "lock"), pytest.raises(LockTaken) as error, hold_lock(tmp_path / "lock"):
        pass
    assert f"process {os.getpid()} on {platform.node()} since 20" in str(error.value)
    assert str(error.value).endswith(f"; if it is gone, remove {tmp_path / 'lock.held'}")


def test_ended_holder_on_this_host_is_ignored(tmp_path: Path, failing_flock: None) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    path = tmp_path / "lock"
    for text in (
        f"{platform.node()} {ended.pid} {time.time():.0f}",
        f"{platform.node()} {os.getpid()} 1",  # the process id was reused later
    ):
        (tmp_path / "lock.held").write_text(text)
        assert not is_locked(path) or not path.exists()
        with hold_lock(path):
            assert (tmp_path / "lock.held").read_text().split()[1] == str(os.getpid())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["lock"]


@pytest.mark.parametrize("text", ["elsewhere 1 1", "", "half", "a b c"])
def test_holder_on_another_host_is_respected(tmp_path: Path, failing_flock: None, text: str) -> None:
    (tmp_path / "lock.held").write_text(text)
    with pytest.raises(LockTaken, match=r"if it is gone, remove .*lock\.held"), hold_lock(tmp_path / "lock"):
        pass


def test_transferred_lock_lives_as_long_as_its_new_holder(tmp_path: Path, failing_flock: None) -> None:
    path = tmp_path / "lock"
    with path.open("a") as file:
        lock = FileLock(path, file.fileno())
        lock.acquire()
        with subprocess.Popen(["sleep", "60"]) as child:
            lock.transfer(child.pid)
            assert is_locked(path)
            child.kill()
        assert not is_locked(path)


def test_other_errors_of_the_file_system_are_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail_with_io_error(*_: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", fail_with_io_error)
    with pytest.raises(OSError, match="Input/output"), hold_lock(tmp_path / "lock"):
        pass


def test_campaign_and_conversion_lock_without_flock(tmp_path: Path, failing_flock: None) -> None:
    with hold_folder_lock(tmp_path), pytest.raises(UsageError) as campaign, hold_folder_lock(tmp_path):
        pass
    assert f"another harness process is working in this folder (process {os.getpid()} on" in str(campaign.value)
    spool = Spool(tmp_path / "spool", {})
    with spool.lock(), pytest.raises(InputError) as conversion, spool.lock():
        pass
    assert f"another conversion is at work here (process {os.getpid()} on" in str(conversion.value)
    with spool.lock():
        pass


def test_sampler_works_without_flock(tmp_path: Path, failing_flock: None) -> None:
    sampler = NodeSampler(tmp_path / "node-0.jsonl", 0.05, [lambda: [("metric", {}, 1.0)]])
    sampler.start()
    sampler.stop()
    assert '"metric"' in (tmp_path / "node-0.jsonl").read_text()


@pytest.fixture(params=["no program", "no locks on the file system"])
def job_without_flock(request: pytest.FixtureRequest, tmp_path: Path) -> ScriptedJob:
    """Return a local job on a machine where the program `flock` is missing, or fails."""
    job = make_job(tmp_path, "local")
    if request.param == "no program":
        tools = tmp_path / "tools"
        tools.mkdir()
        for program in ("bash", "cat", "cp", "cut", "date", "grep", "head", "mkdir", "mv", "rm", "sed", "sleep", "sort",
                        "tail", "timeout", "wc"):  # fmt: skip
            (tools / program).symlink_to(shutil.which(program) or "")
        job.environment["PATH"] = f"{tmp_path}/bin:{tools}"
    else:
        (tmp_path / "bin" / "flock").write_text("#!/bin/sh\necho 'flock: 9: Function not implemented' >&2\nexit 71\n")
        (tmp_path / "bin" / "flock").chmod(0o755)
    return job


def test_job_runs_once_at_a_time_without_flock(job_without_flock: ScriptedJob) -> None:
    holder_file = job_without_flock.script.with_suffix(".lock.held")
    job_without_flock.set_action(0, 'cat "$HELD" > holder; bash "$SCRIPT" 2> second || echo "$?" >> second')
    first = job_without_flock.run(HELD=str(holder_file), SCRIPT=str(job_without_flock.script))
    assert first.returncode == 0, first.stderr
    assert "Function not implemented" not in first.stderr
    assert job_without_flock.exit_codes == ["0", "0", "0"]
    assert (job_without_flock.cases[0] / "second").read_text() == "error: this job is already running here\n3\n"
    assert (job_without_flock.cases[0] / "holder").read_text().split()[0] == "login"
    assert not holder_file.exists()


def test_job_takes_the_lock_of_a_killed_one(job_without_flock: ScriptedJob) -> None:
    holder_file = job_without_flock.script.with_suffix(".lock.held")
    holder_file.write_text("login 4194304 1\n")  # larger than any process id
    result = job_without_flock.run()
    assert result.returncode == 0, result.stderr
    holder_file.write_text("elsewhere 4194304 1\n")
    assert job_without_flock.run().returncode == 3


def test_scheduler_lists_the_job_that_holds_a_named_lock(tmp_path: Path, failing_flock: None) -> None:
    from harness.execution.schedulers.local import LocalScheduler

    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "a.lock").touch()
    (tmp_path / "jobs" / "a.lock.held").write_text(f"{platform.node()} {os.getpid()} {time.time():.0f}\n")
    (tmp_path / "jobs" / "b.lock").touch()
    assert [job.id for job in LocalScheduler(tmp_path).list_jobs(["a", "b", "c"])] == ["a"]


@pytest.mark.slow
def test_one_of_many_concurrent_processes_gets_the_lock(tmp_path: Path) -> None:
    """The lock file of a process that has ended is ignored."""
    (tmp_path / "lock.held").write_text(f"{platform.node()} 4194304 1\n")
    script = (
        "import errno, fcntl, sys, time\nfrom pathlib import Path\nfrom harness.host import locks\n"
        "def refuse(*_):\n    raise OSError(errno.ENOSYS, '')\n"
        "fcntl.flock = refuse\n"
        "try:\n    with locks.hold_lock(Path(sys.argv[1])):\n        print('mine', flush=True)\n        time.sleep(2)\n"
        "except locks.LockTaken:\n    print('taken')\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "lock")]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(12)]
    outputs = [process.communicate()[0].strip() for process in started]
    assert sorted(outputs) == ["mine", *["taken"] * 11]
