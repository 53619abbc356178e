"""Count the files that this rank opens and the modules that it loads, to plan the file accesses of large jobs.

If GFM_HARNESS_FILE_USE names a folder, the rank writes <host>-<pid>.json there when it ends. Python reports each
attempt to open a file to an audit hook. Libraries that open files themselves, such as ADIOS2, are not counted, but
shared libraries are.
"""

from __future__ import annotations

import atexit
import json
import os
import platform
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

FOLDER_VARIABLE = "GFM_HARNESS_FILE_USE"
# Where files are: in the folder of the case, in the Python environment, on the node (/proc, /tmp), or elsewhere.
CASE, ENVIRONMENT, NODE, OTHER = "case", "environment", "node", "other"
NODE_FOLDERS = ("/proc", "/sys", "/dev", "/etc", "/run", "/usr", "/lib", "/lib64", "/bin")
PACKAGE = Path(__file__).parents[2]


class FileUse:
    """The counts of one process.

    Args:
        folder: The folder of the case.
    """

    def __init__(self, folder: Path) -> None:
        environment = {sys.prefix, sys.base_prefix, os.path.dirname(os.__file__), str(PACKAGE)}
        self._places = [
            (CASE, (str(folder.resolve()),)),
            (ENVIRONMENT, tuple(environment | {os.path.realpath(path) for path in environment})),
            (NODE, (*NODE_FOLDERS, tempfile.gettempdir())),
        ]
        modules = [module for module in list(sys.modules.values()) if getattr(module, "__file__", None)]
        self.opens = Counter({ENVIRONMENT: len(modules)})

    def hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Count the event if it is an attempt to open a file."""
        if event == "open" and isinstance(arguments[0], (str, bytes, os.PathLike)):
            self.opens[self.find_place(os.fsdecode(arguments[0]))] += 1

    def find_place(self, path: str) -> str:
        """Return the kind of folder that contains a path, such as the folder of the case; OTHER if none does."""
        absolute = os.path.abspath(path)
        for place, folders in self._places:
            if any(absolute == folder or absolute.startswith(f"{folder}/") for folder in folders):
                return place
        return OTHER

    def write(self, folder: Path) -> None:
        """Write the counts to a new file in the folder."""
        opens = self.opens.copy()
        opens.update(self.find_place(path) for path in list_shared_libraries())
        path = folder / f"{platform.node()}-{os.getpid()}.json"
        path.write_text(json.dumps({"opens": dict(sorted(opens.items()))}), encoding="utf-8")


def list_shared_libraries() -> set[str]:
    """Return the paths of the shared libraries that this process has loaded; none where there is no /proc."""
    try:
        lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    except OSError:
        return set()
    paths = {line[line.index("/") :] for line in lines if "/" in line}
    return {path for path in paths if ".so" in path}


def start(case_folder: Path) -> None:
    """Count the files of this process until it ends, if the environment asks for it."""
    target = os.environ.get(FOLDER_VARIABLE)
    if target:
        use = FileUse(case_folder)
        sys.addaudithook(use.hook)
        atexit.register(use.write, Path(target))
