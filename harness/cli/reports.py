"""The commands that read results: import, report, check, promote."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from harness.cli.options import Commands, add_command, usable_path
from harness.host.command_line import CHECK_FAILED, DONE
from harness.protocol.errors import UsageError
from harness.protocol.text import pluralize, sanitize_line

if TYPE_CHECKING:
    from harness.claims.scorecard import Score

IMPORT_FORMATS = ("hydragnn", "omnistat")


def add_commands(commands: Commands) -> None:
    """Add the commands of this group to the command line."""
    import_help = "import logs of HydraGNN, or exports of Omnistat, as run folders, and write the report"
    importer = add_command(commands, "import", do_import, import_help)
    importer.add_argument("format", choices=IMPORT_FORMATS, help="the program that wrote the files")
    importer.add_argument("paths", nargs="+", metavar="PATH", help="a file, or a folder of files")
    report = add_command(commands, "report", do_report, "write tables, figures and pages about the runs")
    bundles_help = "bundles of published results (harness.results.bundles), first unpacked into the folder of --out"
    report.add_argument("bundles", nargs="*", type=usable_path, metavar="FILE.tar.xz", help=bundles_help)
    check = add_command(commands, "check", do_check, "judge claims and figures of merit; exit code 1 if one is not met")
    for command in (report, check):
        claims_help = "a file of claims, in addition to the shipped ones and those in ./claims; repeatable"
        command.add_argument(
            "--claims", type=usable_path, action="append", default=[], metavar="FILE", help=claims_help
        )
    promote = add_command(
        commands, "promote", do_promote, "write a suite that pretrains the best models of a hyperparameter search"
    )
    campaign_help = "folder of the search in the folder `runs` of the results (--out), for example hpo-frontier"
    promote.add_argument("campaign", help=campaign_help)


def do_import(arguments: Namespace) -> int:
    """Import logs of HydraGNN, or exports of Omnistat, as run folders, and write the report."""
    return import_paths(arguments.format, arguments.paths, arguments.out)


def import_paths(name: str, paths: Sequence[str], out: Path) -> int:
    """Import each path in the format of this name, print the run folders, and write the report."""
    from harness.importers import hydragnn, omnistat

    import_path = {"hydragnn": hydragnn.import_logs, "omnistat": omnistat.import_export}[name]
    for path in paths:
        for folder in import_path(Path(path), out):
            print(f"imported: {folder}")
    return report_results(out)


def do_report(arguments: Namespace) -> int:
    """Rebuild tables, figures, scorecard and pages from the run folders, and from bundles of them."""
    from harness.results.bundles import unpack_bundle

    for bundle in arguments.bundles:
        unpack_bundle(bundle, arguments.out)
    return report_results(arguments.out, arguments.claims)


def report_results(out: Path, claims: Sequence[Path] = ()) -> int:
    """Write the report on a results folder, print its scorecard, and return the exit code.

    Args:
        out: The results folder.
        claims: Files of claims, in addition to the shipped ones and those in ./claims.
    """
    from harness.report.render import write_report

    result = write_report(out, claims)
    for score in result.scores:
        print_line(f"{score.id}: {score.verdict}{format_values(score)}")
    for record in result.records:
        if record.state == "unreadable":
            print_line(f"unreadable: {record.folder}: {record.error}")
    for page, reason in result.errors.items():
        print(sanitize_line(f"error: {out / page}.html: {reason}"), file=sys.stderr)
    print(f"report: {out / 'index.html'}")
    return CHECK_FAILED if result.errors else DONE


def do_check(arguments: Namespace) -> int:
    """Judge claims and figures of merit without writing files; return 1 if one is not met, or could not be measured."""
    from harness.claims.evaluate import NO_RUNS, judge_folder
    from harness.claims.papers import load_papers
    from harness.claims.scorecard import counts_as_failure, describe_unmeasured
    from harness.tracking.history import HISTORY_FILE

    judgement = judge_folder(arguments.out, load_papers(arguments.claims))
    records = judgement.results.records
    merits = [(record.case.get("name"), merit) for record in records for merit in record.figures_of_merit]
    if not records and not (arguments.out / HISTORY_FILE).exists():
        raise UsageError(f"{arguments.out / 'runs'}: {NO_RUNS}")
    for score in judgement.scores:
        before = "; it was reproduced before" if score.reproduced_before and score.verdict != "reproduced" else ""
        print_line(f"{score.id}: {score.verdict}{format_values(score)} ({score.reason}){before}")
    for case, merit in merits:
        value = "\N{EN DASH}" if merit.measured is None else f"{merit.measured:.4g}"
        print_line(f"{case} {merit.name}: {merit.verdict} ({value} {merit.unit}, {merit.reference:g})")
    unmeasured = list(describe_unmeasured(records, judgement.scores))
    for line in unmeasured:
        print_line(line)
    not_run = sum(record.state == "not run" for record in records)
    if not_run:
        print(f"{pluralize(not_run, 'case')} not run yet: not judged")
    has_failed = any(counts_as_failure(score) for score in judgement.scores) or any(
        m.verdict == "worse" for _, m in merits
    )
    return CHECK_FAILED if has_failed or unmeasured else DONE


def format_values(score: Score) -> str:
    """Return `: 0.42 x (paper: 1.5 x)`, or empty text without a measured value."""
    from harness.document.blocks import format_quantity

    if score.measured_value is None:
        return ""
    measured, printed = (format_quantity(value, score.unit) for value in (score.measured_value, score.paper_value))
    return f": {measured} (paper: {printed})"


def do_promote(arguments: Namespace) -> int:
    """Write a suite that pretrains the best models of a hyperparameter search."""
    from harness.experiments.hpo.promote import write_best_suite

    path = write_best_suite(arguments.out, arguments.campaign)
    print(f"written: {path}; for example `harness run {path} --system frontier`")
    return DONE


def print_line(text: str) -> None:
    """Print text from files on one line, without characters that a terminal would interpret."""
    print(sanitize_line(text))
