"""The commands that execute campaigns: run, status, collect, cancel."""

from __future__ import annotations

import argparse
import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from harness.cli import plans, reports
from harness.cli.options import (
    Commands,
    add_command,
    add_job_options,
    add_suite_options,
    check_cost,
    load_campaigns,
    positive_int,
)
from harness.host.command_line import DONE, INCOMPLETE
from harness.protocol.errors import UsageError
from harness.protocol.text import pluralize

if TYPE_CHECKING:
    from harness.execution.campaign import Campaign
    from harness.execution.status import Outcome

STATUS_RETRY_TIMEOUT_S = 5.0


def add_commands(commands: Commands) -> None:
    """Add the commands of this group to the command line."""
    run = add_command(
        commands, "run", do_run, "run the missing cases of suites, or write their job scripts, and report the results"
    )
    add_suite_options(run, "+")
    add_job_options(run)
    run.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    run.add_argument(
        "--submit", action="store_true", help="submit the jobs to the scheduler (jobs on this machine always run)"
    )
    run.add_argument(
        "--wait",
        action="store_true",
        help="submit the jobs and wait until all have ended (on this machine, the command always waits)",
    )
    run.add_argument("--max-jobs", type=positive_int, metavar="N", help="maximum number of jobs in the queue")
    add_suite_options(add_command(commands, "status", do_status, "print the state of every case of suites"), "+")
    collect = add_command(
        commands,
        "collect",
        do_collect,
        "collect the cases that have ended and report them, without submitting anything",
    )
    add_suite_options(collect, "+")
    collect.add_argument(
        "--format", choices=reports.IMPORT_FORMATS, help=argparse.SUPPRESS
    )  # deprecated: `harness import`
    add_suite_options(add_command(commands, "cancel", do_cancel, "cancel the waiting and running jobs of suites"), "+")


def do_run(arguments: Namespace) -> int:
    """Run the missing cases, or write their job scripts; then report the cases that have ended."""
    from harness.execution.status import Progress
    from harness.execution.submission import RunOptions

    if arguments.dry_run:
        return plans.do_plan(arguments)
    progress = Progress(quiet=arguments.quiet)
    outcomes: list[Outcome] = []
    rejections: list[str] = []
    is_stalled = False
    campaigns = load_campaigns(arguments)
    check_cost(arguments, campaigns)
    for campaign in campaigns:
        if submits_jobs(campaign, arguments):
            campaign.plan.system.require_settings()
    report_preflight(arguments, campaigns)
    early_reports = reports.EarlyReports(arguments.out)
    unfinished = [campaign.load_pace(progress) for campaign in campaigns]
    for number, campaign in enumerate(campaigns, start=1):
        progress.later = [case for cases in unfinished[number:] for case in cases]
        is_local = not campaign.scheduler.is_detached
        submit = submits_jobs(campaign, arguments)
        options = RunOptions(
            submit=submit,
            wait=is_local or arguments.wait,
            retry=arguments.retry,
            max_jobs=arguments.max_jobs,
            max_node_hours=arguments.max_node_hours,
        )
        campaign_outcomes = campaign.run(options, progress, early_reports.update)
        outcomes += campaign_outcomes
        if campaign.submission is not None:
            rejections += dict.fromkeys(campaign.submission.rejected.values())
        is_stalled = is_stalled or (submit and has_stalled(campaign, campaign_outcomes, options.wait))
        if not is_local:
            plans.print_next_steps(campaign, campaign_outcomes, submit)
        if options.wait and number < len(campaigns) and any(o.state == "done" for o in outcomes):
            early_reports.update()
    code = report_outcomes(arguments, outcomes)
    if rejections:
        raise UsageError("\n".join(rejections))
    return code or (INCOMPLETE if is_stalled else DONE)


def submits_jobs(campaign: Campaign, arguments: Namespace) -> bool:
    """Return whether the jobs of a campaign are submitted, and not only written."""
    return bool(not campaign.scheduler.is_detached or arguments.submit or arguments.wait)


def report_preflight(arguments: Namespace, campaigns: Sequence[Campaign]) -> None:
    """Print when the preflight of the system last passed, unless it is this machine or a preflight is to run."""
    from harness.results.preflights import PROGRAM, describe_preflights, find_preflights

    others = [campaign for campaign in campaigns if campaign.plan.suite.program != PROGRAM]
    if others and others[0].scheduler.is_detached:
        system = others[0].plan.system.definition.name
        line = describe_preflights(find_preflights(arguments.out / "runs", system), system)
        print(line, file=sys.stderr)


def do_status(arguments: Namespace) -> int:
    """Print the state of every case; the exit code is 3 if any is not done."""
    from harness.execution.schedulers.command import override_default_retry_timeout

    with override_default_retry_timeout(STATUS_RETRY_TIMEOUT_S):
        outcomes = [outcome for campaign in load_campaigns(arguments) for outcome in campaign.list_outcomes()]
    width = max(len(outcome.case.name) for outcome in outcomes)
    for outcome in outcomes:
        print(f"{outcome.state:<8}  {outcome.case.name:<{width}}  {outcome.reason or outcome.folder}")
    counts = Counter(outcome.state for outcome in outcomes)
    print(", ".join(f"{number} {state}" for state, number in counts.most_common()))
    return DONE if set(counts) == {"done"} else INCOMPLETE


def do_collect(arguments: Namespace) -> int:
    """Collect and report the cases that have ended; the exit code is 3 if a case is not done."""
    from harness.execution.status import Progress

    if arguments.format is not None:
        return reports.import_paths(arguments.format, arguments.suites, arguments.out)
    progress = Progress(quiet=arguments.quiet)
    outcomes: list[Outcome] = []
    for campaign in load_campaigns(arguments):
        if campaign.folder.is_dir():
            outcomes += campaign.collect(progress)
    is_done = all(outcome.state == "done" for outcome in outcomes)
    return report_outcomes(arguments, outcomes) or (DONE if is_done else INCOMPLETE)


def do_cancel(arguments: Namespace) -> int:
    """Cancel the jobs of the campaigns."""
    for campaign in load_campaigns(arguments):
        n_jobs = campaign.cancel() if campaign.folder.is_dir() else 0
        print(f"{campaign.plan.campaign_name}: {pluralize(n_jobs, 'job')} cancelled")
    return DONE


def report_outcomes(arguments: Namespace, outcomes: Iterable[Outcome]) -> int:
    """Write a report if any case has ended; return its exit code, or 3 if a case did not succeed or cannot run."""
    states = Counter(outcome.state for outcome in outcomes)
    n_ended = states["done"] + states["failed"] + states["lost"]
    code = reports.report_results(arguments.out) if n_ended else DONE
    n_failed = states["failed"] + states["lost"] + states["cancelled"]
    if n_failed:
        print(
            f"{pluralize(n_failed, 'case')} did not succeed; add --retry to run them again",
            file=sys.stderr,
        )
    return INCOMPLETE if n_failed + states["blocked"] else code


def has_stalled(campaign: Campaign, outcomes: Sequence[Outcome], has_waited: bool) -> bool:
    """Return whether the campaign needs the user to make progress.

    It does if cases have no active job and no job can be submitted, or if cases have not ended although the command
    waited for them.
    """
    states = Counter(outcome.state for outcome in outcomes)
    n_active = states["waiting"] + states["running"]
    if has_waited:
        return n_active + states["not run"] > 0
    submission = campaign.submission
    is_refused = submission is not None and bool(submission.held_back) and submission.n_submitted == 0
    return is_refused or (states["not run"] > 0 and n_active == 0)
