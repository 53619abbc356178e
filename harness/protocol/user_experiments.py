"""Experiments that a user adds: folders with a program, its tables and its page, next to the user's suites.

They are searched for in the folders that $GFM_HARNESS_EXPERIMENTS lists, as $PATH does, and in ./experiments. A folder
is an experiment if its `__init__.py` defines EXPERIMENT; its `program.py`, if there is one, is a program of its name.
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
# The package as which the folders are imported, so that no name of theirs hides another module.
PACKAGE = "gfm_harness_experiments"


def search_path() -> list[Path]:
    """Return the folders that may hold experiments, those of the environment variable first."""
    listed = [name for name in os.environ.get(VARIABLE, "").split(os.pathsep) if name]
    folders = [Path(name).resolve() for name in (*listed, DEFAULT_FOLDER)]
    return list(dict.fromkeys(folder for folder in folders if folder.is_dir()))


def find_experiments() -> dict[str, Path]:
    """Return the folder of each experiment by name; of two with one name, the first on the search path."""
    found: dict[str, Path] = {}
    for folder in search_path():
        for file in sorted(folder.glob("*/__init__.py")):
            if "EXPERIMENT" in file.read_text(encoding="utf-8", errors="replace"):
                found.setdefault(file.parent.name, file.parent)
    return found


def import_experiment(name: str, module: str = "") -> ModuleType:
    """Import an experiment, or one of its modules; raise UsageError with the reason where that fails."""
    try:
        return importlib.import_module(module_name(name, module))
    except UsageError:
        raise
    except Exception as error:
        file = find_experiments().get(name, Path(name)) / f"{module or '__init__'}.py"
        raise UsageError(f"{file}: cannot be imported: {type(error).__name__}: {error}") from error


def module_name(name: str, module: str = "") -> str:
    """Return the name under which a module of an experiment can be imported from now on."""
    package = sys.modules.setdefault(PACKAGE, ModuleType(PACKAGE))
    package.__path__ = [str(folder) for folder in search_path()]
    return ".".join(filter(None, (PACKAGE, name, module)))


def list_variables(program: str) -> dict[str, str]:
    """Return the environment variables by which a job finds the program: none for the programs of the harness."""
    if program not in find_experiments():
        return {}
    return {VARIABLE: os.pathsep.join(map(str, search_path()))}


def load_parameters(shipped: Container[str]) -> dict[str, type[Parameters]]:
    """Return the parameters of every user's program by name; `shipped` are the names that are taken."""
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
