"""The runs that would decide the open claims: their commands, and their cost according to the plan."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from harness.claims.model import Claim, DecisiveRun, Paper
from harness.claims.scorecard import Score
from harness.config import resources
from harness.config.suite import load_suite
from harness.config.system import ResolvedSystem, load_system
from harness.document.blocks import EN_DASH, MINUTE, Section, TableBlock, format_number, format_quantity
from harness.planning.expand import expand_suite
from harness.planning.jobs import Job, drop_oversized_cases, pack_jobs, sum_node_hours
from harness.protocol.errors import UsageError
from harness.protocol.text import pluralize

HOUR = 60 * MINUTE


@dataclass(frozen=True)
class PlannedRun:
    """A run that would decide a claim.

    Attributes:
        command: the command that starts it.
        system: the title of the system; its name if the run cannot be planned.
        jobs: the number of jobs, and the walltime of the longest; the reason if the run cannot be planned.
        expected: the expected cost.
        limit: the cost that the walltimes allow.
    """

    command: str
    system: str
    jobs: str
    expected: str
    limit: str

    @property
    def cost(self) -> str:
        """The system, the number of jobs and the expected cost in one line."""
        return f"{self.system}: {self.jobs}, {self.expected}"


def plan_open_claims(scores: Iterable[Score], papers: Mapping[str, Paper]) -> dict[tuple[str, str], list[PlannedRun]]:
    """Return the runs that would decide each claim that is open, by paper and id of the claim."""
    claims = {(name, claim.id): claim for name, paper in papers.items() for claim in paper.claims}
    keys = {(score.paper, score.id): score for score in scores if (score.paper, score.id) in claims}
    runs = {key: find_decisive_run(claims[key], score) for key, score in keys.items()}
    return {
        key: [_plan_run(run.suite, system, run.settings) for system in run.systems]
        for key, run in runs.items()
        if run is not None
    }


def find_decisive_run(claim: Claim, score: Score) -> DecisiveRun | None:
    """Return the run that would decide a claim; None if it is decided by measurements, or if no run is known."""
    if score.verdict in ("reproduced", "deviates", "incorrect") and score.basis == "measured":
        return None
    if claim.decided_by is None and score.verdict == "not run" and claim.suites:
        return DecisiveRun(suite=claim.suites[0])
    return claim.decided_by


def build_decisions_section(runs: Mapping[tuple[str, str], list[PlannedRun]]) -> Section | None:
    """Return the section with the commands that would decide open claims, and the claims of each; None without any."""
    claims_by_run: dict[PlannedRun, list[str]] = {}
    for (_, claim), planned in runs.items():
        for run in planned:
            claims_by_run.setdefault(run, []).append(claim)
    if not claims_by_run:
        return None
    columns = ["command", "system", "jobs", "expected", "at most", "claims"]
    rows = [
        [f"`{run.command}`", run.system, run.jobs, run.expected, run.limit, ", ".join(claims)]
        for run, claims in claims_by_run.items()
    ]
    note = (
        "The costs are those of the plan, for all cases of the suite; `harness plan` prints them for a part. DIR is a"
        " folder with the official data. The expected cost assumes the time that the suite names for a case, or else"
        " the whole walltime."
    )
    block = TableBlock("Runs that would decide open claims", columns, rows, note)
    return Section("What would decide the rest", "decisions", tables=[block])


def _plan_run(suite_name: str, system_name: str, settings: Mapping[str, str]) -> PlannedRun:
    """Return the command and the cost of a suite on a system; if it cannot be planned, the reason and dashes."""
    options = [f"-S {name}={value}" for name, value in settings.items()]
    if system_name != "local":
        options.insert(0, f"--system {system_name}")
    command = " ".join(["harness run", suite_name, *options])
    try:
        paths = (resources.find_resource("suites", suite_name), resources.find_resource("systems", system_name))
        system, jobs = _pack_all_jobs(*(path.resolve() for path in paths))
    except UsageError as error:
        return PlannedRun(command, system_name, f"no plan ({str(error).splitlines()[0]})", EN_DASH, EN_DASH)
    if system.definition.scheduler != "local":
        missing = " ".join(f"-S {name}={name.upper()}" for name in system.missing)
        command = " ".join(filter(None, [command, missing, "--submit"]))
    longest = format_quantity(max(job.minutes for job in jobs) * MINUTE, "s")
    limit, expected = sum_node_hours(jobs)
    return PlannedRun(
        command=command,
        system=system.definition.title,
        jobs=f"{pluralize(len(jobs), 'job')} of up to {longest}",
        expected=_format_cost(expected, system),
        limit=_format_cost(limit, system),
    )


@cache
def _pack_all_jobs(suite_path: Path, system_path: Path) -> tuple[ResolvedSystem, list[Job]]:
    system = load_system(system_path, {})
    suite = load_suite(suite_path, system.definition.overlay or system.definition.name)
    plan, _ = drop_oversized_cases(expand_suite(suite, system))
    return system, pack_jobs(plan, plan.cases, Path())


def _format_cost(node_hours: float, system: ResolvedSystem) -> str:
    """Return node-hours, or the time on this machine, whose jobs run one after another."""
    if system.definition.scheduler == "local":
        return format_quantity(node_hours * HOUR, "s")
    return f"{format_number(node_hours)} node-hours"
