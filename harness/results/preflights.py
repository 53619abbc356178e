"""The last preflight of a system, as its run folders show it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from harness.protocol.case import Unreadable, read_case
from harness.protocol.text import pluralize
from harness.results.runs import RunRecord, load_run_folders

PROGRAM = "preflight"
DAY_S = 86400.0


@dataclass(frozen=True)
class PreflightHistory:
    """When a preflight of a system last passed and last failed, in Unix time; None: never in these run folders."""

    passed_s: float | None
    failed_s: float | None

    @property
    def is_passed(self) -> bool:
        """Whether the last preflight has passed."""
        return self.passed_s is not None and (self.failed_s is None or self.failed_s < self.passed_s)


def find_preflights(runs: Path, system: str) -> PreflightHistory:
    """Return the history of a system in the folder of the runs; checks of an accelerator alone do not count."""
    folders = [folder for folder in runs.glob(f"*-{system}/*/") if (folder / "case.json").exists()]
    campaigns = {folder.parent: folder for folder in folders}
    preflights = {campaign for campaign, folder in campaigns.items() if is_preflight(folder)}
    records = load_run_folders(folder for folder in folders if folder.parent in preflights)
    records = [record for record in records if record.case.get("parameters", {}).get("items") != "gpu"]
    return PreflightHistory(find_last(records, "done"), find_last(records, "failed"))


def is_preflight(folder: Path) -> bool:
    """Return whether a case runs the program of preflights."""
    try:
        return bool(read_case(folder).get("program") == PROGRAM)
    except (Unreadable, OSError):
        return False


def find_last(records: list[RunRecord], state: str) -> float | None:
    """Return the last time at which a case ended in a state, or None."""
    times = [record.end_time_s for record in records if record.state == state and record.end_time_s is not None]
    return max(times, default=None)


def describe_preflights(history: PreflightHistory, system: str) -> str:
    """Return a line for the user on the last preflight, which begins with `warning:` unless it has passed."""
    command = f"`harness run preflight --system {system} --submit`"
    if history.passed_s is None and history.failed_s is None:
        return f"warning: there is no preflight of {system} in this results folder; run {command} first"
    passed = "it has never passed" if history.passed_s is None else f"it last passed {format_age(history.passed_s)}"
    if history.is_passed:
        return f"preflight of {system}: {passed}"
    assert history.failed_s is not None
    return f"warning: the preflight of {system} failed {format_age(history.failed_s)}, and {passed}; see its page"


def format_age(time_s: float) -> str:
    """Return a time in UTC and how long ago it was: `on 2026-11-29 10:12 UTC, 3 days ago`."""
    days = int(max(0.0, time.time() - time_s) / DAY_S)
    age = "today" if days == 0 else f"{pluralize(days, 'day')} ago"
    return f"on {time.strftime('%Y-%m-%d %H:%M', time.gmtime(time_s))} UTC, {age}"
