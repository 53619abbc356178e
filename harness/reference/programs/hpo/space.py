"""The search space: hyperparameters with their ranges or choices, for DeepHyper, which is imported without MPI.

DeepHyper imports mpi4py without starting MPI. ASE, in the same process, would then assume that MPI has been started,
and crash.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import Any

from harness.protocol.backbones import BACKBONES, SPECIFIC_HYPERPARAMETERS, BackboneName
from harness.protocol.programs.hpo import Choice, Range, SearchedValues

MPI = "mpi4py"
_is_hidden = MPI not in sys.modules
if _is_hidden:
    sys.modules[MPI] = None  # type: ignore[assignment]
try:
    from deephyper.hpo import CBO, HpProblem  # type: ignore[import-untyped]
finally:
    if _is_hidden:
        del sys.modules[MPI]

__all__ = [
    "BACKBONE",
    "CBO",
    "HpProblem",
    "Space",
    "build_problem",
    "contains_point",
    "contains_value",
    "describe",
    "is_integer_range",
    "merge_spaces",
    "select_active_parameters",
]  # fmt: skip

BACKBONE = "backbone"
Space = dict[str, Range | list[Choice]]


def merge_spaces(*parts: Mapping[str, Range | list[Choice]]) -> Space:
    """Merge several spaces; if a hyperparameter is in several of them, the last one counts."""
    return {name: choices for part in parts for name, choices in part.items()}


def describe(choices: Range | list[Choice]) -> SearchedValues:
    """Return the range or the choices of a hyperparameter for the log."""
    if isinstance(choices, Range):
        return SearchedValues(low=choices.low, high=choices.high, log=choices.log)
    return SearchedValues(values=list(choices))


def build_problem(space: Space) -> HpProblem:
    """Return the search space as a problem of DeepHyper."""
    problem = HpProblem()
    for name, choices in space.items():
        if isinstance(choices, list):
            problem.add(list(choices), name)
            continue
        bounds = (choices.low, choices.high) if is_integer_range(choices) else (float(choices.low), float(choices.high))
        problem.add((*bounds, "log-uniform") if choices.log else bounds, name)
    return problem


def is_integer_range(numbers: Range) -> bool:
    """Return whether a range contains integers only."""
    return isinstance(numbers.low, int) and isinstance(numbers.high, int)


def contains_value(choices: Range | list[Choice], value: Any) -> bool:
    """Return whether a value is one of the choices, or in the range."""
    if isinstance(choices, list):
        return value in choices
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
        return False
    return choices.low <= value <= choices.high and (not is_integer_range(choices) or float(value).is_integer())


def contains_point(space: Space, configuration: Mapping[str, Any]) -> bool:
    """Return whether a configuration has a value of the space for each of its hyperparameters."""
    return all(n in configuration and contains_value(choices, configuration[n]) for n, choices in space.items())


def select_active_parameters(configuration: Mapping[str, Any], default_backbone: BackboneName) -> dict[str, Any]:
    """Return the configuration without the hyperparameters of backbones other than its own, or else the default."""
    backbone = configuration.get(BACKBONE, default_backbone)
    inactive = SPECIFIC_HYPERPARAMETERS - set(BACKBONES[backbone].hyperparameters)
    return {name: value for name, value in configuration.items() if name not in inactive}
