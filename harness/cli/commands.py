"""The commands of the command line: do_NAME carries out the command NAME and returns its exit code."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from harness.protocol.errors import UsageError
from harness.protocol.text import count, sanitize_line

if TYPE_CHECKING:
    from harness.config.system import Site
    from harness.execution.campaign import Campaign
    from harness.execution.case_results import Outcome
    from harness.planning.expand import Plan
    from harness.tracking.selectors import Observation

DONE, FAILED, INCOMPLETE = 0, 1, 3


def do_list(arguments: Namespace) -> int:
    """Print the suites and systems there are, or the cases of the suites named."""
    from harness.config import resources
    from harness.config import suite as suites
    from harness.config import system as systems

    if arguments.suites:
        for plan in plans(arguments):
            sys.stdout.write("".join(f"{case.name}  {case.id}\n" for case in plan.cases))
        return DONE
    for name in resources.names("suites"):
        print(f"suite   {name:<14} {suites.load(resources.find('suites', name)).title}")
    for name in resources.names("systems"):
        print(f"system  {name:<14} {systems.load(resources.find('systems', name), {}).system.title}")
    return DONE


def do_plan(arguments: Namespace) -> int:
    """Print the jobs that a run would submit, and what they cost; with -v, their cases too."""
    from harness.cli.next_steps import print_jobs, print_missing_settings
    from harness.planning.jobs import node_hours

    found = campaigns(arguments)
    for campaign in found:
        jobs = campaign.jobs_left(arguments.retry)
        most, expected = node_hours(jobs)
        cases, left = len(campaign.plan.cases), sum(len(job.cases) for job in jobs)
        print(
            f"{campaign.plan.campaign_name}: {count(cases, 'case')}, {left} to run, in {count(len(jobs), 'job')};"
            f" at most {most:.4g} node-hours, expected {expected:.4g}"
        )
        print_jobs(jobs, arguments.verbose)
    print_missing_settings(found[0].plan.site)
    check_cost(arguments, found)
    return DONE


def do_run(arguments: Namespace) -> int:
    """Run what is missing, or write its jobs; then report on what has ended."""
    from harness.cli.next_steps import print_next_steps
    from harness.execution.progress import Progress
    from harness.execution.submission import Orders

    if arguments.dry_run:
        return do_plan(arguments)
    progress = Progress(quiet=arguments.quiet)
    outcomes: list[Outcome] = []
    refused: list[str] = []
    is_stalled = False
    found_campaigns = campaigns(arguments)
    check_cost(arguments, found_campaigns)
    for campaign in found_campaigns:
        here = not campaign.scheduler.waits
        submit = here or arguments.submit or arguments.wait
        if submit:
            campaign.plan.site.require_settings()
        orders = Orders(
            submit=submit,
            wait=here or arguments.wait,
            retry=arguments.retry,
            max_jobs=arguments.max_jobs,
            max_node_hours=arguments.max_node_hours,
        )
        found = campaign.run(orders, progress)
        outcomes += found
        if campaign.submission is not None:
            refused += dict.fromkeys(campaign.submission.refused.values())
        is_stalled = is_stalled or (submit and is_incomplete(campaign, found, orders.wait))
        if not here:
            print_next_steps(campaign, found, submit)
    code = concluded(arguments, outcomes)
    if refused:
        raise UsageError("\n".join(refused))
    return code or (INCOMPLETE if is_stalled else DONE)


def do_collect(arguments: Namespace) -> int:
    """Gather what has ended and report on it."""
    from harness.execution.progress import Progress

    if arguments.format is not None:
        return taken_in(arguments)
    progress = Progress(quiet=arguments.quiet)
    outcomes: list[Outcome] = []
    for campaign in campaigns(arguments):
        if campaign.folder.is_dir():
            outcomes += campaign.collect(progress)
    return concluded(arguments, outcomes) or (INCOMPLETE if any(o.state != "done" for o in outcomes) else DONE)


def taken_in(arguments: Namespace) -> int:
    """Logs of the original code, or telemetry from elsewhere, as run folders; then report."""
    from harness.importers import hydragnn, omnistat

    reader = {"hydragnn": hydragnn, "omnistat": omnistat}[arguments.format]
    for place in arguments.suites:
        for folder in reader.take_in(Path(place), arguments.out):
            print(f"taken in: {folder}")
    return do_report(arguments)


def do_status(arguments: Namespace) -> int:
    """Print where every case stands; 3 if any is not done."""
    os.environ.setdefault("GFM_HARNESS_PATIENCE_S", "5")  # a look does not wait for a scheduler that is away
    outcomes = [o for campaign in campaigns(arguments) for o in campaign.status()]
    width = max(len(o.case.name) for o in outcomes)
    for o in outcomes:
        print(f"{o.state:<8}  {o.case.name:<{width}}  {o.reason or o.folder}")
    counts = Counter(o.state for o in outcomes)
    print(", ".join(f"{number} {state}" for state, number in counts.most_common()))
    return DONE if set(counts) == {"done"} else INCOMPLETE


def do_cancel(arguments: Namespace) -> int:
    """Take the campaigns' jobs out of the queue."""
    for campaign in campaigns(arguments):
        cancelled = campaign.cancel() if campaign.folder.is_dir() else 0
        print(f"{campaign.plan.campaign_name}: {count(cancelled, 'job')} cancelled")
    return DONE


