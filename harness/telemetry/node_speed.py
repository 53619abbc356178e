"""Judge the speed test at the start of a job: `python -m harness.telemetry.node_speed FILE`.

FILE is the output of harness.reference.profiling.speed_test. The command prints the names of slow nodes on one line,
and a line about each slow rank on stderr, which goes to the log of the job.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from harness.protocol.speed import QUANTITIES, UNITS, Quantity, RankSpeed, parse_speeds
from harness.protocol.text import pluralize
from harness.stats import Floats
from harness.stats.slow_ranks import FALSE_ALARMS, score_ranks

# The suffix of files with the output of a speed test, in the folder of a campaign's jobs.
SUFFIX = ".speed.jsonl"
# A slow node lowers these quantities together, so that their geometric mean shows it with less noise than each. The
# rate of writes is only reported, as nodes may share a disk.
JUDGED: tuple[Quantity, ...] = ("products", "copies", "clock")


@dataclass(frozen=True)
class QuantityScores:
    """The scores of all ranks in one quantity.

    Attributes:
        quantity: The measured quantity, or `speed`, the combination of several.
        unit: The unit of its rates.
        median: The median over ranks of their median rates.
        relative: The score of each rank relative to the median score (RankScores).
        limit: The score below which a rank is slow; 0 for writes, which are not judged.
        slow: The positions of the slow ranks among the records.
    """

    quantity: Quantity | Literal["speed"]
    unit: str
    median: float
    relative: Floats
    limit: float
    slow: Sequence[int]


def read_speeds(path: Path) -> list[RankSpeed]:
    """Return the records in the output of a speed test; none if it cannot be read."""
    try:
        return parse_speeds(path.read_text(errors="replace").splitlines())
    except OSError:
        return []


def score_speeds(speeds: Sequence[RankSpeed]) -> Iterator[QuantityScores]:
    """Yield the scores of the ranks in each quantity, and in the combination of JUDGED.

    Ranks may have fewer rounds than others; their last rounds are then missing.
    """
    if not speeds:
        return
    rates = {quantity: _tabulate_rates([getattr(speed, quantity) for speed in speeds]) for quantity in QUANTITIES}
    for quantity in QUANTITIES:
        yield _score(quantity, UNITS[quantity], rates[quantity])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All-NaN slice", RuntimeWarning)
        count = min(rates[quantity].shape[1] for quantity in JUDGED)
        relative = [
            rates[quantity][:, :count] / np.nanmedian(rates[quantity][:, :count], axis=0) for quantity in JUDGED
        ]
    yield _score("speed", "of the median rank", np.exp(np.mean(np.log(relative), axis=0)))


def _tabulate_rates(rounds: Sequence[Sequence[float]]) -> Floats:
    """Return the rates of ranks as an array [ranks, rounds], with NaN for rounds that a rank lacks."""
    count = max(map(len, rounds))
    return np.array([[*values, *[np.nan] * (count - len(values))] for values in rounds])


def _score(quantity: Quantity | Literal["speed"], unit: str, rates: Floats) -> QuantityScores:
    # the judged quantities and their combination share the probability of a false alarm
    scores = score_ranks(rates, FALSE_ALARMS / (len(JUDGED) + 1))
    median = float(np.median(np.nanmedian(rates, axis=1)))
    if quantity == "writes":
        return QuantityScores(quantity, unit, median, scores.relative, 0.0, [])
    slow = np.flatnonzero(scores.is_slow).tolist()
    return QuantityScores(quantity, unit, median, scores.relative, scores.limit, slow)


def describe_slow_rank(speed: RankSpeed, scores: QuantityScores, index: int) -> str:
    """Return a sentence about a slow rank, such as `n5, rank 3: products at 80% of the median of 8 ranks`."""
    return (
        f"{speed.node}, rank {speed.rank}: {scores.quantity} at {scores.relative[index]:.0%} of the median of"
        f" {pluralize(len(scores.relative), 'rank')} (limit {scores.limit:.1%})"
    )


def main(arguments: Sequence[str]) -> None:
    """Print the names of the slow nodes, and a line about each slow rank on stderr; the argument is FILE."""
    speeds = read_speeds(Path(arguments[0]))
    slow_nodes: dict[str, None] = {}
    if not speeds:
        print(f"speed test: no result in {arguments[0]}", file=sys.stderr)
    for scores in score_speeds(speeds):
        for index in scores.slow:
            slow_nodes[speeds[index].node] = None
            print(f"slow: {describe_slow_rank(speeds[index], scores, index)}", file=sys.stderr)
    nodes = {speed.node for speed in speeds}
    if nodes:
        print(f"speed test: {len(slow_nodes)} of {pluralize(len(nodes), 'node')} slow", file=sys.stderr)
    print(" ".join(slow_nodes))


if __name__ == "__main__":
    main(sys.argv[1:])
