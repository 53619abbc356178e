"""The commands that show what would run: list, plan, setup."""

from __future__ import annotations

import sys
from argparse import Namespace

from harness.cli.loading import check_cost, load_campaigns, load_plans, load_system
from harness.cli.options import Commands, add_command, add_job_options, add_suite_options, add_system_options
from harness.host.command_line import DONE
from harness.protocol.text import pluralize


def add_commands(commands: Commands) -> None:
    """Add the commands of this group to the command line."""
    add_suite_options(add_command(commands, "list", do_list, "suites and systems, or the cases of suites"), "*")
    plan = add_command(commands, "plan", do_plan, "the jobs of suites on a system, and what they cost")
    add_suite_options(plan, "+")
    add_job_options(plan)
    setup = add_command(commands, "setup", do_setup, "print the commands that make a system's Python environment")
    add_system_options(setup)


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
        print(f"system  {name:<14} {system.load_system(resources.find_resource('systems', name), {}).system.title}")
    return DONE


def do_plan(arguments: Namespace) -> int:
    """Print the jobs that a run would submit, and their cost; with -v, all of their cases too."""
    from harness.cli.next_steps import print_jobs, print_missing_settings
    from harness.planning.jobs import sum_node_hours

    campaigns = load_campaigns(arguments)
    for campaign in campaigns:
        jobs = campaign.pending_jobs(arguments.retry)
        limit, expected = sum_node_hours(jobs)
        n_cases, n_pending = len(campaign.plan.cases), sum(len(job.cases) for job in jobs)
        print(
            f"{campaign.plan.campaign_name}: {pluralize(n_cases, 'case')}, {n_pending} to run,"
            f" in {pluralize(len(jobs), 'job')}; at most {limit:.4g} node-hours, expected {expected:.4g}"
        )
        print_jobs(jobs, arguments.verbose)
    print_missing_settings(campaigns[0].plan.site)
    check_cost(arguments, campaigns)
    return DONE


def do_setup(arguments: Namespace) -> int:
    """Print the commands that create the Python environment of a system's jobs."""
    from harness.execution.job_script import render_setup_script

    print(render_setup_script(load_system(arguments)), end="")
    return DONE