def do_setup(arguments: Namespace) -> int:
    """Print the commands that make the environment of a system's jobs."""
    from harness.execution.environment import commands

    print(commands(site(arguments)), end="")
    return DONE


def do_report(arguments: Namespace) -> int:
    """Rebuild tables, figures, scorecard and pages from the run folders."""
    from harness.document.blocks import quantity
    from harness.report.render import report
    from harness.results.bundles import unpack_bundle

    for bundle in getattr(arguments, "bundles", ()):
        unpack_bundle(bundle, arguments.out)
    found = report(arguments.out)
    for s in found.scores:
        ours = "" if s.measured_value is None else f": {quantity(s.measured_value, s.unit)}"
        value = f"{ours} (paper: {quantity(s.paper_value, s.unit)})" if ours else ""
        print_line(f"{s.id}: {s.verdict}{value}")
    unreadable = [r for r in found.records if r.state == "unreadable"]
    for record in unreadable:
        print_line(f"unreadable: {record.folder}: {record.error}")
    print(f"report: {arguments.out / 'index.html'}")
    return DONE


def do_promote(arguments: Namespace) -> int:
    """Write the best points of a search as a suite of pretraining."""
    from harness.experiments.hpo.promote import promote

    path = promote(arguments.out, arguments.campaign)
    print(f"written: {path}; for example `harness run {path} --system frontier`")
    return DONE


def do_check(arguments: Namespace) -> int:
    """Judge claims and figures of merit again; 1 if one is off, or was to be measured and is not."""
    from harness.document import paper
    from harness.document.blocks import number
    from harness.report.render import report
    from harness.report.scorecard import is_off
    from harness.report.unmeasured import find_unmeasured

    found = report(arguments.out)
    for s in found.scores:
        before = "; it was reproduced before" if s.reproduced_before and s.verdict != "reproduced" else ""
        print_line(f"{s.id}: {s.verdict} ({s.reason}){before}")
    for merit in found.merits.itertuples():
        measured = f"{number(merit.measured, '.4g')} {merit.unit}, {merit.reference:g}"
        print_line(f"{merit.case} {merit.name}: {merit.verdict} ({measured})")
    unmeasured = list(find_unmeasured(found.records, found.scores, paper.load()))
    for line in unmeasured:
        print_line(line)
    waiting = sum(r.state == "not run" for r in found.records)
    if waiting:
        print(f"{count(waiting, 'case')} not run yet: not judged")
    off = any(is_off(s) for s in found.scores) or (found.merits["verdict"] == "worse").any()
    return FAILED if off or unmeasured else DONE


def do_compare(arguments: Namespace) -> int:
    """Print how far B lies from A, metric by metric."""
    from harness.host.atomic_files import write_text
    from harness.host.garbage import without_garbage
    from harness.tracking import compare_output, selectors
    from harness.tracking.compare import compare

    both = (selectors.side(arguments.a), selectors.side(arguments.b))
    shelf = selectors.Shelf(arguments.out)
    with without_garbage():
        a, b = ([o for o in shelf.observations(s) if named(o, arguments.metric)] for s in both)
        found = compare(a, b, both)
    if arguments.csv is not None:
        write_text(arguments.csv, compare_output.table(found))
    print("\n".join(compare_output.lines(found, both, arguments.verbose)))
    for record in shelf.unreadable:
        print_line(f"not compared: {record.folder} is unreadable: {record.error}")
    return DONE


def print_line(text: str) -> None:
    """Print text from files on one line, without what a terminal would obey."""
    print(sanitize_line(text))


def named(observation: Observation, words: Sequence[str]) -> bool:
    """Whether the metric's name holds one of the words, where there are any."""
    return not words or any(word in observation.measured.metric.name for word in words)


