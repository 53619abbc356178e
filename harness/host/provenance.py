"""What a number rests on: code, environment, hardware, and how busy the machine was."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from harness import __version__
from harness.host.git import run_git

PACKAGES = (
    "torch", "torch_geometric", "vesin", "e3nn", "ase", "numpy", "scipy", "pandas", "matplotlib", "adios2", "mpi4py",
    "mpich",
)  # fmt: skip


def collect() -> dict[str, Any]:
    """Plain data for provenance.json, written beside each case as it is submitted."""
    return {
        "time_s": time.time(),
        "harness": __version__,
        **git(),
        "python": platform.python_version(),
        "packages": packages(),
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "load_1min": os.getloadavg()[0],
        "host": platform.node(),
    }


@cache
def git() -> dict[str, Any]:
    """Commit of the code that runs and whether it was changed since; None outside a clone."""
    here = Path(__file__).parent
    commit = run_git(here, "rev-parse", "HEAD")
    status = run_git(here, "status", "--porcelain", "--untracked-files=no")
    if commit is None or status is None:
        return {"commit": None, "changed_since_commit": None}
    return {"commit": commit, "changed_since_commit": bool(status)}


@cache
def packages() -> dict[str, str]:
    """Installed versions of what the numbers depend on."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


@cache
def cpu_name() -> str:
    """The processor as the kernel names it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine() or sys.platform


if __name__ == "__main__":
    print(json.dumps(collect(), indent=2, sort_keys=True))
