"""The command `artifact`, which writes and verifies bundles."""

from __future__ import annotations

from argparse import Namespace

from harness.cli.options import Commands, add_command, usable_path
from harness.cli.reports import print_line
from harness.host.command_line import CHECK_FAILED, DONE
from harness.protocol.text import pluralize


def add_commands(commands: Commands) -> None:
    """Add the commands of this group to the command line."""
    help_text = "write the runs, their environments, an appendix and checksums as a bundle, or verify a bundle"
    parser = add_command(commands, "artifact", do_artifact, help_text)
    bundle_help = "a new folder, or a file that ends in .tar.xz; with --verify, an existing bundle"
    parser.add_argument("bundle", type=usable_path, metavar="BUNDLE", help=bundle_help)
    parser.add_argument(
        "--verify", action="store_true", help="compare a bundle with its checksums; exit code 1 if a file was changed"
    )
    parser.add_argument("--author", metavar="NAME", help="the person who ran the cases (default: user.name of git)")
    parser.add_argument("--organization", metavar="NAME", help="the organization of the person, or in place of one")
    parser.add_argument("--url", metavar="URL", help="the web address of the organization")
    license_help = "SPDX identifier of the licence of the records (default: CC-BY-4.0)"
    parser.add_argument("--license", default="CC-BY-4.0", metavar="ID", help=license_help)
    parser.add_argument(
        "--source", action="store_true", help="add the source code of the commits that ran (18 MB each)"
    )


def do_artifact(arguments: Namespace) -> int:
    """Write the runs of the results folder as a bundle, or verify a bundle."""
    if arguments.verify:
        return verify(arguments)
    from harness.artifact.build import write_artifact
    from harness.artifact.metadata import find_author

    author = find_author(arguments.author, arguments.organization, arguments.url)
    count = write_artifact(
        arguments.out, arguments.bundle, author, license_id=arguments.license, with_source=arguments.source
    )
    print_line(f"written: {arguments.bundle}, {pluralize(count, 'file')}")
    return DONE


def verify(arguments: Namespace) -> int:
    """Print a line for each file that differs from its checksum, and return 1 if there is one."""
    from harness.results.bundles import verify_bundle

    verification = verify_bundle(arguments.bundle)
    for problem in verification.problems:
        print_line(problem)
    differing = f", {len(verification.problems)} with a difference" if verification.problems else ", as written"
    print_line(
        f"{pluralize(verification.n_files, 'file')}{differing}; SHA-256 of the manifest: {verification.manifest_sha256}"
    )
    return CHECK_FAILED if verification.problems else DONE
