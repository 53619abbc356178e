"""Fixtures and helpers of all tests: the harness as a user calls it, and requirements of the machine."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest

from tests.support.cluster import find_missing

# The time of an example depends on what else runs on the machine.
hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")

ROOT = Path(__file__).parent.parent
Harness = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(autouse=True)
def _same_environment() -> Iterator[None]:
    """Fail a test that leaves a variable of the harness behind, which a later test of the same process would see."""
    before = _list_variables()
    yield
    after = _list_variables()
    for name in after.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)
    assert after == before


def _list_variables() -> dict[str, str]:
    prefixes = ("GFM_HARNESS_", "HARNESS_", "OMNISTAT_", "SLURM_", "PBS_", "XDG_")
    return {name: value for name, value in os.environ.items() if name.startswith(prefixes) or name in ("HOME", "PATH")}


@pytest.fixture
def harness(tmp_path: Path) -> Harness:
    """Return a function that runs `harness WORDS` in an empty folder and returns its output and exit code."""

    def call(*words: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "harness", *words],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    return call


def read_pages(out: Path) -> str:
    """Return the text of all pages of a report."""
    return "".join(path.read_text() for path in sorted(out.glob("*.html")))


def require_program(program: str) -> None:
    """Skip the test where a program is missing; in CI, fail it."""
    if shutil.which(program) is None:
        skip_or_fail(program)


def require_slurm(accounting: bool = False) -> None:
    """Skip the test where this machine lacks something for an emulated cluster; in CI, fail it."""
    if missing := find_missing(accounting):
        skip_or_fail(missing)


def skip_or_fail(missing: str) -> None:
    if os.environ.get("CI"):
        pytest.fail(f"{missing} is missing, and CI must have it")
    pytest.skip(f"{missing} is not available")
