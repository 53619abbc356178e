"""Options that several commands share, and the types of their values."""

from __future__ import annotations

import argparse
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from harness.host.command_line import CommandParser
from harness.protocol.text import sanitize

Commands: TypeAlias = "argparse._SubParsersAction[CommandParser]"


def add_command(
    commands: Commands, name: str, function: Callable[[argparse.Namespace], int], help_text: str
) -> CommandParser:
    """Add a command that calls `function` with its arguments, and the options that every command has."""
    parser = commands.add_parser(name, help=help_text, description=help_text)
    parser.set_defaults(function=function)
    parser.add_argument("--out", type=usable_path, default=Path("results"), metavar="DIR", help="of runs and report")
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress")
    parser.add_argument("-v", "--verbose", action="store_true", help="say more")
    return parser


def add_suite_options(parser: CommandParser, count: str) -> None:
    """Add the options of commands that expand suites; `count` is the number of suites in the notation of argparse."""
    parser.add_argument("suites", nargs=count, metavar="SUITE", help="name or YAML file")
    parser.add_argument(
        "--suites", dest="suite_folder", type=usable_path, metavar="DIR", help="a folder of suites of your own"
    )
    parser.add_argument("-n", "--name", action="append", default=[], help="only cases whose name contains this")
    parser.add_argument("-x", "--exclude", action="append", default=[], help="no cases whose name contains this")
    parser.add_argument("-t", "--tag", action="append", default=[], help="only cases with this tag")
    parser.add_argument("--repeat", type=positive_int, metavar="N", help="run every case N times")
    add_system_options(parser)


def add_system_options(parser: CommandParser) -> None:
    """Add the options that choose a system and its settings."""
    parser.add_argument("--system", default="local", metavar="NAME", help="name or YAML file (local)")
    parser.add_argument(
        "-S", "--setting", action="append", default=[], metavar="KEY=VALUE", help="a setting of the system"
    )


def add_job_options(parser: CommandParser) -> None:
    """Add the options that choose which of the missing jobs are planned and submitted."""
    help_text = "submit nothing that may cost more"
    parser.add_argument("--max-node-hours", type=positive_float, metavar="H", help=help_text)
    parser.add_argument("--retry", action="store_true", help="run failed cases again")


def positive_int(text: str) -> int:
    """Return a whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


def positive_float(text: str) -> float:
    """Return a finite number above 0."""
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
