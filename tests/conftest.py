"""What several test modules share: small structures, a small model, and the harness as a user calls it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest

# how long an example takes says more of what else runs on the machine than of the code
hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")

ROOT = Path(__file__).parent.parent
Harness = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(autouse=True)
def _same_environment() -> Iterator[None]:
    """Fail a test that leaves a variable of the harness behind, which a later test of the same process would see."""
    before = _own_variables()
    yield
    after = _own_variables()
    for name in after.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)
    assert after == before


def _own_variables() -> dict[str, str]:
    prefixes = ("GFM_HARNESS_", "HARNESS_", "OMNISTAT_", "SLURM_", "PBS_", "XDG_")
    return {name: value for name, value in os.environ.items() if name.startswith(prefixes) or name in ("HOME", "PATH")}


@pytest.fixture
def harness(tmp_path: Path) -> Harness:
    """Run `harness WORDS` in an empty folder and return what it printed and its exit code."""

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


def pages_of(out: Path) -> str:
    """All pages of a report, one after another."""
    return "".join(path.read_text() for path in sorted(out.glob("*.html")))


def needs(program: str) -> None:
    """Skip where a system program is absent; in CI that is a failure."""
    import shutil

    if shutil.which(program) is None:
        if os.environ.get("CI"):
            pytest.fail(f"{program} is missing, and CI must have it")
        pytest.skip(f"{program} is not installed")
