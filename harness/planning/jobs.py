"""Cases -> jobs: which cases share an allocation, how long it lasts, and what it costs."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.config.system import Site
from harness.planning.expand import Plan
from harness.protocol.case import Case
from harness.protocol.errors import UsageError

NAME_LENGTH = 60


@dataclass(frozen=True)
class Job:
    """One allocation: cases that run in it one after another, the nodes of the largest, and spare nodes."""

    name: str
    cases: tuple[Case, ...]
    nodes: int
    spares: int
    minutes: float
    expected_minutes: float

    @property
    def folders(self) -> dict[str, str]:
        """Case id -> its folder in the campaign's."""
        return {case.id: case.folder_name for case in self.cases}

    @property
    def walltime(self) -> str:
        """hh:mm:ss."""
        minutes = math.ceil(self.minutes)
        return f"{minutes // 60:02d}:{minutes % 60:02d}:00"

    @property
    def node_hours(self) -> float:
        """What it is charged at most."""
        return (self.nodes + self.spares) * self.minutes / 60

    @property
    def expected_node_hours(self) -> float:
        """What it should be charged."""
        return (self.nodes + self.spares) * self.expected_minutes / 60

    @property
    def shape(self) -> tuple[int, int, float]:
        """What the scheduler sees of it: jobs of one shape may share an array."""
        return (self.nodes, self.spares, self.minutes)


def pack(plan: Plan, cases: Iterable[Case], folder: Path, seconds: Mapping[str, float] | None = None) -> list[Job]:
    """The cases as jobs, in their order, at most `pack` in each and as long as the site's walltime allows.

    A case joins a job only if each of them uses at least half of its nodes. folder: the campaign's, a part of the
    jobs' names. seconds: case id -> how long it took before. Raises UsageError for a case that no job can hold.
    """
    site, bins = plan.site, list[list[Case]]()
    for case in cases:
        _refuse_too_large(plan, case)
        if bins and _fits(site, [*bins[-1], case], plan.suite.pack):
            bins[-1].append(case)
        else:
            bins.append([case])
    place, took = str(folder.resolve()), seconds or {}
    return [_job(site, tuple(b), place, took) for b in bins]


def split_too_large(plan: Plan) -> tuple[Plan, tuple[Case, ...]]:
    """Return the plan without the cases that need more nodes than the system has, or a case that does, and those.

    A plan of which nothing is left is returned whole, for `pack` to say why.
    """
    most = plan.site.nodes_allowed
    lost: dict[str, Case] = {}
    for case in plan.cases:  # none stands before one that it needs
        if (most is not None and case.nodes > most) or not lost.keys().isdisjoint(case.after):
            lost[case.folder_name] = case
    if len(lost) == len(plan.cases):
        return plan, ()
    left = tuple(case for case in plan.cases if case.folder_name not in lost)
    return Plan(plan.suite, plan.site, left), tuple(lost.values())


def node_hours(jobs: Sequence[Job]) -> tuple[float, float]:
    """What the jobs are charged at most, and what they should be."""
    return sum(j.node_hours for j in jobs), sum(j.expected_node_hours for j in jobs)


def _fits(site: Site, cases: Sequence[Case], most: int) -> bool:
    nodes = [case.nodes for case in cases]
    allowed = site.minutes_allowed(max(nodes) + site.spares)
    fits_time = allowed is None or _minutes(site, cases) <= allowed
    return len(cases) <= most and min(nodes) * 2 >= max(nodes) and fits_time


def _minutes(site: Site, cases: Sequence[Case]) -> float:
    return math.ceil(sum(case.minutes for case in cases) + site.system.overhead_minutes)


def _refuse_too_large(plan: Plan, case: Case) -> None:
    site, nodes = plan.site, case.nodes + plan.site.spares
    limits = site.system.limits
    where = plan.suite.document
    if limits.nodes is not None and nodes > limits.nodes:
        spare = f", {site.spares} of them spare" if site.spares else ""
        said = f"case {case.name} takes {nodes} nodes{spare}, and a job on {site.system.name} has at most"
        raise where.error(("resources", "nodes"), f"{said} {limits.nodes}")
    allowed, asked = site.minutes_allowed(nodes), _minutes(site, [case])
    if allowed is not None and asked > allowed:
        said = (
            f"case {case.name} takes {asked:g} minutes with what a job takes beside it, and {site.system.name} allows"
        )
        raise where.error(
            ("resources", "minutes"), f"{said} {allowed:g} to a job of {nodes} nodes; -x {case.name} leaves it out"
        )
    is_set = "ranks_per_node" in site.system.settings and site.system.scheduler == "local"
    most = site.ranks_per_node if is_set else case.ranks_per_node
    if case.ranks_per_node > most:
        said = f"case {case.name} takes {case.ranks_per_node} ranks and this machine is set to at most {most}"
        raise UsageError(f"{said}; -S ranks_per_node={case.ranks_per_node} allows it")


def _job(site: Site, cases: tuple[Case, ...], folder: str, seconds: Mapping[str, float]) -> Job:
    digest = hashlib.sha256("\n".join([folder, *(case.id for case in cases)]).encode()).hexdigest()[:8]
    nodes = cases[0].nodes if len(cases) == 1 else max(case.nodes for case in cases)
    expected = sum(seconds[c.id] / 60 if c.id in seconds else c.expected_minutes for c in cases)
    minutes = _minutes(site, cases)
    return Job(
        name=f"{cases[0].name[:NAME_LENGTH].rstrip('-')}-{digest}",
        cases=cases,
        nodes=nodes,
        spares=site.spares,
        minutes=minutes,
        expected_minutes=min(minutes, expected + site.system.overhead_minutes),
    )
