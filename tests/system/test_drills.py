"""Drills pass on a real Slurm: those whose faults no other test plants. `harness drill` runs the others too."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.config.resources import find_resource
from harness.config.system import load_system
from harness.drills.drills import DRILLS, Drill, run_drill
from harness.drills.site import Site, start_slurm
from tests.conftest import require_slurm

pytestmark = pytest.mark.slow
NAMES = ("node-dies", "gpu-error", "file-system-stalls")


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    require_slurm()
    path = find_resource("systems", "slurm")
    with start_slurm(load_system(path, {}), path) as running:
        yield running


@pytest.mark.parametrize("drill", [drill for drill in DRILLS if drill.name in NAMES], ids=lambda drill: drill.name)
def test_drill_passes(site: Site, tmp_path: Path, drill: Drill) -> None:
    """The file system stalls for longer than the time after which a stall is reported."""
    result = run_drill(drill, site, tmp_path / drill.name, 20)
    if result.verdict == "not possible":
        pytest.skip(result.detail)
    assert result.verdict == "ok", result.detail
