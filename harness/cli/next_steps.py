"""Output of a run that has not submitted all of its jobs: a table of jobs, and what to type next."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence

from harness.config import settings
from harness.config.system import ResolvedSystem
from harness.execution.campaign import Campaign
from harness.execution.status import Outcome
from harness.host.files import absolute_path
from harness.planning.jobs import Job

MAX_CASES_SHOWN = 3


def print_jobs(jobs: Sequence[Job], verbose: bool) -> None:
    """Print a table of jobs with the first cases of each, or with all of them."""
    width = max([3, *(len(job.name) for job in jobs)])
    if jobs:
        print(f"  {'job':<{width}}  nodes  walltime  node-hours  cases")
    for job in jobs:
        names = [case.name for case in job.cases]
        listed = names if verbose else names[:MAX_CASES_SHOWN]
        more = f", and {len(names) - len(listed)} more" if len(names) > len(listed) else ""
        nodes = f"{job.nodes}" + (f"+{job.spares}" if job.spares else "")
        cases = ", ".join(listed) + more
        print(f"  {job.name:<{width}}  {nodes:>5}  {job.walltime:>8}  {job.node_hours:>10.4g}  {cases}")


def print_next_steps(campaign: Campaign, outcomes: Sequence[Outcome], submitted: bool) -> None:
    """Print the state of the cases, and what to type next."""
    counts = Counter(outcome.state for outcome in outcomes)
    print(f"{campaign.plan.campaign_name}: " + ", ".join(f"{n} {state}" for state, n in counts.most_common()))
    if not counts["not run"] and not counts["waiting"] and not counts["running"]:
        return
    if submitted:
        print("later, the same command gathers what has ended and submits what is left")
        return
    site = campaign.plan.site
    script = f"{shlex.quote(str(absolute_path(campaign.folder) / 'jobs'))}/JOB.sh"
    setting_options = "".join(f"-S {name}=... " for name in site.missing)
    print_missing_settings(site)
    print(f"to submit the jobs, and later to gather them: the same command with {setting_options}--submit")
    print(
        f"or by hand, one by one: {' '.join(filter(None, (campaign.scheduler.command, site.submit_options, script)))}"
    )


def print_missing_settings(site: ResolvedSystem) -> None:
    """Print the settings that need a value before jobs can be submitted."""
    if site.missing:
        print("before you submit, give these settings a value:")
    for name in site.missing:
        print(f"  {name} ({site.system.settings[name].help}): {settings.describe_sources(site.system.name, name)}")
