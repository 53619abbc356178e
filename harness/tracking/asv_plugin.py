"""A plugin of asv (airspeed velocity), which runs benchmarks over commits.

The plugin sets asv's machine file, adds a type of environment, and ends asv when its parent process ends. asv loads it
because of the key `plugins` of its configuration. It is written for asv 0.6.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

from asv import util
from asv.environment import Environment
from asv.machine import MachineCollection

from harness.tracking.asv_runner import MACHINE_FILE, SOURCES_ENVIRONMENT, kill_children

PARENT_POLL_S = 0.5


class SourcesEnvironment(Environment):  # type: ignore[misc]
    """An environment with the Python that runs asv, in which the sources of a commit precede the installed packages."""

    tool_name = SOURCES_ENVIRONMENT

    def __init__(self, conf: Any, python: str, requirements: dict[str, str], tagged_env_vars: Any) -> None:
        self._requirements = requirements  # the base class reads this attribute before it sets it
        super().__init__(conf, python, requirements, tagged_env_vars)

    @classmethod
    def matches(cls, python: str) -> bool:
        """Return whether `python` is the version of the running Python."""
        return python == f"{sys.version_info[0]}.{sys.version_info[1]}"

    def check_presence(self) -> bool:
        """Return whether the folder of the environment exists."""
        return os.path.isdir(self._path)

    def _setup(self) -> None:
        os.makedirs(self._path, exist_ok=True)

    def install_project(self, conf: Any, repo: Any, commit_hash: str) -> None:
        """Check out the commit without building anything."""
        del conf
        self._set_installed_commit_hash(None)
        self.checkout_project(repo, commit_hash)
        self._set_installed_commit_hash(commit_hash)

    def find_executable(self, executable: str) -> str:
        """Return the path of an executable; for `python`, the running Python."""
        return sys.executable if executable == "python" else str(util.which(executable))

    def run(self, args: list[str], **options: Any) -> Any:
        """Run Python with the sources of the commit on its path."""
        root = os.path.join(self._build_root, self._repo_subdir or "")
        paths = [path for path in (os.path.join(root, "src"), root) if os.path.isdir(path)]
        environment = dict(options.pop("env", os.environ)) | {"ASV_PYTHONPATH": os.pathsep.join(paths)}
        return self.run_executable("python", args, env=environment, **options)


def setup() -> None:
    """Set asv's machine file and watch its parent; asv calls this function in the folder of its configuration."""
    # asv would otherwise write a machine file into the user's home folder
    machine_file = str(Path.cwd() / MACHINE_FILE)
    MachineCollection.get_machine_file_path = staticmethod(lambda: machine_file)
    threading.Thread(target=end_with_parent, args=(os.getppid(),), daemon=True).start()


def end_with_parent(parent: int) -> None:
    """Kill asv and its child processes when its parent has ended, since two asv processes must not share a folder."""
    while os.getppid() == parent:
        time.sleep(PARENT_POLL_S)
    kill_children(os.getpid())
    os._exit(1)
