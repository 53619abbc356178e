"""Loaded by asv in its own process: machines that it shall know, an environment of sources, and an end with its parent.

asv finds it by the key `plugins` of its configuration. Written for asv 0.6.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
from asv import util
from asv.environment import Environment
from asv.machine import MachineCollection

from harness.tracking.asv_runner import MACHINES, SOURCES

PARENT_WATCHED_S = 0.5


class SourcesEnvironment(Environment):  # type: ignore[misc]
    """The Python that runs asv, with the sources of each commit before everything that it has installed."""

    tool_name = SOURCES

    def __init__(self, conf: Any, python: str, requirements: dict[str, str], tagged_env_vars: Any) -> None:
        self._requirements = requirements  # asv makes the folder's name from it before it is set
        super().__init__(conf, python, requirements, tagged_env_vars)

    @classmethod
    def matches(cls, python: str) -> bool:
        """Only this Python's own version."""
        return python == f"{sys.version_info[0]}.{sys.version_info[1]}"

    def check_presence(self) -> bool:
        """Whether its folder is there."""
        return os.path.isdir(self._path)

    def _setup(self) -> None:
        os.makedirs(self._path, exist_ok=True)

    def install_project(self, conf: Any, repo: Any, commit_hash: str) -> None:
        """Check the commit out; nothing is built."""
        del conf
        self._set_installed_commit_hash(None)
        self.checkout_project(repo, commit_hash)
        self._set_installed_commit_hash(commit_hash)

    def find_executable(self, executable: str) -> str:
        """This Python, and nothing else."""
        return sys.executable if executable == "python" else str(util.which(executable))

    def run(self, args: list[str], **options: Any) -> Any:
        """Python with the sources on its path."""
        root = os.path.join(self._build_root, self._repo_subdir or "")
        paths = [path for path in (os.path.join(root, "src"), root) if os.path.isdir(path)]
        environment = dict(options.pop("env", os.environ)) | {"ASV_PYTHONPATH": os.pathsep.join(paths)}
        return self.run_executable("python", args, env=environment, **options)


def setup() -> None:
    """Called by asv as it loads the plugin, in the folder of its configuration."""
    # Else asv would write its own file of machines into the home of the user.
    machines = str(Path.cwd() / MACHINES)
    MachineCollection.get_machine_file_path = staticmethod(lambda: machines)
    threading.Thread(target=end_with_parent, args=(os.getppid(),), daemon=True).start()


def end_with_parent(parent: int) -> None:
    """End what asv has started, and asv, once the process that started it is gone: two must not share a folder."""
    while os.getppid() == parent:
        time.sleep(PARENT_WATCHED_S)
    for process in psutil.Process().children(recursive=True):
        process.kill()
    os._exit(1)
