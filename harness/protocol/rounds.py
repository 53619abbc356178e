"""Rounds of timed calls: the parameters that end them, and the event that says how they ended."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator

from harness.protocol.parameters import Fraction, Parameters
from harness.protocol.records import EventRecord, NonNegative, PositiveCount
from harness.protocol.types import PositiveFloat, PositiveInt

RoundsEndReason = Literal["fixed", "narrow", "max_rounds", "time_limit"]


class RoundParameters(Parameters):
    """The number of rounds of a program that times several series of calls in turn."""

    rounds: PositiveInt = 6
    """Number of rounds, each of which times every series once; the minimum if there is max_rounds."""
    max_rounds: PositiveInt | None = None
    """Maximum number of rounds; they end earlier if all intervals are narrow. Null: exactly `rounds`."""
    max_half_width: Fraction = 0.02
    """Half width of the 95% interval of a median time, divided by the median, up to which the interval is narrow."""
    rounds_time_limit_s: PositiveFloat | None = None
    """Time after which no round beyond the minimum begins; null: no limit."""

    @model_validator(mode="after")
    def check_rounds(self) -> Self:
        """Raise ValueError if the maximum is below the minimum, or a limit has no effect without a maximum."""
        if self.max_rounds is not None and self.max_rounds < self.rounds:
            raise ValueError(f"max_rounds is {self.max_rounds}, expected at least rounds, {self.rounds}")
        names = {"max_half_width", "rounds_time_limit_s"}
        limits = self.model_dump(include=names, exclude_unset=True, exclude_none=True)
        if self.max_rounds is None and limits:
            raise ValueError(f"{min(limits)} has no effect without max_rounds, the maximum number of rounds")
        return self


class RoundsEnded(EventRecord, tag="rounds_ended"):
    """The end of the timed rounds of a case."""

    rounds: PositiveCount
    reason: RoundsEndReason
    series: str | None = None
    """The series with the widest interval; null if the rounds are too few for intervals of 95%."""
    half_width: NonNegative | None = None
    """Half width of the interval of this series, divided by its median."""
