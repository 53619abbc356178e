"""Locks on files; on file systems without locks, a second file names the process that holds the lock."""

from __future__ import annotations

import errno
import fcntl
import os
import platform
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil

from harness.protocol.errors import UsageError

# The errors of flock on file systems without it, such as Lustre and some versions of NFS.
NO_FLOCK_ERRORS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOLCK, errno.EINVAL)
# The kernel's start time of a process may be this much later than the time that the process wrote into the file.
CLOCK_TOLERANCE_S = 2.0
MAX_HOLDER_LENGTH = 200


class LockTaken(Exception):
    """Another process holds the lock."""


class FileLock:
    """A lock on an open file, held by this process and by child processes that inherit the file, until all close it.

    Without flock, the file PATH.held names the holder: host, process id and start time. A holder on this host is valid
    while its process exists; a holder on another host is always valid.
    """

    def __init__(self, path: Path, handle: int) -> None:
        self._holder_file = path.with_name(f"{path.name}.held")
        self._handle = handle
        self._owns_holder_file = False

    def acquire(self) -> None:
        """Take the lock; raise LockTaken immediately if another process holds it."""
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LockTaken("another process") from None
        except OSError as error:
            if error.errno not in NO_FLOCK_ERRORS:
                raise
            self._acquire_by_file()

    def transfer(self, process_id: int) -> None:
        """Write another process of this host, which has inherited the file, as the holder."""
        if self._owns_holder_file:
            self._holder_file.write_text(_format_holder(process_id), encoding="utf-8")

    def close(self) -> None:
        """Remove PATH.held if this lock created it; the flock itself ends when the file is closed."""
        if self._owns_holder_file:
            self._owns_holder_file = False
            self._holder_file.unlink(missing_ok=True)

    def _acquire_by_file(self) -> None:
        holder = find_holder(self._holder_file)
        if holder is None:
            _remove_stale_holder(self._holder_file)
            with suppress(FileExistsError):
                handle = os.open(self._holder_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
                with open(handle, "w", encoding="utf-8") as file:
                    file.write(_format_holder(os.getpid()))
                self._owns_holder_file = True
                return
        raise LockTaken(f"{holder or 'another process'}; if it is gone, remove {self._holder_file}")


@contextmanager
def hold_lock(path: Path) -> Iterator[FileLock]:
    """Hold the lock of a file, which is created if necessary; raise LockTaken if another process holds it."""
    with path.open("a") as file:
        lock = FileLock(path, file.fileno())
        lock.acquire()
        try:
            yield lock
        finally:
            lock.close()


def is_locked(path: Path) -> bool:
    """Return whether a process holds the lock of a file; the file need not exist."""
    with suppress(FileNotFoundError), path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError as error:
            if error.errno not in NO_FLOCK_ERRORS:
                raise
            return find_holder(path.with_name(f"{path.name}.held")) is not None
    return False


def find_holder(holder_file: Path) -> str | None:
    """Return a description of the holder that a file names; None if the file is missing or its process has ended."""
    try:
        host, process, since = holder_file.read_text(encoding="utf-8").split()
        process_id, start_s = int(process), float(since)
    except FileNotFoundError:
        return None
    except ValueError:  # the disk is full, or the holder is about to write
        return "a process that has not identified itself"
    if host == platform.node():
        try:
            if psutil.Process(process_id).create_time() > start_s + CLOCK_TOLERANCE_S:
                return None
        except psutil.NoSuchProcess:
            return None
        except psutil.Error:
            pass
    return f"process {process_id} on {host} since {time.strftime('%F %T', time.localtime(start_s))}"


@contextmanager
def hold_folder_lock(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder in which one process works at a time; raise UsageError with the holder if taken."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "lock"
    with ExitStack() as stack:
        try:
            stack.enter_context(hold_lock(path))
        except LockTaken as error:
            holder = path.read_text(encoding="utf-8", errors="replace")[:MAX_HOLDER_LENGTH].strip()
            raise UsageError(
                f"{folder}: another harness process is working in this folder ({holder or error})"
            ) from None
        path.write_text(f"process {os.getpid()} on {platform.node()}\n", encoding="utf-8")
        yield


def _format_holder(process_id: int) -> str:
    return f"{platform.node()} {process_id} {time.time():.0f}\n"


def _remove_stale_holder(holder_file: Path) -> None:
    """Remove the file of a holder that has ended, but not that of a process that has taken the lock since."""
    renamed = holder_file.with_name(f"{holder_file.name}.{os.getpid()}")
    with suppress(FileNotFoundError):
        os.rename(holder_file, renamed)
        if find_holder(renamed) is not None:
            with suppress(FileExistsError):
                os.link(renamed, holder_file)
        renamed.unlink()
