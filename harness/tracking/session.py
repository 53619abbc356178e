"""A session of rounds over the commits of a range, into the history, however often it is interrupted."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.execution.campaign_lock import alone
from harness.host.atomic_files import make_folder_below
from harness.protocol.errors import UsageError
from harness.tracking import asv_results, asv_runner, history
from harness.tracking.series import series
from harness.tracking.verdicts import Verdict, verdicts

FOLDER = "regression"


@dataclass(frozen=True)
class Orders:
    """How many rounds, of which benchmarks (regular expressions; none: all), and whether to tell how far it is."""

    rounds: int
    bench: Sequence[str] = ()
    quiet: bool = False

    def asks_for(self, name: str) -> bool:
        """Whether a benchmark is among those wanted."""
        return not self.bench or any(re.search(regex, name) for regex in self.bench)


def follow(session: asv_runner.Session, orders: Orders, out: Path) -> bool:
    """Measure what is missing and append it to the history; whether asv had something to say against any of it.

    What seems to have become worse is measured as often again: it must be found with all rounds as well. Raises
    UsageError if there is nothing to compare.
    """
    complaints = measure(session, orders, out)
    worse = [v.series.name for v in judged(session, out) if v.state == "regression" and orders.asks_for(v.series.name)]
    if worse:
        if not orders.quiet:
            print(f"looking again at {len(worse)} that seem to have become worse", file=sys.stderr)
        names = sorted({f"^{re.escape(name.split('(')[0].split(' ')[0])}(\\W|$)" for name in worse})
        complaints |= measure(session, Orders(2 * orders.rounds, names, orders.quiet), out)
    return complaints


def judged(session: asv_runner.Session, out: Path) -> list[Verdict]:
    """The verdicts of this session as far as it has come."""
    entries = history.read(out / history.FILE_NAME).entries
    return verdicts([s for s in series(entries) if s.session == session.id])


def measure(session: asv_runner.Session, orders: Orders, out: Path) -> bool:
    """Measure what is missing; whether asv had something to say against any of it."""
    if len(session.commits) < 2:
        raise UsageError(f"one commit alone ({session.commits[0].short}): nothing to compare it with")
    make_folder_below(out, FOLDER)
    session.folder.mkdir(parents=True, exist_ok=True)
    complaints = False
    began = time.monotonic()
    with alone(session.root):
        for number in range(1, orders.rounds + 1):
            if not orders.quiet:
                minutes = (time.monotonic() - began) / 60
                print(f"round {number} of {orders.rounds}, {minutes:.1f} minutes so far", file=sys.stderr)
            try:
                complaints |= asv_runner.measure(session, number, orders.bench)
            finally:
                history.append(out / history.FILE_NAME, asv_results.entries(session, number))
    return complaints
