"""Plugin that asv loads in its process: it sets the machine file and an environment, and ends asv with its parent.

asv loads it by the key `plugins` of its configuration. Written for asv 0.6.
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

from harness.tracking.asv_runner import MACHINE_FILE, SOURCES_ENVIRONMENT

PARENT_POLL_S = 0.5


class SourcesEnvironment(Environment):  # type: ignore[misc]
    """The Python that runs asv, with the sources of each commit before its installed packages."""

    tool_name = SOURCES_ENVIRONMENT

    def __init__(self, conf: Any, python: str, requirements: dict[str, str], tagged_env_vars: Any) -> None:
        self._requirements = requirements  # asv derives the folder's name from it before it sets it
        super().__init__(conf, python, requirements, tagged_env_vars)

    @classmethod
    def matches(cls, python: str) -> bool:
        """Return whether this is the version of the running Python."""
        return python == f"{sys.version_info[0]}.{sys.version_info[1]}"

    def check_presence(self) -> bool:
        """Return whether its folder exists."""
        return os.path.isdir(self._path)

    def _setup(self) -> None:
        os.makedirs(self._path, exist_ok=True)

    def install_project(self, conf: Any, repo: Any, commit_hash: str) -> None:
        """Check the commit out; build nothing."""
        del conf
        self._set_installed_commit_hash(None)
        self.checkout_project(repo, commit_hash)
        self._set_installed_commit_hash(commit_hash)

    def find_executable(self, executable: str) -> str:
        """Return the running Python for `python`."""
        return sys.executable if executable == "python" else str(util.which(executable))

    def run(self, args: list[str], **options: Any) -> Any:
        """Run Python with the sources on its path."""
        root = os.path.join(self._build_root, self._repo_subdir or "")
        paths = [path for path in (os.path.join(root, "src"), root) if os.path.isdir(path)]
        environment = dict(options.pop("env", os.environ)) | {"ASV_PYTHONPATH": os.pathsep.join(paths)}
        return self.run_executable("python", args, env=environment, **options)


def setup() -> None:
    """Prepare asv; called by it when it loads the plugin, in the folder of its configuration."""
    # asv would otherwise write its own machine file into the user's home
    machine_file = str(Path.cwd() / MACHINE_FILE)
    MachineCollection.get_machine_file_path = staticmethod(lambda: machine_file)
    threading.Thread(target=end_with_parent, args=(os.getppid(),), daemon=True).start()


def end_with_parent(parent: int) -> None:
    """Kill asv and its child processes once its parent has ended, since two must not share a folder."""
    while os.getppid() == parent:
        time.sleep(PARENT_POLL_S)
    for process in psutil.Process().children(recursive=True):
        process.kill()
    os._exit(1)
