"""How far a campaign is: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from harness.execution import case_results
from harness.execution.journal import Ended
from harness.execution.schedulers.base import Queued
from harness.protocol.text import sanitize

PLAIN_EVERY_S = 20.0
SHOWN = 20


class Progress:
    """Tells the user, on stderr, what is going on."""

    def __init__(self, quiet: bool = False) -> None:
        self.console = Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=True)
        self._bars: Bars | None = None
        self._tasks: dict[str, int] = {}
        self._told: dict[str, float] = {}
        self._reasons: dict[str, set[str]] = {}

    def already_done(self, names: Sequence[str]) -> None:
        """Cases that need no running."""
        if len(names) > SHOWN:
            self.say(f"{len(names):,} cases: done before")
            return
        for name in names:
            self.say(f"{name}: done before")

    def submitted(self, jobs: Sequence[str], job_id: str, cases: int) -> None:
        """Jobs that the scheduler has just taken."""
        if job_id != jobs[0]:
            what = jobs[0] if len(jobs) == 1 else f"{len(jobs)} jobs as one array"
            self.say(f"submitted {what} ({cases} case{'s' * (cases > 1)}) as {job_id}")

    def written(self, folder: Path, jobs: int, node_hours: float) -> None:
        """Scripts that wait for somebody to submit them."""
        self.say(f"{jobs} job script{'s' * (jobs != 1)}, at most {node_hours:,.4g} node-hours, in {folder}")

    def ended(self, name: str, ended: Ended, folder: Path) -> None:
        """A case that has just ended."""
        self._forget(name)
        if ended.state == "done":
            self.say(f"{name}: done")
        elif not ended.exit_code:
            self.say(f"{name}: {ended.state} ({ended.reason}); its files are in {folder}")
        else:
            how = f"failed with exit code {ended.exit_code}"
            self.say(f"{name}: {how}; its files are in {folder}; the end of its stderr:")
            for line in case_results.last_lines(folder / "stderr"):
                self.say(f"    {line}")

    def waiting(self, queue: Mapping[str, Queued]) -> None:
        """Say why jobs wait, where that is out of the ordinary; once for each reason."""
        by_reason: dict[str, list[str]] = {}
        for job, queued in queue.items():
            if queued.is_odd and queued.reason not in self._reasons.get(job, ()):
                by_reason.setdefault(queued.reason, []).append(job)
                self._reasons.setdefault(job, set()).add(queued.reason)
        for reason, jobs in by_reason.items():
            more = f" and {len(jobs) - 1} more" if len(jobs) > 1 else ""
            hopeless = "; by itself it will not start" if any(queue[job].is_hopeless for job in jobs) else ""
            self.say(f"{jobs[0]}{more}: waiting, says the scheduler, since: {sanitize(reason)}{hopeless}")

    def watch(self, running: Sequence[tuple[str, Path]]) -> None:
        """Show the newest progress event of cases that run."""
        for name, folder in running:
            event = case_results.last_progress(folder)
            done, total, what = (event["done"], event["total"], event["what"]) if event else (None, None, "starting")
            if self.console.is_terminal and not self.console.quiet:
                bars, task = self._bar(name)
                bars.update(task, completed=done, total=total, what=str(what))  # type: ignore[arg-type]
            elif name not in self._told:
                self._told[name] = time.monotonic()
                self.say(f"{name}: started")
            elif event and time.monotonic() - self._told[name] >= PLAIN_EVERY_S:
                self._told[name] = time.monotonic()
                self.say(f"{name}: {what} ({done} of {total})")

    def close(self) -> None:
        """No more bars."""
        if self._bars is not None:
            self._bars.stop()
            self._bars = None

    def say(self, text: str) -> None:
        """One line."""
        self.console.print(text, markup=False)

    def _bar(self, name: str) -> tuple[Bars, int]:
        if self._bars is None:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[what]}"),
                TimeElapsedColumn(),
            )
            self._bars = Bars(*columns, console=self.console, transient=True)
            self._bars.start()
        if name not in self._tasks:
            self._tasks[name] = self._bars.add_task(name, total=None, what="starting")
        return self._bars, self._tasks[name]

    def _forget(self, name: str) -> None:
        self._told.pop(name, None)
        task = self._tasks.pop(name, None)
        if self._bars is not None and task is not None:
            self._bars.remove_task(task)  # type: ignore[arg-type]
