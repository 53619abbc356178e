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

    list_command = commands.add_parser("list", help="list the datasets, or describe some of them")
    list_command.add_argument("datasets", nargs="*", metavar="DATASET")

    fetch = commands.add_parser("fetch", help="download official files, or explain how to get them")
    fetch.add_argument("dataset", metavar="DATASET")
    fetch.add_argument("files", nargs="*", metavar="FILE", help="files to download (optional for a single file)")
    fetch.add_argument(
        "--to", type=Path, default=Path("data"), metavar="DIR", help="the folder of all datasets (default: data)"
    )
    fetch.add_argument("-q", "--quiet", action="store_true", help="do not report progress")

    convert = commands.add_parser("convert", help="convert official files, or the shipped set, to a store")
    convert.add_argument("dataset", metavar="DATASET")
    convert.add_argument(
        "paths",
        nargs="*",
        type=Path,
        metavar="PATH",
        help="files or folders (none: the shipped set), or a store that HydraGNN wrote, which is not copied",
    )
    convert.add_argument("--to", type=Path, metavar="DIR", help="the folder of all stores (default: stores)")
    convert.add_argument(
        "--for",
        dest="form",
        choices=["hydragnn"],
        help="write files, the shipped set or a store to NAME-v2.bp, which HydraGNN reads",
    )
    convert.add_argument("--cutoff", type=float, metavar="A", help="store neighbour lists up to A angstrom")
    convert.add_argument("--max-neighbours", type=int, metavar="N", help="list only the N nearest neighbours")
    convert.add_argument(
        "--max-force",
        type=float,
        default=1000.0,
        metavar="F",
        help="reject structures with larger forces, eV/angstrom (default: 1000)",
    )
    convert.add_argument(
        "--seed", type=int, default=SEED, help=f"seed of the split into training, validation and test (default: {SEED})"
    )
    convert.add_argument("--strict", action="store_true", help="stop at the first structure that cannot be used")
    convert.add_argument("--workers", type=int, metavar="N", help="number of processes (default: all cores)")
    convert.add_argument("-q", "--quiet", action="store_true", help="do not report progress")

    check = commands.add_parser("check", help="check official files without converting them, or check stores")
    check.add_argument("dataset", metavar="DATASET|STORE", help="a dataset, followed by its files; or a store")
    check.add_argument("paths", nargs="*", type=Path, metavar="PATH")
    check.add_argument("-q", "--quiet", action="store_true", help="do not report progress")

    stats = commands.add_parser("stats", help="summarize stores")
    stats.add_argument("stores", nargs="+", type=Path, metavar="STORE", help="stores, or folders of stores")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    return run_command(lambda: _run(argv))


def _run(argv: Sequence[str] | None) -> int:
    """Run one command; raises UsageError for problems that the user can correct."""
    try:
        arguments = build_parser().parse_args(argv)
        from harness.reference.datasets import commands

        return int(getattr(commands, f"do_{arguments.command}")(arguments))
    except InputError as error:
        raise UsageError(sanitize_line(str(error))) from None
    except ModuleNotFoundError as error:
        raise UsageError(f"{error}; this command needs `pip install 'gfm-harness[reference]'`") from None


if __name__ == "__main__":
    sys.exit(main())
