"""What a run that has submitted nothing, or not all, tells its user: the jobs, and what to type next."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence

from harness.config import settings
from harness.config.system import Site
from harness.execution.campaign import Campaign
from harness.execution.case_results import Outcome
from harness.host.atomic_files import absolute
from harness.planning.jobs import Job

CASES_SHOWN = 3


def print_jobs(jobs: Sequence[Job], verbose: bool) -> None:
    """A table of jobs; the first cases of each, or all."""
    width = max([3, *(len(job.name) for job in jobs)])
    if jobs:
        print(f"  {'job':<{width}}  nodes  walltime  node-hours  cases")
    for job in jobs:
        names = [case.name for case in job.cases]
        shown = names if verbose else names[:CASES_SHOWN]
        more = f", and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
        nodes = f"{job.nodes}" + (f"+{job.spares}" if job.spares else "")
        cases = ", ".join(shown) + more
        print(f"  {job.name:<{width}}  {nodes:>5}  {job.walltime:>8}  {job.node_hours:>10.4g}  {cases}")


def print_next_steps(campaign: Campaign, outcomes: Sequence[Outcome], submitted: bool) -> None:
    """Print where the cases stand, and what to type next."""
    counts = Counter(o.state for o in outcomes)
    print(f"{campaign.plan.campaign_name}: " + ", ".join(f"{n} {state}" for state, n in counts.most_common()))
    if not counts["not run"] and not counts["waiting"] and not counts["running"]:
        return
    if submitted:
        print("later, the same command gathers what has ended and submits what is left")
        return
    site, script = campaign.plan.site, f"{shlex.quote(str(absolute(campaign.folder) / 'jobs'))}/JOB.sh"
    given = "".join(f"-S {name}=... " for name in site.missing)
    print_missing_settings(site)
    print(f"to submit the jobs, and later to gather them: the same command with {given}--submit")
    print(f"or by hand, one by one: {' '.join(filter(None, (campaign.scheduler.command, site.options, script)))}")


def print_missing_settings(site: Site) -> None:
    """Print which settings must have a value before jobs can be submitted."""
    if site.missing:
        print("before you submit, give these settings a value:")
    for name in site.missing:
        print(f"  {name} ({site.system.settings[name].help}): {settings.ways_to_give(site.system.name, name)}")
