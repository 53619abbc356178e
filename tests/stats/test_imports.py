"""scipy, which takes most of a second to import, is loaded only by commands that need statistics."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

SCRIPT = """\
import sys
from harness.cli.main import main
try:
    code = main(sys.argv[1:])
except SystemExit as error:
    code = error.code
assert code == 0, code
print(*sorted(name for name in sys.modules if name.partition(".")[0] == "scipy"))
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["list"],
        ["plan", "ladder", "--system", "local"],
        ["run", "ladder", "--system", "local", "--dry-run"],
    ],
)
def test_command_does_not_import_scipy(tmp_path: Path, arguments: list[str]) -> None:
    command = [sys.executable, "-c", SCRIPT, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, env={"HOME": str(tmp_path)})
    assert done.stdout.splitlines()[-1] == ""


def test_modules_of_intervals_do_not_import_scipy_stats() -> None:
    """Reports without a history of commits need scipy.special alone, which takes a third of the time."""
    script = (
        "import sys, harness.stats.intervals, harness.stats.changepoints.detect; print('scipy.stats' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
