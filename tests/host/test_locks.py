"""Locks hold between processes, on file systems that have none too, and say so in words when they do not."""

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

from harness.execution.campaign_lock import alone
from harness.host.locks import FileLock, LockTaken, is_locked, locked
from harness.protocol.errors import UsageError
from harness.reference.datasets.conversion.spool import Spool
from harness.reference.errors import InputError
from harness.reference.profiling.node_sampler import Sampler
from tests.execution.test_run_case import Made, make

REFUSALS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)


@pytest.fixture(params=REFUSALS, ids=lambda number: errno.errorcode[number])
def no_locks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that answers flock as Lustre and NFS do without locks."""

    def refuse(*_: Any) -> None:
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", refuse)


@pytest.fixture(params=["with flock", "without"])
def either(request: pytest.FixtureRequest) -> None:
    if request.param == "without":
        request.getfixturevalue("monkeypatch").setattr(fcntl, "flock", _not_implemented)


def _not_implemented(*_: Any) -> None:
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))


def test_a_lock_is_held_until_it_is_given_up(tmp_path: Path, either: None) -> None:
    path = tmp_path / "lock"
    assert not is_locked(path)
    with locked(path):
        assert is_locked(path)
        with pytest.raises(LockTaken), locked(path):
            pass
        assert is_locked(path)
    assert not is_locked(path)
    with locked(path):
        pass


def test_the_holder_is_named(tmp_path: Path, no_locks: None) -> None:
    with locked(tmp_path / "lock"), pytest.raises(LockTaken) as error, locked(tmp_path / "lock"):
        pass
    assert f"process {os.getpid()} on {platform.node()} since 20" in str(error.value)
    assert str(error.value).endswith(f"; if it is gone, remove {tmp_path / 'lock.held'}")


def test_a_holder_of_this_host_that_is_gone_holds_nothing(tmp_path: Path, no_locks: None) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    path = tmp_path / "lock"
    for text in (
        f"{platform.node()} {ended.pid} {time.time():.0f}",
        f"{platform.node()} {os.getpid()} 1",  # the number went to another process later
    ):
        (tmp_path / "lock.held").write_text(text)
        assert not is_locked(path) or not path.exists()
        with locked(path):
            assert (tmp_path / "lock.held").read_text().split()[1] == str(os.getpid())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["lock"]


@pytest.mark.parametrize("text", ["elsewhere 1 1", "", "half", "a b c"])
def test_of_another_host_or_without_a_name_nobody_can_tell(tmp_path: Path, no_locks: None, text: str) -> None:
    (tmp_path / "lock.held").write_text(text)
    with pytest.raises(LockTaken, match=r"if it is gone, remove .*lock\.held"), locked(tmp_path / "lock"):
        pass


def test_a_lock_that_is_passed_on_lives_as_long_as_its_new_holder(tmp_path: Path, no_locks: None) -> None:
    path = tmp_path / "lock"
    with path.open("a") as file:
        lock = FileLock(path, file.fileno())
        lock.acquire()
        with subprocess.Popen(["sleep", "60"]) as child:
            lock.pass_on(child.pid)
            assert is_locked(path)
            child.kill()
        assert not is_locked(path)


def test_other_errors_of_the_file_system_are_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", broken)
    with pytest.raises(OSError, match="Input/output"), locked(tmp_path / "lock"):
        pass


def test_a_campaign_and_a_conversion_lock_without_flock(tmp_path: Path, no_locks: None) -> None:
    with alone(tmp_path), pytest.raises(UsageError) as campaign, alone(tmp_path):
        pass
    assert f"another harness is running this campaign (process {os.getpid()} on" in str(campaign.value)
    spool = Spool(tmp_path / "spool", {})
    with spool.alone(), pytest.raises(InputError) as conversion, spool.alone():
        pass
    assert f"another conversion is at work here (process {os.getpid()} on" in str(conversion.value)
    with spool.alone():
        pass


def test_a_sampler_samples_without_flock(tmp_path: Path, no_locks: None) -> None:
    sampler = Sampler(tmp_path / "node-0.jsonl", 0.05, [lambda: [("metric", {}, 1.0)]])
    sampler.start()
    sampler.stop()
    assert '"metric"' in (tmp_path / "node-0.jsonl").read_text()


@pytest.fixture(params=["no program", "no locks on the file system"])
def without(request: pytest.FixtureRequest, tmp_path: Path) -> Made:
    """A job of this machine where `flock` is absent, or is refused."""
    made = make(tmp_path, "local")
    if request.param == "no program":
        tools = tmp_path / "tools"
        tools.mkdir()
        for program in ("bash", "cat", "cp", "cut", "date", "grep", "head", "mkdir", "mv", "rm", "sed", "sleep", "sort",
                        "timeout", "wc"):  # fmt: skip
            (tools / program).symlink_to(shutil.which(program) or "")
        made.environment["PATH"] = f"{tmp_path}/bin:{tools}"
    else:
        (tmp_path / "bin" / "flock").write_text("#!/bin/sh\necho 'flock: 9: Function not implemented' >&2\nexit 71\n")
        (tmp_path / "bin" / "flock").chmod(0o755)
    return made


def test_a_job_runs_once_at_a_time_without_flock(without: Made) -> None:
    held = without.script.with_suffix(".lock.held")
    without.does(0, 'cat "$HELD" > holder; bash "$SCRIPT" 2> second || echo "$?" >> second')
    first = without.run(HELD=str(held), SCRIPT=str(without.script))
    assert first.returncode == 0, first.stderr
    assert "Function not implemented" not in first.stderr
    assert without.ends == ["0", "0", "0"]
    assert (without.cases[0] / "second").read_text() == "error: this job is already running here\n3\n"
    assert (without.cases[0] / "holder").read_text().split()[0] == "login"
    assert not held.exists()


def test_a_job_takes_over_from_one_that_was_killed(without: Made) -> None:
    held = without.script.with_suffix(".lock.held")
    held.write_text("login 4194304 1\n")  # more than any process may have for a number
    done = without.run()
    assert done.returncode == 0, done.stderr
    held.write_text("elsewhere 4194304 1\n")
    assert without.run().returncode == 3


def test_the_harness_sees_the_job_that_holds_a_lock_by_name(tmp_path: Path, no_locks: None) -> None:
    from harness.execution.schedulers.local import LocalScheduler

    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "a.lock").touch()
    (tmp_path / "jobs" / "a.lock.held").write_text(f"{platform.node()} {os.getpid()} {time.time():.0f}\n")
    (tmp_path / "jobs" / "b.lock").touch()
    assert [job.id for job in LocalScheduler(tmp_path).queue(["a", "b", "c"])] == ["a"]


@pytest.mark.slow
def test_of_many_that_come_at_once_one_takes_the_lock(tmp_path: Path) -> None:
    """Also where the one before has left its name."""
    (tmp_path / "lock.held").write_text(f"{platform.node()} 4194304 1\n")
    script = (
        "import errno, fcntl, sys, time\nfrom pathlib import Path\nfrom harness.host import locks\n"
        "def refuse(*_):\n    raise OSError(errno.ENOSYS, '')\n"
        "fcntl.flock = refuse\n"
        "try:\n    with locks.locked(Path(sys.argv[1])):\n        print('mine', flush=True)\n        time.sleep(2)\n"
        "except locks.LockTaken:\n    print('taken')\n"
    )
    words = [sys.executable, "-c", script, str(tmp_path / "lock")]
    started = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(12)]
    said = [process.communicate()[0].strip() for process in started]
    assert sorted(said) == ["mine", *["taken"] * 11]
