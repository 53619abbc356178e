"""The commands that compare results: compare, regression."""

from __future__ import annotations

import argparse
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from harness.cli.options import Commands, add_command, positive_int, usable_path
from harness.cli.reports import print_line
from harness.host.command_line import CHECK_FAILED, DONE, INCOMPLETE

if TYPE_CHECKING:
    from harness.tracking.selectors import Observation


def add_commands(commands: Commands) -> None:
    """Add the commands of this group to the command line."""
    compare_help = "compare two runs, stages, precisions, systems or commits: differences with intervals"
    compare = add_command(commands, "compare", do_compare, compare_help)
    sides = (
        "runs, such as results@stage=baseline,system=local: PATH, KEY=VALUE,... or PATH@KEY=VALUE,...; PATH is a folder"
        " of results, a campaign or a case"
    )
    compare.add_argument("a", metavar="A", help=sides)
    compare.add_argument("b", metavar="B", help="the runs to compare with A, in the same notation")
    compare.add_argument("--metric", action="append", default=[], help="only metrics whose name contains this text")
    compare.add_argument("--csv", type=usable_path, metavar="FILE", help="write all rows to this file")
    regression_help = (
        "run benchmarks over the commits A..B; exit code 1 if one became worse or broke, 3 if one was not run"
    )
    _add_regression_options(add_command(commands, "regression", do_regression, regression_help))


def _add_regression_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("range", metavar="A..B", help="the commits from A to B, including both; A alone means A..HEAD")
    parser.add_argument(
        "--repo", type=usable_path, default=Path(), metavar="DIR", help="the git clone (default: the current folder)"
    )
    config_help = "path of asv.conf.json (default: in the clone, the folder itself or tests/benchmarks/over_commits)"
    parser.add_argument("--config", type=usable_path, metavar="FILE", help=config_help)
    bench_help = "only benchmarks whose name matches this regular expression"
    parser.add_argument("--bench", action="append", default=[], metavar="REGEX", help=bench_help)
    rounds_help = "how often each commit is measured (default: 12)"
    parser.add_argument("--rounds", type=positive_int, default=12, metavar="N", help=rounds_help)
    steps_help = "measure at most N commits, evenly spaced over the range"
    parser.add_argument("--steps", type=positive_int, metavar="N", help=steps_help)
    here_help = (
        "run the sources of each commit with this Python and install nothing; only valid if no commit changes the"
        " dependencies or compiled code"
    )
    parser.add_argument("--here", action="store_true", help=here_help)


def do_compare(arguments: Namespace) -> int:
    """Print the difference between A and B in each metric: the ratio B / A, with its interval and a verdict."""
    from harness.host.files import write_text
    from harness.host.process import pause_gc
    from harness.tracking import compare, selectors

    sides = (selectors.parse_selector(arguments.a), selectors.parse_selector(arguments.b))
    index = selectors.RunIndex(arguments.out)
    try:
        with pause_gc():
            a, b = ([o for o in index.find_observations(side) if matches_metric(o, arguments.metric)] for side in sides)
            comparison = compare.compare(a, b, sides)
        if arguments.csv is not None:
            write_text(arguments.csv, compare.to_csv(comparison))
        print("\n".join(compare.format_lines(comparison, sides, arguments.verbose)))
    finally:
        for record in index.unreadable:
            print_line(f"not compared: {record.folder} is unreadable: {record.error}")
    return DONE


def matches_metric(observation: Observation, parts: Sequence[str]) -> bool:
    """Return whether the metric's name contains one of these texts; without texts, every metric matches."""
    return not parts or any(part in observation.samples.metric.name for part in parts)


def do_regression(arguments: Namespace) -> int:
    """Measure a range of commits; return 1 if a benchmark became worse or broke, 3 if one was not run."""
    from harness.report.render import write_report
    from harness.tracking import asv_runner, git_commits
    from harness.tracking.asv_runner import check_patterns, load_project
    from harness.tracking.session import FOLDER, SessionOptions, run_session

    repo = git_commits.find_repository(arguments.repo)
    commits = git_commits.subsample(git_commits.list_commits(repo, arguments.range), arguments.steps)
    root = (arguments.out / FOLDER).resolve()
    session = asv_runner.AsvSession(
        load_project(repo, arguments.config), commits, asv_runner.describe_machine(), arguments.here, root
    )
    options = SessionOptions(arguments.rounds, check_patterns(arguments.bench), arguments.quiet)
    has_failures = run_session(session, options, arguments.out)
    history = write_report(arguments.out).history
    verdicts = [v for v in history.verdicts if v.series.session == session.id and options.includes(v.series.name)]
    for verdict in verdicts:
        print_line(f"{verdict.series.name}: {verdict}")
    if has_failures:
        print(f"some benchmarks failed on some commits: {session.folder / asv_runner.LOG}", file=sys.stderr)
    print(f"report: {arguments.out / 'regression.html'}")
    if any(verdict.is_bad for verdict in verdicts):
        return CHECK_FAILED
    return INCOMPLETE if not verdicts or any(verdict.state == "not run" for verdict in verdicts) else DONE
