"""Cases are packed into jobs within the limits of the suite and the system; the names of jobs are reproducible."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from harness.config.resources import find_resource
from harness.config.suite import Suite
from harness.config.system import ResolvedSystem, load_system
from harness.planning.expand import Plan, expand_suite
from harness.planning.jobs import Job, pack_jobs
from harness.protocol.case import Case

FOLDER = Path("runs/s-frontier")
FRONTIER = load_system(find_resource("systems", "frontier"), {"account": "abc"})
NODES = [1, 2, 3, 5, 8, 13, 40, 80, 90, 180, 400]
MINUTES = [1, 7, 20, 55, 100]


def make_plan(max_cases: int, shapes: list[tuple[int, int]], system: ResolvedSystem = FRONTIER) -> Plan:
    """Return a plan with a case of each shape (nodes, minutes) and at most `max_cases` cases per job."""
    zips = {
        "shape": {"nodes": [n for n, _ in shapes], "minutes": [m for _, m in shapes], "seed": [*range(len(shapes))]}
    }
    suite = Suite(
        name="s",
        title="S",
        program="ladder",
        parameters={"workload": "random", "precision": "fp64"},
        zips=zips,
        resources={"nodes": "{{ nodes }}", "walltime_minutes": "{{ minutes }}"},
        pack=max_cases,
    )
    return expand_suite(suite, system)


def pack(max_cases: int, shapes: list[tuple[int, int]]) -> list[Job]:
    plan = make_plan(max_cases, shapes)
    return pack_jobs(plan, plan.cases, FOLDER)


SHAPES = st.lists(st.tuples(st.sampled_from(NODES), st.sampled_from(MINUTES)), min_size=1, max_size=12)


@given(st.integers(1, 6), SHAPES)
@settings(max_examples=150, deadline=None)
def test_jobs_respect_all_limits_and_contain_every_case(max_cases: int, shapes: list[tuple[int, int]]) -> None:
    plan = make_plan(max_cases, shapes)
    jobs = pack_jobs(plan, plan.cases, FOLDER)
    assert [case for job in jobs for case in job.cases] == list(plan.cases)
    assert len({job.name for job in jobs}) == len(jobs)
    for job in jobs:
        node_counts = [case.nodes for case in job.cases]
        assert len(job.cases) <= max_cases
        assert job.nodes == max(node_counts) <= 2 * min(node_counts)
        assert job.minutes == sum(c.walltime_minutes for c in job.cases) + FRONTIER.definition.overhead_minutes
        max_minutes = FRONTIER.get_max_minutes(job.nodes + job.spare_nodes)
        assert max_minutes is not None
        assert job.minutes <= max_minutes
        assert job.expected_minutes <= job.minutes
    assert [job.name for job in pack_jobs(plan, plan.cases, FOLDER)] == [job.name for job in jobs]


def test_cases_are_packed_up_to_each_limit() -> None:
    def sizes(max_cases: int, shapes: list[tuple[int, int]]) -> list[int]:
        return [len(job.cases) for job in pack(max_cases, shapes)]

    assert sizes(3, [(1, 1)] * 7) == [3, 3, 1]
    assert sizes(9, [(4, 1), (8, 1), (4, 1), (3, 1), (6, 1), (7, 1)]) == [3, 2, 1]
    assert sizes(9, [(1, 57), (1, 57), (1, 57), (1, 57)]) == [2, 2]
    assert sizes(1, [(1, 1)] * 3) == [1, 1, 1]


def test_spare_nodes_count_towards_the_walltime_limit_of_a_job() -> None:
    shapes = [(91, 100), (91, 100)]
    assert [len(job.cases) for job in pack(2, [(91, 50), (91, 50)])] == [2]
    system = load_system(find_resource("systems", "frontier"), {"account": "abc", "spare_nodes": "1"})
    plan = make_plan(2, shapes, system)
    (job,) = pack_jobs(plan, plan.cases, FOLDER)
    assert (job.nodes, job.spare_nodes, job.minutes) == (91, 1, 205)


def test_a_job_name_depends_only_on_the_cases_and_the_folder() -> None:
    plan = make_plan(2, [(1, 1), (1, 2), (1, 3)])
    names = [job.name for job in pack_jobs(plan, plan.cases, FOLDER)]
    renamed: list[Case] = [replace(case, walltime_minutes=9.0) for case in plan.cases]
    assert [job.name for job in pack_jobs(plan, renamed, FOLDER)] == names
    assert not set(names) & {job.name for job in pack_jobs(plan, plan.cases, Path("elsewhere"))}
    assert names != [job.name for job in pack_jobs(plan, plan.cases[1:], FOLDER)]


def test_expected_minutes_use_measured_seconds() -> None:
    plan = make_plan(2, [(1, 10), (1, 20)])
    (job,) = pack_jobs(plan, plan.cases, FOLDER, {plan.cases[0].id: 60.0})
    assert job.expected_minutes == 1 + 20 + FRONTIER.definition.overhead_minutes
    (overdue,) = pack_jobs(plan, plan.cases, FOLDER, {plan.cases[0].id: 1e6})
    assert overdue.expected_minutes == overdue.minutes
