"""Pack cases into jobs: which cases share an allocation, its walltime, and its cost."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from harness.config.system import ResolvedSystem
from harness.planning.expand import Plan
from harness.protocol.case import Case
from harness.protocol.errors import UsageError

MAX_JOB_NAME_LENGTH = 60


@dataclass(frozen=True)
class Job:
    """One allocation: the cases that it runs one after another, the nodes of the largest case, and spare nodes.

    Attributes:
        minutes: the walltime to request.
        expected_minutes: the walltime that the job is expected to use.
    """

    name: str
    cases: tuple[Case, ...]
    nodes: int
    spare_nodes: int
    minutes: float
    expected_minutes: float

    @property
    def folders(self) -> dict[str, str]:
        """The name of the folder of each case, by id."""
        return {case.id: case.folder_name for case in self.cases}

    @property
    def walltime(self) -> str:
        """The walltime of the job as hh:mm:ss."""
        minutes = math.ceil(self.minutes)
        return f"{minutes // 60:02d}:{minutes % 60:02d}:00"

    @property
    def node_hours(self) -> float:
        """The node-hours that the job reserves."""
        return (self.nodes + self.spare_nodes) * self.minutes / 60

    @property
    def expected_node_hours(self) -> float:
        """The node-hours that the job is expected to use."""
        return (self.nodes + self.spare_nodes) * self.expected_minutes / 60

    @property
    def shape(self) -> tuple[int, int, float]:
        """The reserved resources; jobs of equal shape may share an array."""
        return (self.nodes, self.spare_nodes, self.minutes)


def pack_jobs(
    plan: Plan, cases: Iterable[Case], folder: Path, measured_seconds: Mapping[str, float] | None = None
) -> list[Job]:
    """Pack cases into jobs without changing their order.

    A job has at most as many cases as the suite's `pack`, and at most the walltime that the site allows. A case joins a
    job only if every case in the job would use at least half of the job's nodes.

    Args:
        plan: The plan that the cases belong to.
        cases: The cases to pack.
        folder: The campaign's folder, on which the jobs' names depend.
        measured_seconds: The seconds that cases took in earlier runs, by id of the case.

    Raises:
        UsageError: a case fits into no job.
    """
    system, batches = plan.system, list[list[Case]]()
    for case in cases:
        _raise_if_oversized(plan, case)
        if batches and _fits(system, [*batches[-1], case], plan.suite.pack):
            batches[-1].append(case)
        else:
            batches.append([case])
    path, seconds = str(folder.resolve()), measured_seconds or {}
    return [_build_job(system, tuple(batch), path, seconds) for batch in batches]


def drop_oversized_cases(plan: Plan) -> tuple[Plan, tuple[Case, ...]]:
    """Remove the cases that need more nodes than a job may have, and the cases that depend on them.

    Returns:
        The reduced plan and the removed cases. If no case fits, nothing is removed, and `pack_jobs` raises an error.
    """
    limit = plan.system.max_nodes
    dropped: dict[str, Case] = {}
    for case in plan.cases:  # every case follows the cases that it depends on
        if (limit is not None and case.nodes > limit) or not dropped.keys().isdisjoint(case.depends_on):
            dropped[case.folder_name] = case
    if len(dropped) == len(plan.cases):
        return plan, ()
    return replace(plan, cases=tuple(c for c in plan.cases if c.folder_name not in dropped)), tuple(dropped.values())


def sum_node_hours(jobs: Sequence[Job]) -> tuple[float, float]:
    """Return the maximum and the expected node-hours of the jobs."""
    return sum(job.node_hours for job in jobs), sum(job.expected_node_hours for job in jobs)


def _fits(system: ResolvedSystem, cases: Sequence[Case], max_cases: int) -> bool:
    """Return whether the cases may share a job."""
    nodes = [case.nodes for case in cases]
    allowed = system.get_max_minutes(max(nodes) + system.spare_nodes)
    fits_time = allowed is None or _compute_walltime(system, cases) <= allowed
    return len(cases) <= max_cases and min(nodes) * 2 >= max(nodes) and fits_time


def _compute_walltime(system: ResolvedSystem, cases: Sequence[Case]) -> float:
    """Return the minutes that a job with these cases requests."""
    return math.ceil(sum(case.walltime_minutes for case in cases) + system.overhead_minutes)


def _raise_if_oversized(plan: Plan, case: Case) -> None:
    system, name, document = plan.system, plan.system.definition.name, plan.suite.document
    nodes, limit = case.nodes + system.spare_nodes, system.definition.limits.nodes
    if limit is not None and nodes > limit:
        spare = f", {system.spare_nodes} of them spare" if system.spare_nodes else ""
        message = f"case {case.name} needs {nodes} nodes{spare}, but a job on {name} has at most {limit}"
        raise document.make_error(("resources", "nodes"), message)
    allowed, minutes = system.get_max_minutes(nodes), _compute_walltime(system, [case])
    if allowed is not None and minutes > allowed:
        message = (
            f"case {case.name} needs {minutes:g} minutes including the overhead of a job, but {name} allows"
            f" {allowed:g} for {nodes} nodes; -x {case.name} excludes it"
        )
        raise document.make_error(("resources", "walltime_minutes"), message)
    is_limited = "ranks_per_node" in system.definition.settings and system.definition.scheduler == "local"
    if is_limited and case.ranks_per_node > system.ranks_per_node:
        message = f"case {case.name} needs {case.ranks_per_node} ranks, but ranks_per_node of this machine is"
        hint = f"-S ranks_per_node={case.ranks_per_node} allows it"
        raise UsageError(f"{message} {system.ranks_per_node}; {hint}")


def _build_job(system: ResolvedSystem, cases: tuple[Case, ...], folder: str, seconds: Mapping[str, float]) -> Job:
    digest = hashlib.sha256("\n".join([folder, *(case.id for case in cases)]).encode()).hexdigest()[:8]
    nodes = cases[0].nodes if len(cases) == 1 else max(case.nodes for case in cases)
    expected = sum(seconds[c.id] / 60 if c.id in seconds else c.expected_minutes for c in cases)
    minutes = _compute_walltime(system, cases)
    return Job(
        name=f"{cases[0].name[:MAX_JOB_NAME_LENGTH].rstrip('-')}-{digest}",
        cases=cases,
        nodes=nodes,
        spare_nodes=system.spare_nodes,
        minutes=minutes,
        expected_minutes=min(minutes, expected + system.overhead_minutes),
    )
