"""The program `preflight`: check one or several nodes before a campaign."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from harness.protocol.events import CaseLog
from harness.protocol.programs.preflight import (
    Calculation,
    Finding,
    ItemName,
    ItemResult,
    PreflightFacts,
    PreflightParameters,
)
from harness.protocol.records import Progress
from harness.protocol.text import pluralize
from harness.reference.distributed import launch
from harness.reference.errors import InputError
from harness.reference.programs.preflight.check import CheckContext, Outcome, Outcomes, make_unchecked
from harness.reference.programs.preflight.coordination import LOST_ADVICE, Follower, Leader, Task, find_free_port
from harness.reference.programs.preflight.isolation import make_failure, run_isolated
from harness.reference.programs.preflight.items import ITEMS, Item, select_items

FOLDER = "preflight"  # the folder of the items' files, in the folder of the case
FIX_FIRST = "Correct the item `{}` first."
MAX_RANKS = 8  # that a message lists


def run(config: PreflightParameters, log: CaseLog, folder: Path) -> None:
    """Check all items in turn on the ranks that they concern; raise InputError at the end if an item has failed."""
    rank_info = launch.detect_rank(os.environ)
    context = CheckContext(config, rank_info, folder / FOLDER, case_folder=folder)
    case = str(folder.absolute())
    if rank_info.rank > 0:
        follow(context, Follower(rank_info, case))
    else:
        Preflight(context, log, Leader(rank_info, case)).run(select_items(config))


def follow(context: CheckContext, leader: Follower) -> None:
    """Check the items that rank 0 names, until there are no more."""
    items = {item.name: item for item in ITEMS}
    while (task := leader.receive()).item is not None:
        leader.answer(check_item(items[task.item], prepare(context, task)))


def prepare(context: CheckContext, task: Task) -> CheckContext:
    """Create the folder of an item, and return the context in which it is checked."""
    folder = context.folder / str(task.item)
    folder.mkdir(parents=True, exist_ok=True)
    return CheckContext(context.config, context.rank_info, folder, task.port, context.case_folder)


def check_item(item: Item, context: CheckContext) -> Outcome | None:
    """Return the outcome of an item on this rank, or None if the item is not for this rank."""
    if not item.is_for(context):
        return None
    if item.needs_torch:
        # imported here once, since the processes of the checks are forked from this one
        with suppress(Exception):  # the check reports the error
            import torch  # noqa: F401
    return run_isolated(item.check, context, context.config.time_limit_s)


def judge(item: Item, context: CheckContext, outcomes: Outcomes) -> Finding:
    """Return the finding on the outcomes of all ranks; an error while they are judged is a failure."""
    try:
        return item.judge(context, outcomes)
    except Exception as error:
        return make_failure(launch.describe_error(error), "Report this error with the log of the case.").finding


class Preflight:
    """The checks on all ranks, which rank 0 starts, judges and logs.

    Args:
        context: The context of rank 0, without an item.
        log: The event log.
        leader: The connections to the other ranks.
    """

    def __init__(self, context: CheckContext, log: CaseLog, leader: Leader) -> None:
        self.context, self.log, self.leader = context, log, leader
        self.failed: list[ItemName] = []

    def run(self, items: Sequence[Item]) -> None:
        """Check the items in turn; each result is in the log before the next check begins.

        Raises:
            InputError: Items have failed; the message names them.
        """
        size = self.context.rank_info.size
        self.log.record_facts(
            PreflightFacts(hosts=[platform.node()], world_size=size, items=["ranks", *(item.name for item in items)])
        )
        self.report_ranks()
        for number, item in enumerate(items):
            self.log.write(Progress(done=number, total=len(items), activity=item.name))
            self.run_item(item)
        self.leader.send(Task(None))
        if self.failed:
            names = ", ".join(self.failed)
            raise InputError(
                f"{pluralize(len(self.failed), 'item')} failed: {names}; the page on the preflight has advice"
            )

    def report_ranks(self) -> None:
        """Log whether all ranks have connected to rank 0."""
        missing, size = self.leader.missing_ranks, self.context.rank_info.size
        finding = Finding(
            verdict="failed" if missing else "ok",
            expected=pluralize(size, "rank"),
            observed=f"{size - len(missing)} of {pluralize(size, 'rank')} connected to rank 0"
            + (f"; not rank {', '.join(map(str, missing[:MAX_RANKS]))}" if missing else ""),
            advice="Check that all ranks have started and can reach MASTER_ADDR, set in the job script."
            if missing
            else None,
        )
        self.write(Item("ranks"), finding, 0.0)

    def run_item(self, item: Item) -> None:
        """Check an item on all ranks that it concerns, and log the result."""
        started = time.monotonic()
        outcome = self.find_obstacle(item)
        if outcome is not None:
            self.write(item, outcome.finding, 0.0)
            return
        task = Task(item.name, find_free_port())
        self.leader.send(task)
        context = prepare(self.context, task)
        first = check_item(item, context)
        others = self.leader.gather(context.config.time_limit_s)
        outcomes = {rank: outcome for rank, outcome in sorted({0: first, **others}.items()) if outcome is not None}
        for rank, outcome in outcomes.items():
            for result in outcome.calculations:
                self.log.write(Calculation(item=item.name, rank=rank, result=result))
        self.record_facts(outcomes)
        self.write(item, judge(item, context, outcomes), time.monotonic() - started)

    def find_obstacle(self, item: Item) -> Outcome | None:
        """Return the outcome of an item that cannot be checked after a failure or the loss of a rank, or None."""
        expected = f"a result of {item.name}"
        needed = ["packages"] * item.needs_torch + ["ranks"] * item.needs_all
        cause = next((name for name in needed if name in self.failed), None)
        if cause is not None:
            return make_unchecked(expected, f"the item {cause} failed", FIX_FIRST.format(cause))
        if item.needs_all and (missing := self.leader.missing_ranks):
            ranks = ", ".join(map(str, missing[:MAX_RANKS]))
            return make_unchecked(expected, f"not every rank answers; missing: {ranks}", LOST_ADVICE)
        return None

    def record_facts(self, outcomes: Outcomes) -> None:
        """Log the device and the bindings that the outcomes report."""
        first = next(iter(outcomes.values()))
        if first.device is not None:
            self.log.record_facts(PreflightFacts(device=first.device, device_name=first.device_name))
        bindings = [msgspec.structs.replace(o.binding, rank=rank) for rank, o in outcomes.items() if o.binding]
        if bindings:
            hosts = list(dict.fromkeys(binding.host for binding in bindings))
            self.log.record_facts(PreflightFacts(bindings=bindings, hosts=hosts))

    def write(self, item: Item, finding: Finding, duration_s: float) -> None:
        """Log the result of an item."""
        if finding.verdict == "failed":
            self.failed.append(item.name)
        fields = {name: getattr(finding, name) for name in finding.__struct_fields__}
        self.log.write(ItemResult(item=item.name, duration_s=duration_s, **fields))
