"""The `harness` command: one line a command in COMMANDS.

Exit codes: 0 done, 1 a check failed, 2 bad input or usage, 3 jobs incomplete, 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from harness import __version__
from harness.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from harness.jobs.campaign import Campaign

DONE, FAILED, BAD_INPUT, INCOMPLETE, INTERRUPTED = 0, 1, 2, 3, 130
Arguments = argparse.Namespace


@dataclass(frozen=True)
class Command:
    """A command's name, what it does, its function, and whether it takes suites."""

    name: str
    help: str
    run: Callable[[Arguments], int]
    takes_suites: bool = False


def run(arguments: Arguments) -> int:
    """Run what is missing of the suites, then collect and report."""
    from harness.jobs.progress import Progress

    if arguments.dry_run:
        return plan(arguments)
    progress = Progress(quiet=arguments.quiet)
    missing = 0
    for campaign in campaigns(arguments):
        missing += sum(o.state != "done" for o in campaign.run(progress))
    return max(report(arguments), INCOMPLETE if missing else DONE)


def plan(arguments: Arguments) -> int:
    """Print the cases that the suites expand to."""
    for campaign in campaigns(arguments):
        print(f"{campaign.plan.suite.name} on {campaign.plan.site.system.name}: {len(campaign.plan.cases)} cases")
        for case in campaign.plan.cases:
            print(f"  {case.name}  {case.id}  at most {case.minutes:g} min")
    return DONE


def status(arguments: Arguments) -> int:
    """Print where every case stands; 3 if any is not done."""
    incomplete = False
    for campaign in campaigns(arguments):
        for outcome in campaign.status():
            incomplete |= outcome.state != "done"
            print(f"{outcome.state:<8}  {outcome.case.name}  {outcome.folder}")
    return INCOMPLETE if incomplete else DONE


def report(arguments: Arguments) -> int:
    """Rebuild tables, figures, scorecard and pages from the run folders."""
    from harness.report.render import report as render

    for s in render(arguments.out):
        value = "" if s.measured_value is None else f": {s.measured_value:.1f} {s.unit} (paper {s.paper_value:g})"
        print(f"{s.id}: {s.verdict}{value}")
    print(f"report: {arguments.out / 'index.html'}")
    return DONE


def check(arguments: Arguments) -> int:
    """Judge the claims again; 1 if one that was measured deviates or rests on a wrong stage."""
    from harness.report.render import report as render

    scores = render(arguments.out)
    for s in scores:
        print(f"{s.id}: {s.verdict} ({s.reason})")
    return FAILED if any(s.verdict in ("deviates", "wrong") for s in scores) else DONE


def list_known(arguments: Arguments) -> int:
    """Print the suites and systems there are."""
    from harness import shipped, suites, systems

    for name in shipped.names("suites"):
        print(f"suite   {name:<14} {suites.load(shipped.find('suites', name)).title}")
    for name in shipped.names("systems"):
        print(f"system  {name:<14} {systems.load(shipped.find('systems', name), {}).system.title}")
    return DONE


COMMANDS: tuple[Command, ...] = (
    Command("list", "the suites and systems there are", list_known),
    Command("plan", "the cases that suites expand to", plan, takes_suites=True),
    Command("run", "run what is missing of suites, then report", run, takes_suites=True),
    Command("status", "where every case of suites stands", status, takes_suites=True),
    Command("report", "tables, figures and pages from what has been run", report),
    Command("check", "judge the paper's claims; exit code 1 if one deviates", check),
)


def campaigns(arguments: Arguments) -> list[Campaign]:
    """Every suite on the system, all checked before the first is run."""
    from harness import shipped, suites, systems
    from harness.jobs.campaign import Campaign
    from harness.plan import expand, select

    site = systems.load(shipped.find("systems", arguments.system), settings(arguments.setting))
    found = []
    for name in arguments.suites:
        expanded = expand(suites.load(shipped.find("suites", name)), site)
        chosen = select(expanded, arguments.name, arguments.tag, arguments.exclude)
        if not chosen.cases:
            known = ", ".join(c.name for c in expanded.cases)
            raise UsageError(f"suite {name!r}: no case is left by -n, -t and -x (there are: {known})")
        found.append(Campaign(chosen, arguments.out / "runs"))
    return found


def settings(pairs: Sequence[str]) -> dict[str, str]:
    """`key=value` words as a mapping."""
    for pair in pairs:
        if "=" not in pair:
            raise UsageError(f"-S {pair}: expected key=value")
    return dict(pair.split("=", 1) for pair in pairs)


class Parser(argparse.ArgumentParser):
    """argparse that tells usage errors in one line, with the nearest command."""

    def error(self, message: str) -> NoReturn:
        """Leave the printing to main."""
        raise UsageError(f"{message}; see `{self.prog} --help`")


def parser() -> Parser:
    """The command line, built from COMMANDS."""
    top = Parser(prog="harness", description="Benchmarks and reproducibility of atomistic graph foundation models.")
    top.add_argument("--version", action="version", version=f"gfm-harness {__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)
    for command in COMMANDS:
        sub = commands.add_parser(command.name, help=command.help, description=command.help)
        sub.add_argument("--out", type=Path, default=Path("results"), metavar="DIR", help="where runs and report go")
        sub.add_argument("-q", "--quiet", action="store_true", help="no progress")
        if command.takes_suites:
            add_suite_options(sub)
        if command.name == "run":
            sub.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    return top


def add_suite_options(sub: argparse.ArgumentParser) -> None:
    """What the commands that expand suites have in common."""
    sub.add_argument("suites", nargs="+", metavar="SUITE", help="name or YAML file")
    sub.add_argument("--system", default="local", metavar="NAME", help="name or YAML file (local)")
    sub.add_argument(
        "-S", "--setting", action="append", default=[], metavar="KEY=VALUE", help="a setting of the system"
    )
    sub.add_argument("-n", "--name", action="append", default=[], help="only cases whose name holds this")
    sub.add_argument("-x", "--exclude", action="append", default=[], help="no cases whose name holds this")
    sub.add_argument("-t", "--tag", action="append", default=[], help="only cases with this tag")


def main(words: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    words = sys.argv[1:] if words is None else list(words)
    try:
        known = [c.name for c in COMMANDS]
        if words and not words[0].startswith("-") and words[0] not in known:
            raise UsageError(f"unknown command {words[0]!r}{did_you_mean(words[0], known)}")
        arguments = parser().parse_args(words)
        if arguments.command is None:
            parser().print_help()
            return DONE
        return next(c for c in COMMANDS if c.name == arguments.command).run(arguments)
    except UsageError as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        return BAD_INPUT
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("interrupted; the same command carries on from here", file=sys.stderr)
        return INTERRUPTED
