"""Start ranks with the mpiexec of this environment."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

LAUNCHER_PREFIXES = ("PMI_", "PMIX_", "PALS_", "SLURM_", "OMPI_", "MPI_", "MASTER_", "WORLD_SIZE")


def find_mpiexec() -> str:
    """Return the mpiexec next to this Python; if there is none, skip the test, or fail it in CI."""
    path = shutil.which("mpiexec", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if path is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("mpiexec is not installed")
    return str(path)


def environment_without_launcher() -> dict[str, str]:
    """Return the environment without the variables with which a launcher numbers its ranks."""
    return {name: value for name, value in os.environ.items() if not name.startswith(LAUNCHER_PREFIXES)}
