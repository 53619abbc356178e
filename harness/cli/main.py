"""The `harness` command: one line a command in COMMANDS.

Exit codes: 0 done, 1 a check failed, 2 bad input or usage, 3 jobs incomplete, 130 interrupted.
"""

from __future__ import annotations

import argparse
import copy
import errno
import importlib
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from harness import __version__
from harness.host.homes import ensure_user
from harness.protocol.errors import Interrupted, UsageError, did_you_mean
from harness.protocol.text import sanitize

DONE, BAD_INPUT, INCOMPLETE, INTERRUPTED = 0, 2, 3, 130
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS)


@dataclass(frozen=True)
class Command:
    """A command's name (that of its function in harness.cli.commands too), what it does, and the options it takes.

    suites: how many it takes, as argparse counts; system, campaign, commits: whether it takes one
    (commits: a range of them); sides: whether it takes two.
    """

    name: str
    help: str
    suites: str | None = None
    system: bool = False
    runs: bool = False
    campaign: bool = False
    commits: bool = False
    sides: bool = False


COMMANDS: tuple[Command, ...] = (
    Command("list", "suites and systems, or the cases of suites", suites="*", system=True),
    Command("plan", "the jobs of suites on a system, and what they cost", suites="+", system=True),
    Command("run", "run what is missing of suites, or write its jobs; report", suites="+", system=True, runs=True),
    Command("status", "where every case of suites stands", suites="+", system=True),
    Command("collect", "gather what has ended, submit nothing; then report", suites="+", system=True),
    Command("cancel", "take the jobs of suites out of the queue", suites="+", system=True),
    Command("setup", "print the commands that make a system's Python environment", system=True),
    Command("report", "tables, figures and pages from what has been run"),
    Command("promote", "write a suite that pretrains with the best points of a search", campaign=True),
    Command("data", "the sixteen datasets: list, fetch, convert, check, stats (harness data --help)"),
    Command("compare", "two runs, stages, precisions, systems or commits: differences with intervals", sides=True),
    Command("regression", "benchmarks over the commits A..B; exit code 1 if one became worse", commits=True),
    Command("check", "judge claims and figures of merit; exit code 1 if one is off"),
)  # fmt: skip


class Parser(argparse.ArgumentParser):
    """argparse that tells usage errors in one line."""

    def error(self, message: str) -> NoReturn:
        """Leave the printing to main."""
        raise UsageError(f"{message}; see `{self.prog} --help`")


