"""The commands that read results: import, report, check, promote."""

from __future__ import annotations

import math
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from harness.cli.options import Commands, add_command, usable_path
from harness.host.command_line import CHECK_FAILED, DONE
from harness.protocol.errors import UsageError
from harness.protocol.text import pluralize, sanitize_line

if TYPE_CHECKING:
    from harness.claims.scorecard import Score

# The maximum fraction of the time of a run that the reports before its end take.
MAX_REPORT_FRACTION = 0.03
IMPORT_FORMATS = ("hydragnn", "omnistat")


def add_commands(commands: Commands) -> None:
    """Add the commands of this group to the command line."""
    import_help = "import logs of HydraGNN, or exports of Omnistat, as run folders, and write the report"
    importer = add_command(commands, "import", do_import, import_help)
    importer.add_argument("format", choices=IMPORT_FORMATS, help="the program that wrote the files")
    importer.add_argument("paths", nargs="+", metavar="PATH", help="a file, or a folder of files")
    report = add_command(commands, "report", do_report, "write tables, figures and pages about the runs")
    bundles_help = "bundles that `harness artifact` wrote, whose runs are first unpacked into the folder of --out"
    report.add_argument("bundles", nargs="*", type=usable_path, metavar="BUNDLE", help=bundles_help)
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
    return report_results(arguments.out, arguments.claims, arguments.bundles)


class EarlyReports:
    """The reports that are written while cases run: the first after the first case, further ones after later cases.

    They take at most MAX_REPORT_FRACTION of the time, since no case that is timed may run meanwhile.
    """

    def __init__(self, out: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._out, self._clock = out, clock
        self._next_s = -math.inf
        self._has_address = False

    def update(self) -> None:
        """Write a report if one is due; print the address of the first one, or why it cannot be written."""
        from harness.report.render import write_report

        started = self._clock()
        if started < self._next_s:
            return
        try:
            write_report(self._out)
            if not self._has_address:
                address = (self._out / "index.html").resolve().as_uri()
                print(f"report so far, written again every few minutes: {address}", flush=True)
                self._has_address = True
        except UsageError as error:  # the remaining cases run nevertheless
            print(f"no report yet: {error}", file=sys.stderr)
        ended = self._clock()
        self._next_s = ended + (ended - started) * (1 / MAX_REPORT_FRACTION - 1)


def report_results(out: Path, claims: Sequence[Path] = (), bundles: Sequence[Path] = ()) -> int:
    """Write the report on a results folder, print its scorecard, and return the exit code.

    Args:
        out: The results folder.
        claims: Files of claims, in addition to the shipped ones and those in ./claims.
        bundles: The bundles from which runs were unpacked.
    """
    from harness.report.render import write_report

    result = write_report(out, claims, bundles)
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
