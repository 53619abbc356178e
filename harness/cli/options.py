"""Options that several commands share, and the loading of the systems, plans and campaigns that the options name."""

from __future__ import annotations

import argparse
import errno
import os
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from harness.host.command_line import CommandParser
from harness.protocol.errors import UsageError
from harness.protocol.text import sanitize

if TYPE_CHECKING:
    from harness.config.system import ResolvedSystem
    from harness.execution.campaign import Campaign
    from harness.planning.expand import Plan

Commands: TypeAlias = "argparse._SubParsersAction[CommandParser]"


def add_command(
    commands: Commands, name: str, function: Callable[[argparse.Namespace], int], help_text: str
) -> CommandParser:
    """Add a command that calls `function` with its arguments, and the options that every command has."""
    parser = commands.add_parser(name, help=help_text, description=help_text)
    parser.set_defaults(function=function)
    parser.add_argument(
        "--out",
        type=usable_path,
        default=Path("results"),
        metavar="DIR",
        help="folder of results, with runs and report",
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="print no progress")
    parser.add_argument("-v", "--verbose", action="store_true", help="print more")
    return parser


def add_suite_options(parser: CommandParser, count: str) -> None:
    """Add the options of commands that expand suites.

    Args:
        parser: The parser of the command.
        count: The number of suites in the notation of argparse: "*" or "+".
    """
    parser.add_argument("suites", nargs=count, metavar="SUITE", help="name or YAML file of a suite")
    parser.add_argument(
        "--suites", dest="suite_folder", type=usable_path, metavar="DIR", help="a folder of suites of your own"
    )
    parser.add_argument("-n", "--name", action="append", default=[], help="only cases whose name contains this text")
    parser.add_argument("-x", "--exclude", action="append", default=[], help="no cases whose name contains this text")
    parser.add_argument("-t", "--tag", action="append", default=[], help="only cases with this tag")
    parser.add_argument("--repeat", type=positive_int, metavar="N", help="run every case N times")
    add_system_options(parser)


def add_system_options(parser: CommandParser) -> None:
    """Add the options that choose a system and its settings."""
    parser.add_argument(
        "--system", default="local", metavar="NAME", help="name or YAML file of a system (default: local)"
    )
    parser.add_argument(
        "-S", "--setting", action="append", default=[], metavar="KEY=VALUE", help="a setting of the system"
    )


def add_job_options(parser: CommandParser) -> None:
    """Add the options that choose which of the missing jobs are planned and submitted."""
    help_text = "maximum number of node-hours that the submitted jobs may use together"
    parser.add_argument("--max-node-hours", type=positive_float, metavar="H", help=help_text)
    parser.add_argument("--retry", action="store_true", help="run failed cases again")


def positive_int(text: str) -> int:
    """Parse a whole number of at least 1, as a type of argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


def positive_float(text: str) -> float:
    """Parse a finite number above 0, as a type of argparse."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
    return value


def usable_path(text: str) -> Path:
    """Return the path of a file or folder, which need not exist; refuse a name that no file can have."""
    try:
        text.encode()
        os.stat(text)
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError(f"expected a name in UTF-8, got {sanitize(text)!r}") from None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise argparse.ArgumentTypeError(f"{text!r} is a symbolic link that leads to itself") from None
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from None
    return Path(text)


MAX_CASES_SHOWN = 12


def load_system(arguments: Namespace) -> ResolvedSystem:
    """Load the system that --system names, with the settings of -S."""
    from harness.config import resources, system

    return system.load_system(resources.find_resource("systems", arguments.system), parse_settings(arguments.setting))


def parse_settings(pairs: Sequence[str]) -> dict[str, str]:
    """Convert texts `key=value` to a mapping; raise UsageError for a text without `=`."""
    for pair in pairs:
        if "=" not in pair:
            raise UsageError(f"-S {pair}: expected key=value")
    return dict(pair.split("=", 1) for pair in pairs)


def load_plans(arguments: Namespace) -> list[Plan]:
    """Expand every suite on the system; raise UsageError if any suite is invalid or has no case left."""
    from harness.config import resources
    from harness.config.suite import load_suite
    from harness.planning.expand import expand_suite, filter_cases

    if arguments.suite_folder is not None:
        resources.add_search_path("suites", arguments.suite_folder)
    system = load_system(arguments)
    plans = []
    for name in arguments.suites:
        suite = load_suite(resources.find_resource("suites", name), system.definition.overlay or system.definition.name)
        whole = expand_suite(suite, system, arguments.repeat)
        plan = filter_cases(whole, arguments.name, arguments.tag, arguments.exclude)
        if not plan.cases:
            known = ", ".join(case.name for case in whole.cases[:MAX_CASES_SHOWN])
            raise UsageError(f"suite {name!r}: no case is left by -n, -t and -x (there are: {known})")
        plans.append(plan)
    return plans


def load_campaigns(arguments: Namespace) -> list[Campaign]:
    """Return the plans as campaigns below --out, and print the cases that are too large for the system."""
    from harness.execution.campaign import Campaign
    from harness.planning.jobs import drop_oversized_cases

    campaigns = []
    for plan in load_plans(arguments):
        fitting, too_large = drop_oversized_cases(plan)
        if too_large:
            names = ", ".join(case.name for case in too_large)
            print(f"{plan.campaign_name}: left out, since a job has at most {plan.system.max_nodes} nodes: {names}")
        campaigns.append(Campaign(fitting, arguments.out / "runs"))
    return campaigns


def check_cost(arguments: Namespace, campaigns: Sequence[Campaign]) -> None:
    """Raise UsageError if the pending jobs may cost more than --max-node-hours."""
    from harness.planning.jobs import sum_node_hours

    if arguments.max_node_hours is None:
        return
    limit = sum(sum_node_hours(campaign.list_pending_jobs(arguments.retry))[0] for campaign in campaigns)
    if limit > arguments.max_node_hours:
        allowed = f"--max-node-hours is {arguments.max_node_hours:g}"
        raise UsageError(f"up to {limit:,.4g} node-hours, and {allowed}; nothing was submitted")
