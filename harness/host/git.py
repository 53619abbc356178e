"""The one way to ask git: whatever a user has configured, the answer is plain UTF-8 text about the folder's clone."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

# What a hook or another program may have set, and which would name another clone than the folder's.
OF_ANOTHER_CLONE = (
    "GIT_DIR", "GIT_WORK_TREE", "GIT_COMMON_DIR", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_NAMESPACE",
    "GIT_ALTERNATE_OBJECT_DIRECTORIES", "GIT_PREFIX", "GIT_EXTERNAL_DIFF",
)  # fmt: skip
SETTINGS = {
    "log.showSignature": "false", "log.mailmap": "false", "color.ui": "false", "core.quotePath": "false",
    "i18n.logOutputEncoding": "UTF-8", "core.pager": "cat",
}  # fmt: skip


def run_git(folder: Path, *words: str) -> str | None:
    """Return what git prints, without white space around it; None if it ends badly or there is no git."""
    environment = {k: v for k, v in os.environ.items() if k not in OF_ANOTHER_CLONE}
    environment |= {"GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C", "GIT_PAGER": "cat"}
    options = [word for key, value in SETTINGS.items() for word in ("-c", f"{key}={value}")]
    command = ["git", "--no-pager", *options, "-C", str(folder), *words]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8", errors="replace", check=False,
            env=environment,
        )  # fmt: skip
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
