"""What is searched: names of hyperparameters and their ranges or choices, as DeepHyper takes them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from harness.reference.errors import InputError
from harness.reference.models.config import OWN
from harness.reference.programs.hpo.deephyper_without_mpi import HpProblem

BACKBONE = "backbone"
Choice = str | int | float


@dataclass(frozen=True)
class Range:
    """Numbers from low to high, both included; whole ones if both are whole; log: equally likely in every decade."""

    low: float
    high: float
    log: bool = False

    @property
    def whole(self) -> bool:
        """Whether it holds whole numbers alone."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    def holds(self, value: Any) -> bool:
        """Whether a value is of the range."""
        number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        return number and self.low <= value <= self.high and (not self.whole or float(value).is_integer())


@dataclass(frozen=True)
class Choices:
    """One of these values."""

    values: tuple[Choice, ...]

    def holds(self, value: Any) -> bool:
        """Whether a value is one of them."""
        return value in self.values


Space = dict[str, Range | Choices]


def space_of(*parts: Mapping[str, Any]) -> Space:
    """Plain data, {low, high, log} or a list for each name, as one space; later parts replace what they name again.

    Raises InputError for an empty range.
    """
    space: Space = {}
    for name, plain in {k: v for part in parts for k, v in part.items()}.items():
        if isinstance(plain, Mapping):
            low, high = plain["low"], plain["high"]
            if not (isinstance(low, int) and isinstance(high, int)):
                low, high = float(low), float(high)
            log = bool(plain.get("log", False))
            if low >= high or (log and low <= 0):
                raise InputError(f"space.{name}: from {low:g} to {high:g} is no range{' of a logarithm' * log}")
            space[name] = Range(low, high, log)
        else:
            space[name] = Choices(tuple(plain))
    if not space:
        raise InputError("space: expected at least one hyperparameter")
    return space


def problem(space: Space) -> HpProblem:
    """The space as DeepHyper's."""
    made = HpProblem()
    for name, of in space.items():
        if isinstance(of, Choices):
            made.add(list(of.values), name)
        elif of.log:
            made.add((of.low, of.high, "log-uniform"), name)
        else:
            made.add((of.low, of.high), name)
    return made


def holds(space: Space, configuration: Mapping[str, Any]) -> bool:
    """Whether a point gives every name of the space a value of it."""
    return all(name in configuration and of.holds(configuration[name]) for name, of in space.items())


def active(configuration: Mapping[str, Any], backbone: str) -> dict[str, Any]:
    """The point without hyperparameters that other backbones alone have."""
    chosen = configuration.get(BACKBONE, backbone)
    foreign = {name for own in OWN.values() for name in own} - set(OWN[chosen])
    return {name: value for name, value in configuration.items() if name not in foreign}
