"""The commands `list`, `plan` and `setup`, which run nothing, and the next steps that `run` prints."""

from __future__ import annotations

import shlex
import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness.cli.options import (
    Commands,
    add_command,
    add_job_options,
    add_suite_options,
    add_system_options,
    check_cost,
    load_campaigns,
    load_plans,
    load_system,
)
from harness.host.command_line import CHECK_FAILED, DONE, INTERRUPTED, run_subprocess
from harness.protocol.text import pluralize

if TYPE_CHECKING:
    from harness.config.system import ResolvedSystem
    from harness.execution.campaign import Campaign
    from harness.execution.status import Outcome
    from harness.planning.expand import Plan
    from harness.planning.jobs import Job

MAX_CASES_SHOWN = 3
MIN_NODES_OF_FOOTPRINT = 64


def print_jobs(jobs: Sequence[Job], verbose: bool) -> None:
    """Print a table of jobs with the first cases of each, or with all of them."""
    width = max([3, *(len(job.name) for job in jobs)])
    if jobs:
        print(f"  {'job':<{width}}  nodes  walltime  node-hours  cases")
    for job in jobs:
        names = [case.name for case in job.cases]
        listed = names if verbose else names[:MAX_CASES_SHOWN]
        more = f", and {len(names) - len(listed)} more" if len(names) > len(listed) else ""
        nodes = f"{job.nodes}" + (f"+{job.spare_nodes}" if job.spare_nodes else "")
        cases = ", ".join(listed) + more
        print(f"  {job.name:<{width}}  {nodes:>5}  {job.walltime:>8}  {job.node_hours:>10.4g}  {cases}")


def print_footprint(plan: Plan) -> None:
    """Print what the largest case of the plan opens, writes and sends, if it has many nodes, and on all nodes."""
    case = max(plan.cases, key=lambda case: case.ranks)
    if case.nodes < MIN_NODES_OF_FOOTPRINT:
        return
    from harness.planning.footprint import estimate_case  # imports numpy

    fields = {"program": case.program, "parameters": case.parameters, "settings": case.settings}
    for nodes in sorted({case.nodes, plan.system.max_nodes or case.nodes}):
        ranks = nodes * case.ranks_per_node
        estimates = estimate_case(fields, nodes, ranks)
        if estimates:
            print(f"  {case.name} on {nodes:,} nodes ({ranks:,} ranks), extrapolated from runs of a few ranks:")
        for estimate in estimates:
            print(f"    {estimate.format()}")


def print_next_steps(campaign: Campaign, outcomes: Sequence[Outcome], submitted: bool) -> None:
    """Print the state of the cases, and the commands that the user can type next."""
    from harness.host.files import make_absolute

    counts = Counter(outcome.state for outcome in outcomes)
    print(f"{campaign.plan.campaign_name}: " + ", ".join(f"{n} {state}" for state, n in counts.most_common()))
    if not counts["not run"] and not counts["waiting"] and not counts["running"]:
        return
    if submitted:
        print("later, run the same command to collect the cases that have ended and submit the others")
        return
    system = campaign.plan.system
    script = f"{shlex.quote(str(make_absolute(campaign.folder) / 'jobs'))}/JOB.sh"
    setting_options = "".join(f"-S {name}=... " for name in system.missing)
    print_missing_settings(system)
    print(f"to submit the jobs, and later to collect them, run the same command with {setting_options}--submit")
    print(
        f"or by hand, one by one: {' '.join(filter(None, (campaign.scheduler.command, system.submit_options, script)))}"
    )


def print_missing_settings(system: ResolvedSystem) -> None:
    """Print the settings that need a value before jobs can be submitted."""
    from harness.config.system_file import describe_sources

    if system.missing:
        print("before you submit, give these settings a value:")
    for name in system.missing:
        print(f"  {name} ({system.definition.settings[name].help}): {describe_sources(system.definition.name, name)}")


def add_commands(commands: Commands) -> None:
    """Add the commands of this group to the command line."""
    add_suite_options(add_command(commands, "list", do_list, "list suites and systems, or the cases of suites"), "*")
    plan = add_command(commands, "plan", do_plan, "print the jobs of suites on a system, and their cost")
    add_suite_options(plan, "+")
    add_job_options(plan)
    setup = add_command(
        commands, "setup", do_setup, "print or run the commands that create the Python environment of a system"
    )
    add_system_options(setup)
    setup.add_argument("--run", action="store_true", help="run the commands that have not ended before, step by step")


def do_list(arguments: Namespace) -> int:
    """Print the names of all suites and systems, or the cases of the selected suites."""
    from harness.config import resources, system
    from harness.config.suite import load_suite

    if arguments.suites:
        for plan in load_plans(arguments):
            sys.stdout.write("".join(f"{case.name}  {case.id}\n" for case in plan.cases))
        return DONE
    for name in resources.list_resources("suites"):
        print(f"suite   {name:<14} {load_suite(resources.find_resource('suites', name)).title}")
    for name in resources.list_resources("systems"):
        print(f"system  {name:<14} {system.load_system(resources.find_resource('systems', name), {}).definition.title}")
    return DONE


def do_plan(arguments: Namespace) -> int:
    """Print the jobs that a run would submit, and their cost; with -v, all of their cases too."""
    from harness.planning.jobs import sum_node_hours

    campaigns = load_campaigns(arguments)
    for campaign in campaigns:
        jobs = campaign.list_pending_jobs(arguments.retry)
        limit, expected = sum_node_hours(jobs)
        n_cases, n_pending = len(campaign.plan.cases), sum(len(job.cases) for job in jobs)
        print(
            f"{campaign.plan.campaign_name}: {pluralize(n_cases, 'case')}, {n_pending} to run,"
            f" in {pluralize(len(jobs), 'job')}; at most {limit:.4g} node-hours, expected {expected:.4g}"
        )
        print_jobs(jobs, arguments.verbose)
        print_footprint(campaign.plan)
    print_missing_settings(campaigns[0].plan.system)
    check_cost(arguments, campaigns)
    return DONE


def do_setup(arguments: Namespace) -> int:
    """Print the commands that create the Python environment of a system's jobs, or run them."""
    from harness.execution.setup_script import render_setup_run, render_setup_script

    system = load_system(arguments)
    if arguments.run:
        code = run_subprocess(["bash", "-c", render_setup_run(system)])
        return code if code in (DONE, INTERRUPTED) else CHECK_FAILED
    print(render_setup_script(system), end="")
    return DONE
