"""Work in a process of its own, which may crash: ADIOS2 does on damaged metadata that have no seal."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from harness.reference.errors import InputError

Result = TypeVar("Result")
LONGEST_READ_S = 120


def run_apart(path: Path, work: Callable[[], Result]) -> Result:
    """Return what `work` returns or raise what it raises; raises InputError for the store at `path` if it crashes."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(work, sender), daemon=True)
    process.start()
    sender.close()
    try:
        result, error = receiver.recv()
    except EOFError:
        raise InputError(f"{path}: damaged, ADIOS2 crashes on it or does not return; restore it") from None
    finally:
        process.kill()
        process.join()
    if isinstance(error, MemoryError):
        raise InputError(f"{path}: damaged, it asks for more memory than there is; restore it")
    if error is not None:
        raise error
    return result


def expect_soon() -> None:
    """End the process unless this is called again within minutes: reads of damaged files may never return."""
    if multiprocessing.parent_process() is not None:
        signal.alarm(LONGEST_READ_S)


def _work(work: Callable[[], Result], sender: multiprocessing.connection.Connection) -> None:
    faulthandler.disable()
    sys.stderr = os.fdopen(os.dup(2), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what C++ says when it ends a process
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    try:
        sender.send((work(), None))
    except Exception as error:
        sender.send((None, error))
    finally:
        os._exit(0)
