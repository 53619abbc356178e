"""The command `drill`, which plants faults in small campaigns and checks what the harness does about them."""

from __future__ import annotations

import signal
import sys
import time
from argparse import Namespace
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from harness.cli.options import Commands, add_command, load_system, positive_float
from harness.host.command_line import CHECK_FAILED, DONE
from harness.protocol.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from harness.drills.site import Site

STALL_S = 60.0  # longer than writes that are not reported (MAX_WRITE_S), and than the timeout of the ranks


def add_commands(commands: Commands) -> None:
    """Add the commands of this group to the command line."""
    help_text = "plant faults (a dead node, a full disk, ...) in small campaigns, and check what the harness does"
    parser = add_command(commands, "drill", do_drill, help_text)
    parser.add_argument("drills", nargs="*", metavar="DRILL", help="names of drills (default: all)")
    parser.add_argument(
        "--system", metavar="NAME", help="name or YAML file of a system (default: a Slurm cluster on this machine)"
    )
    parser.add_argument(
        "-S", "--setting", action="append", default=[], metavar="KEY=VALUE", help="a setting of the system"
    )
    help_text = f"seconds for which the file system stalls (default: {STALL_S:g})"
    parser.add_argument("--stall", type=positive_float, default=STALL_S, metavar="S", help=help_text)
    parser.add_argument("--list", action="store_true", help="list the drills")


def do_drill(arguments: Namespace) -> int:
    """Run the drills and print a line about each; the exit code is 1 if one fails."""
    from harness.drills.drills import DRILLS, run_drill

    names = [drill.name for drill in DRILLS]
    for name in arguments.drills:
        if name not in names:
            raise UsageError(f"unknown drill {name!r}{did_you_mean(name, names)}")
    if arguments.list:
        for drill in DRILLS:
            print(f"{drill.name:<18}  {drill.title}")
        return DONE
    signal.signal(signal.SIGTERM, _exit)  # so that disks are unmounted, and nodes and jobs end
    folder: Path = arguments.out / "drills" / time.strftime("%Y%m%d-%H%M%S")
    verdicts = set()
    with _open_site(arguments) as site:
        for drill in DRILLS:
            if not arguments.drills or drill.name in arguments.drills:
                result = run_drill(drill, site, folder / drill.name, arguments.stall)
                print(result.format(), flush=True)
                verdicts.add(result.verdict)
    return CHECK_FAILED if "failed" in verdicts else DONE


def _exit(number: int, _: object) -> NoReturn:
    sys.exit(128 + number)


def _open_site(arguments: Namespace) -> AbstractContextManager[Site]:
    """Return the system that the user names, or a cluster of the drills."""
    from harness.config import resources
    from harness.drills.site import Site, explain_no_slurm, start_slurm

    needs_cluster = arguments.system is None
    if needs_cluster:
        reason = explain_no_slurm()
        if reason is not None:
            raise UsageError(reason)
        arguments.system = "slurm"
    system, path = load_system(arguments), resources.find_resource("systems", arguments.system)
    if needs_cluster:
        return start_slurm(system, path)
    system.require_settings()
    return nullcontext(Site(system, path))