def do_regression(arguments: Namespace) -> int:
    """Measure a range of commits; 1 if a benchmark became worse or broke, 3 if one never ran."""
    from harness.report.render import report
    from harness.tracking import asv_runner, git_commits
    from harness.tracking.asv_config import patterns, project
    from harness.tracking.session import FOLDER, Orders, follow

    repo = git_commits.toplevel(arguments.repo)
    chosen = git_commits.evenly(git_commits.of_range(repo, arguments.range), arguments.steps)
    root = (arguments.out / FOLDER).resolve()
    session = asv_runner.Session(
        project(repo, arguments.config), chosen, asv_runner.this_machine(), arguments.here, root
    )
    orders = Orders(arguments.rounds, patterns(arguments.bench), arguments.quiet)
    complaints = follow(session, orders, arguments.out)
    past = report(arguments.out).past
    found = [v for v in past.verdicts if v.series.session == session.id and orders.asks_for(v.series.name)]
    for verdict in found:
        print_line(f"{verdict.series.name}: {verdict}")
    if complaints:
        print(f"some benchmarks failed on some commits: {session.folder / asv_runner.LOG}", file=sys.stderr)
    print(f"report: {arguments.out / 'regression.html'}")
    if any(v.is_bad for v in found):
        return FAILED
    return INCOMPLETE if not found or any(v.state == "never ran" for v in found) else DONE


def plans(arguments: Namespace) -> list[Plan]:
    """Every suite on the system, all checked before anything is done with the first."""
    from harness.config import resources
    from harness.config import suite as suites
    from harness.planning.expand import expand, select

    if arguments.folder is not None:
        resources.add("suites", arguments.folder)
    where = site(arguments)
    found = []
    for name in arguments.suites:
        suite = suites.load(resources.find("suites", name), where.system.scale or where.system.name)
        expanded = expand(suite, where, arguments.repeat)
        chosen = select(expanded, arguments.name, arguments.tag, arguments.exclude)
        if not chosen.cases:
            known = ", ".join(c.name for c in expanded.cases[:12])
            raise UsageError(f"suite {name!r}: no case is left by -n, -t and -x (there are: {known})")
        found.append(chosen)
    return found


def campaigns(arguments: Namespace) -> list[Campaign]:
    """The plans as campaigns under --out, without the cases that are too large for the system, which are named."""
    from harness.execution.campaign import Campaign
    from harness.planning.jobs import split_too_large

    found = []
    for plan in plans(arguments):
        fitting, too_large = split_too_large(plan)
        if too_large:
            names = ", ".join(case.name for case in too_large)
            print(f"{plan.campaign_name}: left out, since a job has at most {plan.site.nodes_allowed} nodes: {names}")
        found.append(Campaign(fitting, arguments.out / "runs"))
    return found


def site(arguments: Namespace) -> Site:
    """The system with its settings."""
    from harness.config import resources
    from harness.config import system as systems

    return systems.load(resources.find("systems", arguments.system), settings(arguments.setting))


def settings(pairs: Sequence[str]) -> dict[str, str]:
    """`key=value` words as a mapping."""
    for pair in pairs:
        if "=" not in pair:
            raise UsageError(f"-S {pair}: expected key=value")
    return dict(pair.split("=", 1) for pair in pairs)


def concluded(arguments: Namespace, outcomes: Iterable[Outcome]) -> int:
    """Report if there is anything to report on; 3 if a case ended badly or will not end by itself."""
    states = Counter(o.state for o in outcomes)
    if any(states[s] for s in ("done", "failed", "lost")):
        do_report(arguments)
    failed = states["failed"] + states["lost"] + states["cancelled"]
    if failed:
        said = f"{failed} case{'s' * (failed > 1)} did not end well; with --retry the same command runs them again"
        print(said, file=sys.stderr)
    return INCOMPLETE if failed + states["blocked"] else DONE


def is_incomplete(campaign: Campaign, outcomes: Sequence[Outcome], has_waited: bool) -> bool:
    """Whether cases are left that no job is under way for, or that waiting has not ended."""
    states = Counter(o.state for o in outcomes)
    under_way = states["waiting"] + states["running"]
    if has_waited:
        return under_way + states["not run"] > 0
    submission = campaign.submission
    nothing_taken = submission is not None and bool(submission.held_back) and submission.submitted == 0
    return nothing_taken or (states["not run"] > 0 and under_way == 0)


def check_cost(arguments: Namespace, found: Sequence[Campaign]) -> None:
    """Raise UsageError if all that is left may cost more than --max-node-hours."""
    from harness.planning.jobs import node_hours

    allowed = arguments.max_node_hours
    if allowed is None:
        return
    most = sum(node_hours(campaign.jobs_left(arguments.retry))[0] for campaign in found)
    if most > allowed:
        raise UsageError(f"up to {most:,.4g} node-hours, and --max-node-hours is {allowed:g}; nothing was submitted")
