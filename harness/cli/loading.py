"""Loading of systems, plans and campaigns from the arguments of a command line."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness.protocol.errors import UsageError

if TYPE_CHECKING:
    from harness.config.system import ResolvedSystem
    from harness.execution.campaign import Campaign
    from harness.planning.expand import Plan

MAX_CASES_SHOWN = 12


def load_system(arguments: Namespace) -> ResolvedSystem:
    """Load the system that --system names, with the settings of -S."""
    from harness.config import resources, system

    return system.load_system(resources.find_resource("systems", arguments.system), parse_settings(arguments.setting))


def parse_settings(pairs: Sequence[str]) -> dict[str, str]:
    """Parse the words `key=value` to a mapping."""
    for pair in pairs:
        if "=" not in pair:
            raise UsageError(f"-S {pair}: expected key=value")
    return dict(pair.split("=", 1) for pair in pairs)


def load_plans(arguments: Namespace) -> list[Plan]:
    """Expand every suite on the system; all are checked before the first one is used."""
    from harness.config import resources
    from harness.config.suite import load_suite
    from harness.planning.expand import expand_suite, filter_cases

    if arguments.suite_folder is not None:
        resources.add_search_path("suites", arguments.suite_folder)
    system = load_system(arguments)
    plans = []
    for name in arguments.suites:
        suite = load_suite(resources.find_resource("suites", name), system.system.scale or system.system.name)
        whole = expand_suite(suite, system, arguments.repeat)
        plan = filter_cases(whole, arguments.name, arguments.tag, arguments.exclude)
        if not plan.cases:
            known = ", ".join(case.name for case in whole.cases[:MAX_CASES_SHOWN])
            raise UsageError(f"suite {name!r}: no case is left by -n, -t and -x (there are: {known})")
        plans.append(plan)
    return plans


def load_campaigns(arguments: Namespace) -> list[Campaign]:
    """Return the plans as campaigns below --out, and print the cases left out as too large for the system."""
    from harness.execution.campaign import Campaign
    from harness.planning.jobs import drop_oversized_cases

    campaigns = []
    for plan in load_plans(arguments):
        fitting, too_large = drop_oversized_cases(plan)
        if too_large:
            names = ", ".join(case.name for case in too_large)
            print(f"{plan.campaign_name}: left out, since a job has at most {plan.site.max_nodes} nodes: {names}")
        campaigns.append(Campaign(fitting, arguments.out / "runs"))
    return campaigns


def check_cost(arguments: Namespace, campaigns: Sequence[Campaign]) -> None:
    """Raise UsageError if the pending jobs may cost more than --max-node-hours."""
    from harness.planning.jobs import sum_node_hours

    if arguments.max_node_hours is None:
        return
    limit = sum(sum_node_hours(campaign.pending_jobs(arguments.retry))[0] for campaign in campaigns)
    if limit > arguments.max_node_hours:
        allowed = f"--max-node-hours is {arguments.max_node_hours:g}"
        raise UsageError(f"up to {limit:,.4g} node-hours, and {allowed}; nothing was submitted")
