"""The state of this process: its user, its home folder and its garbage collector."""

from __future__ import annotations

import gc
import getpass
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def set_missing_user_variables() -> None:
    """Set USER and HOME if neither the environment nor the system defines them, since libraries need them.

    They are undefined in containers that run under a user id without an account.
    """
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ["USER"] = f"user-{os.getuid()}"
    try:
        Path.home()
    except RuntimeError:
        os.environ["HOME"] = tempfile.mkdtemp(prefix="gfm-harness-home-")


@contextmanager
def pause_gc() -> Iterator[None]:
    """Pause the garbage collector while many objects are created and none of them is released.

    Afterwards the objects belong to the oldest generation, so that the next collection does not visit each of them.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.unfreeze()
        if was_enabled:
            gc.enable()
