"""The `harness` command line; each module in GROUPS adds a group of commands."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from harness import __version__
from harness.cli import artifacts, campaigns, comparisons, drills, plans, reports, systems
from harness.cli.options import add_command
from harness.host.command_line import DONE, ArgumentParser, CommandParser, run_command, run_subprocess
from harness.host.process import set_missing_user_variables
from harness.protocol.errors import UsageError, did_you_mean

GROUPS = (plans, systems, campaigns, reports, artifacts, comparisons, drills)


def build_parser() -> tuple[ArgumentParser, list[str]]:
    """Return the parser of the command line and the names of its commands."""
    description = "Benchmarks and reproducibility of atomistic graph foundation models."
    parser = ArgumentParser(prog="harness", description=description)
    parser.add_argument("--version", action="version", version=f"gfm-harness {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=CommandParser)
    for group in GROUPS:
        group.add_commands(commands)
    help_text = "the sixteen datasets: list, fetch, convert, check, stats (harness data --help)"
    add_command(
        commands, "data", lambda _: DONE, help_text
    )  # only listed here; dispatch runs it without parsing its arguments
    return parser, list(commands.choices)


def dispatch(argv: Sequence[str]) -> int:
    """Run the command that the arguments name and return its exit code; raise UsageError for an unknown command."""
    if argv[:1] == ["data"]:  # a separate program, which has the dependencies of jobs
        return run_subprocess([sys.executable, "-P", "-m", "harness.reference.datasets", *argv[1:]])
    parser, names = build_parser()
    if argv and not argv[0].startswith("-") and argv[0] not in names:
        raise UsageError(f"unknown command {argv[0]!r}{did_you_mean(argv[0], names)}")
    arguments = parser.parse_args(argv)
    if arguments.command is None:
        parser.print_help()
        return DONE
    return int(arguments.function(arguments))


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command, print its errors on stderr, and return its exit code."""
    set_missing_user_variables()  # libraries need them
    return run_command(lambda: dispatch(sys.argv[1:] if argv is None else list(argv)))
