"""Fixtures and helpers of all tests: running the harness as a user does, and skipping tests that lack a program."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest

from harness.drills.cluster import find_missing

# Examples have no deadline, since their duration depends on the load of the machine. They are the same in every run, so
# that a failure is due to the change under test; FUZZ_SEED=random draws new ones (tests/fuzz/bounded.py).
hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True)
hypothesis.settings.register_profile("random", deadline=None)
hypothesis.settings.load_profile("random" if os.environ.get("FUZZ_SEED") == "random" else "repeatable")

ROOT = Path(__file__).parent.parent
Harness = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(autouse=True)
def _check_environment_is_unchanged() -> Iterator[None]:
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
    """Return a function that runs `harness ARGS` in an empty folder and returns its output and exit code."""

    def run(*args: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "harness", *args],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    return run


def read_pages(out: Path) -> str:
    """Return the text of all pages of a report."""
    return "".join(path.read_text() for path in sorted(out.glob("*.html")))


def require_program(program: str) -> None:
    """Skip the test if a program is missing, or fail it in CI."""
    if shutil.which(program) is None:
        skip_or_fail(program)


def require_slurm(accounting: bool = False) -> None:
    """Skip the test if this machine cannot emulate a Slurm cluster, or fail it in CI."""
    if missing := find_missing(accounting):
        skip_or_fail(missing)


def skip_or_fail(missing: str) -> None:
    if os.environ.get("CI"):
        pytest.fail(f"{missing} is missing, and CI must have it")
    pytest.skip(f"{missing} is not available")
