"""The provenance of a measurement: code, environment, hardware and load of the machine."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from harness import __version__

PACKAGES = (
    "torch", "torch_geometric", "vesin", "e3nn", "ase", "numpy", "scipy", "pandas", "matplotlib", "adios2", "mpi4py",
    "mpich",
)  # fmt: skip
# Variables that a git hook may have set to a repository other than that of the folder.
GIT_REPOSITORY_VARIABLES = (
    "GIT_DIR", "GIT_WORK_TREE", "GIT_COMMON_DIR", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_NAMESPACE",
    "GIT_ALTERNATE_OBJECT_DIRECTORIES", "GIT_PREFIX", "GIT_EXTERNAL_DIFF",
)  # fmt: skip
GIT_SETTINGS = {
    "log.showSignature": "false", "log.mailmap": "false", "color.ui": "false", "core.quotePath": "false",
    "i18n.logOutputEncoding": "UTF-8", "core.pager": "cat",
}  # fmt: skip


def run_git(folder: Path, *arguments: str) -> str | None:
    """Run git on the repository of a folder, with settings that override those of the user.

    Returns:
        The output as UTF-8 text without surrounding white space; None if the command fails or git is not installed.
    """
    environment = {k: v for k, v in os.environ.items() if k not in GIT_REPOSITORY_VARIABLES}
    environment |= {"GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C", "GIT_PAGER": "cat"}
    options = [word for key, value in GIT_SETTINGS.items() for word in ("-c", f"{key}={value}")]
    command = ["git", "--no-pager", *options, "-C", str(folder), *arguments]
    try:
        process = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8", errors="replace", check=False,
            env=environment,
        )  # fmt: skip
    except OSError:
        return None
    return process.stdout.strip() if process.returncode == 0 else None


def read_git_archive(folder: Path, commit: str) -> bytes | None:
    """Return the files of a commit as a tar archive; None if the repository of the folder does not have it."""
    command = ["git", "-C", str(folder), "archive", "--format=tar", commit]
    try:
        process = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    except OSError:
        return None
    return process.stdout if process.returncode == 0 else None


def collect_provenance() -> dict[str, Any]:
    """Return the content of provenance.json, which every job writes into the folders of its cases."""
    return {
        "time_s": time.time(),
        "harness": __version__,
        **read_git_state(),
        "python": platform.python_version(),
        "packages": list_package_versions(),
        "platform": platform.platform(),
        "cpu": read_cpu_name(),
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "load_1min": os.getloadavg()[0],
        "host": platform.node(),
    }


@cache
def read_git_state() -> dict[str, Any]:
    """Return the commit of the running code, and whether the code has changed since; both None without a repository."""
    folder = Path(__file__).parent
    commit = run_git(folder, "rev-parse", "HEAD")
    status = run_git(folder, "status", "--porcelain", "--untracked-files=no")
    if commit is None or status is None:
        return {"commit": None, "changed_since_commit": None}
    return {"commit": commit, "changed_since_commit": bool(status)}


@cache
def list_package_versions() -> dict[str, str]:
    """Return the installed versions of the packages that results depend on."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


@cache
def read_cpu_name() -> str:
    """Return the model name of the processor as the kernel reports it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine() or sys.platform


if __name__ == "__main__":
    print(json.dumps(collect_provenance(), indent=2, sort_keys=True))
