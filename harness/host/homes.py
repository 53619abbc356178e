"""A name and a home folder for a user who has none, as in containers that run under a bare number."""

from __future__ import annotations

import getpass
import os
import tempfile
from pathlib import Path


def ensure_user() -> None:
    """Set USER and HOME where neither the environment nor the system knows them: libraries fail without."""
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ["USER"] = f"user-{os.getuid()}"
    try:
        Path.home()
    except RuntimeError:
        os.environ["HOME"] = tempfile.mkdtemp(prefix="gfm-harness-home-")
