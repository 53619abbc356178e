"""Checks of the settings of cases that run the code of another implementation, before any job is submitted."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from harness.config.system import ResolvedSystem
from harness.config.system_file import describe_sources
from harness.protocol.errors import UsageError

FOLDER, PYTHON = "hydragnn_folder", "hydragnn_python"


def check_implementation(parameters: dict[str, Any], system: ResolvedSystem) -> None:
    """Raise UsageError if a case needs a checkout that the settings do not name, or that is not on this machine."""
    if parameters.get("implementation", "reference") == "reference":
        return
    name = system.definition.name
    if FOLDER not in system.definition.settings:
        raise UsageError(f"system {name!r} declares no setting {FOLDER!r}, which `implementation: hydragnn` needs")
    folder, python = (_expand(str(system.settings.get(setting, ""))) for setting in (FOLDER, PYTHON))
    if not folder:
        raise UsageError(
            f"`implementation: hydragnn` needs a checkout of HydraGNN: give {describe_sources(name, FOLDER)}"
        )
    if system.definition.scheduler != "local":
        return
    if not (Path(folder) / "hydragnn" / "__init__.py").is_file():
        raise UsageError(f"setting {FOLDER}: {folder} is no checkout of HydraGNN (it has no hydragnn/__init__.py)")
    if python and shutil.which(python) is None:
        raise UsageError(f"setting {PYTHON}: {python} is no program that can be run")


def _expand(path: str) -> str:
    return os.path.expanduser(os.path.expandvars(path))
