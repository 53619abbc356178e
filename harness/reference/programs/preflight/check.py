"""The input and the outcome of a check, and the finding on the outcomes of all ranks."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from msgspec import Struct

from harness.protocol.programs.preflight import (
    CalculationResult,
    Finding,
    Measurement,
    PreflightParameters,
    RankBinding,
)
from harness.protocol.text import pluralize
from harness.reference.distributed.launch import RankInfo

SEVERITY = ("failed", "not checked", "ok")  # the worst verdict first


@dataclass(frozen=True)
class CheckContext:
    """The context in which a check runs on one rank.

    Attributes:
        config: The parameters of the case.
        rank_info: The rank of this process.
        folder: The folder of the item, which all ranks share.
        port: A free port of rank 0's node; 0 before an item begins.
        case_folder: The folder of the case, with the script of its job.
    """

    config: PreflightParameters
    rank_info: RankInfo
    folder: Path
    port: int = 0
    case_folder: Path = field(default_factory=Path)


class Outcome(Struct, kw_only=True, omit_defaults=True):
    """The result of a check on one rank.

    Attributes:
        finding: The verdict, with what was expected and observed.
        calculations: The calculations that were compared.
        binding: The cores and the accelerator of the rank.
        device: The kind of the device of the calculations.
        device_name: Its name.
        versions: The version of each package, which must be the same on all nodes.
    """

    finding: Finding
    calculations: list[CalculationResult] = []
    binding: RankBinding | None = None
    device: str | None = None
    device_name: str | None = None
    versions: dict[str, str] = {}


Outcomes = Mapping[int, Outcome]
Check = Callable[[CheckContext], Outcome]
Judge = Callable[[CheckContext, Outcomes], Finding]


def make_outcome(
    expected: str,
    observed: str,
    problems: Sequence[str] = (),
    advice: str = "",
    measurements: Sequence[Measurement] = (),
) -> Outcome:
    """Return the outcome of a check, which has failed if there are problems.

    Args:
        expected: What was expected.
        observed: What was observed, for a check without problems.
        problems: What was observed instead.
        advice: What to do about the problems.
        measurements: The numbers that were measured.
    """
    if problems:
        finding = Finding(
            verdict="failed", expected=expected, observed="; ".join(problems), advice=advice,
            measurements=list(measurements) or None,
        )  # fmt: skip
    else:
        finding = Finding(verdict="ok", expected=expected, observed=observed, measurements=list(measurements) or None)
    return Outcome(finding=finding)


def make_unchecked(expected: str, reason: str, advice: str) -> Outcome:
    """Return the outcome of a check that was not possible, with the reason."""
    return Outcome(finding=Finding(verdict="not checked", expected=expected, observed=reason, advice=advice))


def merge(context: CheckContext, outcomes: Outcomes) -> Finding:
    """Return the finding of the first rank with the worst verdict; unless ok, it counts the other ranks with it."""
    worst = min((outcome.finding.verdict for outcome in outcomes.values()), key=SEVERITY.index)
    ranks = [rank for rank, outcome in outcomes.items() if outcome.finding.verdict == worst]
    finding = outcomes[ranks[0]].finding
    if worst == "ok" or len(outcomes) == 1:
        return finding
    others = f" (and {pluralize(len(ranks) - 1, 'other rank')})" if len(ranks) > 1 else ""
    return Finding(
        verdict=worst, expected=finding.expected, observed=f"rank {ranks[0]}{others}: {finding.observed}",
        advice=finding.advice, measurements=finding.measurements,
    )  # fmt: skip


def set_rendezvous(context: CheckContext) -> None:
    """Set the address and the port at which the processes of an item connect."""
    os.environ["MASTER_PORT"] = str(context.port)
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
