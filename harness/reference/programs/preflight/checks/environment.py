"""Modules and variables of the ranks, compared with the job script."""

from __future__ import annotations

import os
from collections.abc import Mapping

from harness.protocol.text import pluralize
from harness.reference.programs.preflight.check import CheckContext, Outcome, make_outcome, make_unchecked
from harness.reference.programs.preflight.job_script import JobScript, read_job_script

ADVICE = "Correct `modules` and `environment` in the file of the system, or load the modules that it names."
# Variables that a launcher may set for each rank.
PER_RANK = ("OMP_PLACES", "OMP_PROC_BIND")


def check(context: CheckContext) -> Outcome:
    """Compare the loaded modules and the variables of this rank with the job script."""
    script = read_job_script(context.case_folder)
    if script is None:
        advice = "Run the case by its job script, which `harness run preflight` writes."
        return make_unchecked("the modules and variables of the job script", "there is no job script", advice)
    expected = f"{pluralize(len(script.modules), 'module')} and {pluralize(len(script.variables), 'variable')}"
    return make_outcome(expected, "all as in the job script", find_differences(script, os.environ), ADVICE)


def find_differences(script: JobScript, environment: Mapping[str, str]) -> list[str]:
    """Return a message for each module and variable that differs from the script."""
    loaded = [name for name in environment.get("LOADEDMODULES", "").split(":") if name]
    problems = [f"module {name} is not loaded" for name in script.modules if not is_loaded(name, loaded)]
    problems += [f"module {name} is loaded" for name in script.unloaded_modules if is_loaded(name, loaded)]
    for name, value in script.variables.items():
        if name not in environment:
            problems.append(f"{name} is not set")
        elif environment[name] != value and name not in PER_RANK:
            problems.append(f"{name} is {environment[name]!r}, not {value!r}")
    return problems


def is_loaded(name: str, loaded: list[str]) -> bool:
    """Return whether a module is loaded; a name without a version matches every version."""
    return any(module == name or module.startswith(f"{name}/") for module in loaded)
