"""`harness data ...`, also `python -m harness.reference.datasets ...`: the sixteen datasets and their stores.

Exit codes: 0 done, 1 a check failed, 2 bad input or usage, 3 the disk is full, 130 interrupted.
"""

from __future__ import annotations

import argparse
import copy
import errno
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from harness.protocol.text import sanitize_line
from harness.reference.datasets.splitting.splits import SEED
from harness.reference.errors import InputError

FULL_DISK = (errno.ENOSPC, errno.EDQUOT)


class Parser(argparse.ArgumentParser):
    """argparse that tells usage errors in one line."""

    def error(self, message: str) -> NoReturn:
        """Leave the printing to main."""
        raise InputError(f"{message}; see `{self.prog} --help`")


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
    """The command line."""
    top = Parser(prog="harness data", description="The sixteen datasets: their files, their checks, their stores.")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", parser_class=CommandParser, required=True)

    found = commands.add_parser("list", help="the datasets, or all that is known of some")
    found.add_argument("datasets", nargs="*", metavar="DATASET")

    fetch = commands.add_parser("fetch", help="download official files, or say how to get them")
    fetch.add_argument("dataset", metavar="DATASET")
    fetch.add_argument("files", nargs="*", metavar="FILE", help="some of its files (all, if there is but one)")
    fetch.add_argument("--to", type=Path, default=Path("data"), metavar="DIR", help="the folder of all datasets")
    fetch.add_argument("-q", "--quiet", action="store_true", help="no progress")

    convert = commands.add_parser("convert", help="official files, or the shipped set, into a store")
    convert.add_argument("dataset", metavar="DATASET")
    convert.add_argument(
        "paths",
        nargs="*",
        type=Path,
        metavar="PATH",
        help="files or folders (none: the shipped set); or a store that HydraGNN wrote, made usable where it lies",
    )
    convert.add_argument("--to", type=Path, metavar="DIR", help="the folder of all stores (stores)")
    convert.add_argument(
        "--for",
        dest="form",
        choices=["hydragnn"],
        help="write NAME-v2.bp as HydraGNN reads it, of files, the shipped set or a store",
    )
    convert.add_argument("--cutoff", type=float, metavar="A", help="store neighbour lists too, angstrom")
    convert.add_argument("--max-neighbours", type=int, metavar="N", help="only the nearest N of each atom")
    convert.add_argument("--max-force", type=float, default=1000.0, metavar="F", help="leave out above, eV/angstrom")
    convert.add_argument("--seed", type=int, default=SEED, help="of the split into training, validation and test")
    convert.add_argument("--strict", action="store_true", help="stop at the first structure that cannot be used")
    convert.add_argument("--workers", type=int, metavar="N", help="processes (the cores of this machine)")
    convert.add_argument("-q", "--quiet", action="store_true", help="no progress")

    check = commands.add_parser("check", help="go through official files without writing, or through stores")
    check.add_argument("dataset", metavar="DATASET|STORE", help="a dataset, whose files follow; or a store")
    check.add_argument("paths", nargs="*", type=Path, metavar="PATH")
    check.add_argument("-q", "--quiet", action="store_true", help="no progress")

    stats = commands.add_parser("stats", help="what stores hold")
    stats.add_argument("stores", nargs="+", type=Path, metavar="STORE", help="stores, or folders of stores")
    return top


def main(words: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    try:
        arguments = parser().parse_args(words)
        from harness.reference.datasets import commands

        return int(getattr(commands, f"do_{arguments.command}")(arguments))
    except InputError as error:
        print(f"error: {sanitize_line(str(error))}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        print(f"error: {error}; this needs what `pip install 'gfm-harness[reference]'` brings", file=sys.stderr)
        return 2
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        full = error.errno in FULL_DISK
        print(
            f"error: {sanitize_line(str(error))}{'; nothing is lost, the same command carries on' if full else ''}",
            file=sys.stderr,
        )
        return 3 if full else 2
    except KeyboardInterrupt:
        print("interrupted; the same command carries on from here", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
