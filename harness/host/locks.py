"""Locks on files, which hold on file systems that have none: there a second file names the process that holds it."""

from __future__ import annotations

import errno
import fcntl
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

# What file systems without flock answer, such as Lustre and some NFS.
NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOLCK, errno.EINVAL)
# A process may seem to have begun so much later than it wrote its name.
SKEW_S = 2.0


class LockTaken(Exception):
    """Another process holds the lock."""


class FileLock:
    """A lock on an open file, that its process and those which inherit the file hold until the last one closes it.

    Without flock, PATH.held names the holder: host, process and the time since when. One of this host that is gone is
    forgotten; of another host nobody can tell.
    """

    def __init__(self, path: Path, handle: int) -> None:
        self._held = path.with_name(f"{path.name}.held")
        self._handle = handle
        self._is_mine = False

    def acquire(self) -> None:
        """Take the lock; raises LockTaken at once where another process holds it."""
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LockTaken("another process") from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            self._acquire_by_name()

    def pass_on(self, process: int) -> None:
        """Let the lock end with another process of this host, which has inherited the file."""
        if self._is_mine:
            self._held.write_text(_name(process), encoding="utf-8")

    def close(self) -> None:
        """Give up what closing the file does not."""
        if self._is_mine:
            self._is_mine = False
            self._held.unlink(missing_ok=True)

    def _acquire_by_name(self) -> None:
        holder = living_holder(self._held)
        if holder is None:
            _remove_stale(self._held)
            with suppress(FileExistsError):
                handle = os.open(self._held, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
                with open(handle, "w", encoding="utf-8") as file:
                    file.write(_name(os.getpid()))
                self._is_mine = True
                return
        raise LockTaken(f"{holder or 'another process'}; if it is gone, remove {self._held}")


@contextmanager
def locked(path: Path) -> Iterator[FileLock]:
    """Hold the lock of a file, which is made where there is none; raises LockTaken."""
    with path.open("a") as file:
        lock = FileLock(path, file.fileno())
        lock.acquire()
        try:
            yield lock
        finally:
            lock.close()


def is_locked(path: Path) -> bool:
    """Return whether a process holds the lock of a file; there may be no such file."""
    with suppress(FileNotFoundError), path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            return living_holder(path.with_name(f"{path.name}.held")) is not None
    return False


def living_holder(held: Path) -> str | None:
    """Return who holds a lock by name, or None if nobody does, or a process of this host that is gone."""
    try:
        host, process, since = held.read_text(encoding="utf-8").split()
        number, began = int(process), float(since)
    except FileNotFoundError:
        return None
    except ValueError:  # a full disk, or a name on its way
        return "a process that has not written its name"
    if host == platform.node():
        try:
            if psutil.Process(number).create_time() > began + SKEW_S:
                return None
        except psutil.NoSuchProcess:
            return None
        except psutil.Error:
            pass
    return f"process {number} on {host} since {time.strftime('%F %T', time.localtime(began))}"


def _name(process: int) -> str:
    return f"{platform.node()} {process} {time.time():.0f}\n"


def _remove_stale(held: Path) -> None:
    """Remove the name of a holder that is gone, but not that of one which has come meanwhile."""
    aside = held.with_name(f"{held.name}.{os.getpid()}")
    with suppress(FileNotFoundError):
        os.rename(held, aside)
        if living_holder(aside) is not None:
            with suppress(FileExistsError):
                os.link(aside, held)
        aside.unlink()
