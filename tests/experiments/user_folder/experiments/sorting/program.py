"""The program that a case runs: sort random numbers, and log how long each round takes."""

from __future__ import annotations

import random
import time
from pathlib import Path

from harness.protocol import parameters
from harness.protocol.events import CaseLog
from harness.protocol.records import EventRecord
from harness.protocol.types import PositiveInt


class Parameters(parameters.Parameters):
    """The parameters of a case."""

    size: PositiveInt
    """Number of values to sort."""
    rounds: PositiveInt = 6
    """Number of repetitions."""


class Sample(EventRecord, tag="sample"):
    """One timed round."""

    round: int
    seconds: float


def run(config: Parameters, log: CaseLog, folder: Path) -> None:
    """Sort the numbers in rounds and log the duration of each round."""
    del folder
    generator = random.Random(0)
    for number in range(config.rounds):
        values = [generator.random() for _ in range(config.size)]
        start = time.perf_counter()
        values.sort()
        log.write(Sample(round=number, seconds=time.perf_counter() - start))
