"""The command `systems`, which checks the files of systems."""

from __future__ import annotations

from argparse import Namespace

from harness.cli.options import Commands, add_command, parse_settings
from harness.host.command_line import DONE


def add_commands(commands: Commands) -> None:
    """Add the commands of this group to the command line."""
    help_text = "check the files of systems for mistakes that would only show on the machine"
    parser = add_command(commands, "systems", do_systems, help_text)
    parser.add_argument("action", choices=["check"], metavar="check")
    parser.add_argument("files", nargs="+", metavar="FILE", help="name or YAML file of a system")
    setting_help = "a setting of the systems"
    parser.add_argument("-S", "--setting", action="append", default=[], metavar="KEY=VALUE", help=setting_help)


def do_systems(arguments: Namespace) -> int:
    """Print a line for each file without problems; raise UsageError with the problems of the others."""
    from harness.config import resources
    from harness.config.document import raise_problems
    from harness.config.system import load_system
    from harness.config.system_checks import find_problems

    problems = []
    for name in arguments.files:
        system = load_system(resources.find_resource("systems", name), parse_settings(arguments.setting))
        file_problems = find_problems(system)
        problems += file_problems
        if not file_problems:
            print(f"{system.document.path}: no problems (directives, settings, launch line)")
    raise_problems(problems)
    return DONE
