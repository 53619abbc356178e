"""scipy.stats, whose import takes most of a second, is imported only by the modules that need it."""

from __future__ import annotations

import subprocess
import sys

from tests.conftest import ROOT


def test_modules_of_intervals_do_not_import_scipy_stats() -> None:
    """Reports without a history of commits need only scipy.special, whose import takes a third of the time."""
    script = (
        "import sys, harness.stats.intervals, harness.stats.changepoints.detect; print('scipy.stats' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout == "False\n"
