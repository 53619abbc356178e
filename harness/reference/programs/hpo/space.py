"""What is searched: names of hyperparameters and their ranges or choices, as DeepHyper takes them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from harness.protocol.backbones import BACKBONES, SPECIFIC, BackboneName
from harness.protocol.programs.hpo import Choice, Range, SearchedValues
from harness.reference.programs.hpo.deephyper_without_mpi import HpProblem

BACKBONE = "backbone"
Space = dict[str, Range | list[Choice]]


def merge_spaces(*parts: Mapping[str, Range | list[Choice]]) -> Space:
    """Return several spaces as one; later ones replace what they name again."""
    return {name: choices for part in parts for name, choices in part.items()}


def describe(choices: Range | list[Choice]) -> SearchedValues:
    """Return the range or the choices of a hyperparameter as the log has them."""
    if isinstance(choices, Range):
        return SearchedValues(low=choices.low, high=choices.high, log=choices.log)
    return SearchedValues(values=list(choices))


def problem(space: Space) -> HpProblem:
    """Return the space as DeepHyper's."""
    deephyper = HpProblem()
    for name, choices in space.items():
        if isinstance(choices, list):
            deephyper.add(list(choices), name)
            continue
        ends = (choices.low, choices.high) if is_whole(choices) else (float(choices.low), float(choices.high))
        deephyper.add((*ends, "log-uniform") if choices.log else ends, name)
    return deephyper


def is_whole(numbers: Range) -> bool:
    """Whether a range holds whole numbers alone."""
    return isinstance(numbers.low, int) and isinstance(numbers.high, int)


def holds_value(choices: Range | list[Choice], value: Any) -> bool:
    """Whether a value is one of the choices, or in the range."""
    if isinstance(choices, list):
        return value in choices
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return number and choices.low <= value <= choices.high and (not is_whole(choices) or float(value).is_integer())


def holds(space: Space, configuration: Mapping[str, Any]) -> bool:
    """Whether a point gives every name of the space a value of it."""
    return all(name in configuration and holds_value(of, configuration[name]) for name, of in space.items())


def active(configuration: Mapping[str, Any], backbone: BackboneName) -> dict[str, Any]:
    """Return the point without hyperparameters that other backbones alone have."""
    foreign = SPECIFIC - set(BACKBONES[configuration.get(BACKBONE, backbone)].hyperparameters)
    return {name: value for name, value in configuration.items() if name not in foreign}
