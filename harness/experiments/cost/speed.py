"""The table of the speed tests at the start of jobs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from harness.results.runs import JOBS_FOLDER, RunRecord
from harness.results.tables import Columns, Table
from harness.telemetry.node_speed import SUFFIX, describe_slow_rank, read_speeds, score_speeds

SPEED = Columns(
    "cost_speed",
    job="campaign job nodes ranks",
    rates="quantity unit median lowest limit",
    judgement="slow",
)


def build_speed_table(records: Sequence[RunRecord]) -> Table:
    """Return the table with a row for each job with a speed test and each quantity of the test.

    median: the median rate of the ranks, in `unit`.
    lowest: the rate of the slowest rank divided by the median; a rank below `limit` is slow,
        which is 0 for quantities that do not show slow ranks.
    slow: a text about each slow rank.
    """
    return SPEED.build(_list_speeds(records))


def _list_speeds(records: Sequence[RunRecord]) -> Iterator[dict[str, Any]]:
    for folder in dict.fromkeys(record.folder.parent for record in records):
        for path in sorted((folder / JOBS_FOLDER).glob(f"*{SUFFIX}")):
            speeds = read_speeds(path)
            for scores in score_speeds(speeds):
                yield {
                    "campaign": folder.name,
                    "job": path.name.removesuffix(SUFFIX),
                    "nodes": len({speed.node for speed in speeds}),
                    "ranks": len(speeds),
                    "quantity": scores.quantity,
                    "unit": scores.unit,
                    "median": scores.median,
                    "lowest": float(scores.relative.min()),
                    "limit": scores.limit,
                    "slow": "; ".join(describe_slow_rank(speeds[k], scores, k) for k in scores.slow),
                }
