"""How far a campaign is: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from harness.events import Event

PLAIN_EVERY_S = 20.0
Show = Callable[[Event | None], None]


class Progress:
    """Tells the user, on stderr, what is going on."""

    def __init__(self, quiet: bool = False) -> None:
        self.console = Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=True)

    def already_done(self, name: str) -> None:
        """A case that needs no running."""
        self._say(f"{name}: done before")

    def done(self, name: str) -> None:
        """A case that has just ended well."""
        self._say(f"{name}: done")

    def failed(self, name: str, exit_code: int | None, folder: Path, stderr: Sequence[str]) -> None:
        """A case that has just ended badly, with the end of its stderr."""
        how = "vanished without an exit code" if exit_code is None else f"failed with exit code {exit_code}"
        self._say(f"{name}: {how}; its files are in {folder}; the end of its stderr:")
        for line in stderr:
            self._say(f"    {line}")

    @contextmanager
    def case(self, name: str) -> Iterator[Show]:
        """Show one case until it ends; the value shown is its newest progress event."""
        if self.console.is_terminal and not self.console.quiet:
            with self._bar(name) as show:
                yield show
        else:
            yield self._lines(name)

    @contextmanager
    def _bar(self, name: str) -> Iterator[Show]:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[what]}"),
            TimeElapsedColumn(),
        )
        with Bars(*columns, console=self.console, transient=True) as bars:
            task = bars.add_task(name, total=None, what="starting")

            def show(event: Event | None) -> None:
                if event is not None:
                    bars.update(task, completed=event["done"], total=event["total"], what=str(event["what"]))

            yield show

    def _lines(self, name: str) -> Show:
        self._say(f"{name}: started")
        last = time.monotonic()

        def show(event: Event | None) -> None:
            nonlocal last
            if event is not None and time.monotonic() - last >= PLAIN_EVERY_S:
                last = time.monotonic()
                self._say(f"{name}: {event['what']} ({event['done']} of {event['total']})")

        return show

    def _say(self, text: str) -> None:
        self.console.print(text, markup=False)
        sys.stderr.flush()
