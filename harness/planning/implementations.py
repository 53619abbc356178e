"""Checks of the settings of cases that run the code of another implementation, before any job is submitted."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from harness.config.system import ResolvedSystem
from harness.config.system_file import describe_sources
from harness.host.files import expand_path
from harness.protocol.errors import UsageError
from harness.protocol.programs.model import HYDRAGNN_FOLDER_SETTING, HYDRAGNN_PYTHON_SETTING


def check_implementation(parameters: dict[str, Any], system: ResolvedSystem) -> None:
    """Raise UsageError if a case needs a checkout of HydraGNN and the settings name none.

    If the jobs run on this machine, the checkout and its interpreter must also exist.
    """
    if parameters.get("implementation", "reference") == "reference":
        return
    system_name = system.definition.name
    if HYDRAGNN_FOLDER_SETTING not in system.definition.settings:
        raise UsageError(
            f"system {system_name!r} declares no setting {HYDRAGNN_FOLDER_SETTING!r}, which `implementation: hydragnn`"
            " needs"
        )
    folder = expand_path(str(system.settings.get(HYDRAGNN_FOLDER_SETTING, "")))
    python = expand_path(str(system.settings.get(HYDRAGNN_PYTHON_SETTING, "")))
    if not folder:
        sources = describe_sources(system_name, HYDRAGNN_FOLDER_SETTING)
        raise UsageError(f"`implementation: hydragnn` needs a checkout of HydraGNN: give {sources}")
    if system.definition.scheduler != "local":
        return
    if not (Path(folder) / "hydragnn" / "__init__.py").is_file():
        raise UsageError(
            f"setting {HYDRAGNN_FOLDER_SETTING}: {folder} is not a checkout of HydraGNN (it has no"
            " hydragnn/__init__.py)"
        )
    if python and shutil.which(python) is None:
        raise UsageError(f"setting {HYDRAGNN_PYTHON_SETTING}: {python} is not an executable program")
