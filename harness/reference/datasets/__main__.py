"""`harness data ...`, also `python -m harness.reference.datasets ...`: the sixteen datasets and their stores.

Exit codes: 0 done, 1 a check failed, 2 bad input or usage, 3 the disk is full, 130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from harness.host.command_line import ArgumentParser, CommandParser, run_command
from harness.protocol.errors import UsageError
from harness.protocol.text import sanitize_line
from harness.reference.datasets.splits import SEED
from harness.reference.errors import InputError


def build_parser() -> ArgumentParser:
    """Return the parser of the command line."""
    top = ArgumentParser(
        prog="harness data", description="The sixteen datasets: their files, their checks, their stores."
    )
    commands = top.add_subparsers(dest="command", metavar="COMMAND", parser_class=CommandParser, required=True)

    list_command = commands.add_parser("list", help="the datasets, or all that is known of some")
    list_command.add_argument("datasets", nargs="*", metavar="DATASET")

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
        help="files or folders (none: the shipped set); or a store that HydraGNN wrote, which is made usable in place",
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


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    return run_command(lambda: _run(argv))


def _run(argv: Sequence[str] | None) -> int:
    """Run one command; raises UsageError for what a user can put right."""
    try:
        arguments = build_parser().parse_args(argv)
        from harness.reference.datasets import commands

        return int(getattr(commands, f"do_{arguments.command}")(arguments))
    except InputError as error:
        raise UsageError(sanitize_line(str(error))) from None
    except ModuleNotFoundError as error:
        raise UsageError(f"{error}; install `pip install 'gfm-harness[reference]'`, which this needs") from None


if __name__ == "__main__":
    sys.exit(main())
