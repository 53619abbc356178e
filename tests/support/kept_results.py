"""The results that the project publishes under reports/measured, unpacked once for all tests of a process."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path

from harness.results.bundles import unpack_bundle
from tests.conftest import ROOT

PUBLISHED = ROOT / "reports" / "measured"
NAMES = sorted(str(p.parent.relative_to(PUBLISHED)) for p in PUBLISHED.rglob("runs.tar.xz"))


@cache
def unpack_results(name: str) -> Path:
    """Return a results folder with the run folders of one published result, which tests must not change."""
    folder = Path(tempfile.mkdtemp(prefix="gfm-harness-kept-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    unpack_bundle(PUBLISHED / name / "runs.tar.xz", folder)
    return folder