class CommandParser(Parser):
    """A parser of one command, whose options may stand before, between and after its arguments."""

    _is_mixed = False

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parse as argparse does and, if arguments are left over, once more with options and arguments apart."""
        words = list(sys.argv[1:] if args is None else args)
        found, rest = super().parse_known_args(words, copy.copy(namespace))
        if not rest or self._is_mixed:
            return found, rest
        stop = words.index("--") if "--" in words else len(words)
        after = [f"./{word}" if word.startswith("-") else word for word in words[stop + 1 :]]
        self._is_mixed = True
        try:
            return self.parse_known_intermixed_args([*words[:stop], *after], namespace)
        finally:
            self._is_mixed = False


def parser() -> Parser:
    """The command line, built from COMMANDS."""
    top = Parser(prog="harness", description="Benchmarks and reproducibility of atomistic graph foundation models.")
    top.add_argument("--version", action="version", version=f"gfm-harness {__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", parser_class=CommandParser)
    for command in COMMANDS:
        sub = commands.add_parser(command.name, help=command.help, description=command.help)
        sub.add_argument("--out", type=place, default=Path("results"), metavar="DIR", help="where runs and report go")
        sub.add_argument("-q", "--quiet", action="store_true", help="no progress")
        sub.add_argument("-v", "--verbose", action="store_true", help="say more")
        if command.campaign:
            sub.add_argument("campaign", help="folder of a search below DIR/runs, for example hpo-frontier")
        if command.suites is not None:
            add_suite_options(sub, command.suites)
        if command.system:
            sub.add_argument("--system", default="local", metavar="NAME", help="name or YAML file (local)")
            sub.add_argument(
                "-S", "--setting", action="append", default=[], metavar="KEY=VALUE", help="a setting of the system"
            )
        if command.name in ("plan", "run"):
            sub.add_argument("--max-node-hours", type=positive, metavar="H", help="submit nothing that may cost more")
            sub.add_argument("--retry", action="store_true", help="run failed cases again")
        if command.sides:
            said = "PATH, KEY=VALUE or PATH@KEY=VALUE,...: results, campaign or case; stage=baseline, system=local, ..."
            sub.add_argument("a", metavar="A", help=said)
            sub.add_argument("b", metavar="B", help="the same, set against A")
            sub.add_argument("--metric", action="append", default=[], help="only metrics whose name holds this")
            sub.add_argument("--csv", type=place, metavar="FILE", help="all rows, as a table")
        if command.commits:
            add_regression_options(sub)
        if command.runs:
            add_run_options(sub)
        if command.name == "report":
            said = "published results, as harness.results.bundles packs them, that are unpacked into DIR first"
            sub.add_argument("bundles", nargs="*", type=place, metavar="FILE.tar.xz", help=said)
        if command.name == "collect":
            said = "SUITE is a folder of logs of the original code, or an export of Omnistat, and is taken in"
            sub.add_argument("--format", choices=["hydragnn", "omnistat"], help=said)
    return top


def add_suite_options(sub: argparse.ArgumentParser, count: str) -> None:
    """What the commands that expand suites have in common."""
    sub.add_argument("suites", nargs=count, metavar="SUITE", help="name or YAML file")
    sub.add_argument("--suites", dest="folder", type=place, metavar="DIR", help="a folder of suites of your own")
    sub.add_argument("-n", "--name", action="append", default=[], help="only cases whose name holds this")
    sub.add_argument("-x", "--exclude", action="append", default=[], help="no cases whose name holds this")
    sub.add_argument("-t", "--tag", action="append", default=[], help="only cases with this tag")
    sub.add_argument("--repeat", type=count_of, metavar="N", help="run every case N times")


def add_run_options(sub: argparse.ArgumentParser) -> None:
    """What `run` alone takes."""
    sub.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    sub.add_argument("--submit", action="store_true", help="hand the jobs to the scheduler (this machine: always)")
    sub.add_argument("--wait", action="store_true", help="submit and stay until all have ended (this machine: always)")
    sub.add_argument("--max-jobs", type=count_of, metavar="N", help="jobs in the queue at once")


def add_regression_options(sub: argparse.ArgumentParser) -> None:
    """What `regression` alone takes."""
    sub.add_argument("range", metavar="A..B", help="from A to B, both measured; A alone: to HEAD")
    sub.add_argument("--repo", type=place, default=Path(), metavar="DIR", help="the clone (the current folder's)")
    sub.add_argument("--config", type=place, metavar="FILE", help="asv.conf.json, where the clone has it elsewhere")
    sub.add_argument("--bench", action="append", default=[], metavar="REGEX", help="only benchmarks whose name matches")
    sub.add_argument("--rounds", type=count_of, default=12, metavar="N", help="how often each commit is measured (12)")
    sub.add_argument("--steps", type=count_of, metavar="N", help="at most N commits, evenly spread over the range")
    said = "install nothing: each commit's sources under this Python; right only if no commit changes what is installed"
    sub.add_argument("--here", action="store_true", help=said)


def count_of(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


def place(text: str) -> Path:
    """A file or folder whose name is text and leads somewhere."""
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


def positive(text: str) -> float:
    """A number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
    return value


def carried_out(words: Sequence[str]) -> int:
    """Run one command and return its exit code; raises UsageError."""
    if words[:1] == ["data"]:  # a program of its own, with what jobs need
        return handed_over([sys.executable, "-P", "-m", "harness.reference.datasets", *words[1:]])
    known = [c.name for c in COMMANDS]
    if words and not words[0].startswith("-") and words[0] not in known:
        raise UsageError(f"unknown command {words[0]!r}{did_you_mean(words[0], known)}")
    arguments = parser().parse_args(words)
    if arguments.command is None:
        parser().print_help()
        return DONE
    return int(getattr(importlib.import_module("harness.cli.commands"), f"do_{arguments.command}")(arguments))


def handed_over(command: Sequence[str]) -> int:
    """Run a program to its end, however long it takes after an interrupt, and return its exit code."""
    with subprocess.Popen(command) as process:
        while True:
            try:
                code = process.wait()
            except KeyboardInterrupt:  # the program has it too, and tells of it
                continue
            if code < 0:
                raise UsageError(f"ended by signal {-code}; a file that was damaged, or no memory left")
            return code


def main(words: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code, whatever goes wrong."""
    ensure_user()
    try:
        return carried_out(sys.argv[1:] if words is None else list(words))
    except UsageError as error:
        tell(str(error))
        return INCOMPLETE if isinstance(error, Interrupted) else BAD_INPUT
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except OSError as error:
        full = error.errno in FULL_DISK
        tell(f"{error}; nothing is lost, the same command carries on" if full else str(error))
        return INCOMPLETE if full else BAD_INPUT
    except KeyboardInterrupt:
        print("interrupted; the same command carries on from here", file=sys.stderr)
        return INTERRUPTED


def tell(message: str) -> None:
    """`error: ` before every line but those that belong to the one above."""
    for line in message.splitlines():
        print(line if line.startswith(" ") else f"error: {line}", file=sys.stderr)
