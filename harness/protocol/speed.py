"""The record of the speed of a rank, which the speed test at the start of a job prints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, get_args

import msgspec
from msgspec import Meta

from harness.protocol.records import Count, Part, PositiveRate

Quantity = Literal["products", "copies", "clock", "writes"]
QUANTITIES: tuple[Quantity, ...] = get_args(Quantity)
# The unit of each quantity.
UNITS: Mapping[Quantity, str] = {
    "products": "FLOP/s",
    "copies": "bytes/s",
    "clock": "operations/s",
    "writes": "bytes/s",
}
Rates = Annotated[list[PositiveRate], Meta(min_length=1, max_length=1000)]


class RankSpeed(Part, tag_field="event", tag="rank_speed"):
    """The rates of one rank, with a value per round of the test."""

    node: str
    """The scheduler's name of the node."""
    rank: Count
    local_rank: Count
    device: str
    products: Rates
    """Matrix products on the device, in FLOP/s."""
    copies: Rates
    """Bytes that the device copies in its memory per second."""
    clock: Rates
    """Operations of one thread of the interpreter per second, which follow the clock of the core."""
    writes: Rates
    """Bytes per second that are written to the local disk and reach it."""


def parse_speeds(lines: list[str]) -> list[RankSpeed]:
    """Return the records in the output of a launcher, which may add the number of the rank in front of each line."""
    speeds = []
    for line in lines:
        start = line.find('{"event":"rank_speed"')
        if start >= 0:
            try:
                speeds.append(msgspec.json.decode(line[start:], type=RankSpeed))
            except msgspec.DecodeError:
                continue  # a line that was cut when its rank was killed
    return speeds
