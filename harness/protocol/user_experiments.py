"""Experiments of the user: folders with a program, its tables and its page, next to the user's suites.

The search path is $GFM_HARNESS_EXPERIMENTS, a list of folders in the format of $PATH, followed by ./experiments. A
folder is an experiment if its `__init__.py` defines EXPERIMENT. Its `program.py`, if any, defines a program with the
name of the folder.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Container
from pathlib import Path
from types import ModuleType

from harness.protocol.errors import UsageError
from harness.protocol.parameters import Parameters

VARIABLE = "GFM_HARNESS_EXPERIMENTS"
DEFAULT_FOLDER = "experiments"
# The folders are imported as submodules of this package, so that their names hide no other module.
PACKAGE = "gfm_harness_experiments"


def list_search_path() -> list[Path]:
    """Return the folders to search for experiments; the folders of the environment variable come first."""
    listed = [name for name in os.environ.get(VARIABLE, "").split(os.pathsep) if name]
    folders = [Path(name).resolve() for name in (*listed, DEFAULT_FOLDER)]
    return list(dict.fromkeys(folder for folder in folders if folder.is_dir()))


def find_experiments() -> dict[str, Path]:
    """Return the folder of each experiment by name; of experiments with equal names, the first on the path counts."""
    folders: dict[str, Path] = {}
    for folder in list_search_path():
        for file in sorted(folder.glob("*/__init__.py")):
            if "EXPERIMENT" in file.read_text(encoding="utf-8", errors="replace"):
                folders.setdefault(file.parent.name, file.parent)
    return folders


def import_experiment(name: str, module: str = "") -> ModuleType:
    """Import an experiment, or one of its modules; raise UsageError with the reason if that fails."""
    try:
        return importlib.import_module(resolve_module_name(name, module))
    except UsageError:
        raise
    except Exception as error:
        file = find_experiments().get(name, Path(name)) / f"{module or '__init__'}.py"
        raise UsageError(f"{file}: cannot be imported: {type(error).__name__}: {error}") from error


def resolve_module_name(name: str, module: str = "") -> str:
    """Set the search path of the package, and return the full name of an experiment or of one of its modules."""
    package = sys.modules.setdefault(PACKAGE, ModuleType(PACKAGE))
    package.__path__ = [str(folder) for folder in list_search_path()]
    return ".".join(filter(None, (PACKAGE, name, module)))


def build_job_environment(program: str) -> dict[str, str]:
    """Return the environment variables that a job needs to find the program; empty for programs of the harness."""
    if program not in find_experiments():
        return {}
    return {VARIABLE: os.pathsep.join(map(str, list_search_path()))}


def load_parameters(shipped: Container[str]) -> dict[str, type[Parameters]]:
    """Return the type of the parameters of each program of the user, by name.

    Args:
        shipped: The names of the programs of the harness, which the user may not reuse.
    """
    models: dict[str, type[Parameters]] = {}
    for name, folder in find_experiments().items():
        if not (folder / "program.py").is_file():
            continue
        if name in shipped:
            raise UsageError(f"{folder}: the harness has a program named {name!r}; rename the folder")
        model = getattr(import_experiment(name, "program"), "Parameters", None)
        if not (isinstance(model, type) and issubclass(model, Parameters) and model is not Parameters):
            raise UsageError(
                f"{folder / 'program.py'}: no class Parameters derived from harness.protocol.parameters.Parameters"
            )
        models[name] = model
    return models
