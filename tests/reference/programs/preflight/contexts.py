"""The settings of checks that tests call in their own process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.protocol.programs.preflight import PreflightParameters
from harness.reference.distributed.launch import RankInfo
from harness.reference.programs.preflight.check import CheckContext


def make_context(folder: Path, rank: int = 0, size: int = 1, **parameters: Any) -> CheckContext:
    """Return the context of a rank on one node, whose calculations are tiny."""
    small = {"device": "cpu", "widths": [8], "structures": 2, "time_limit_s": 3600.0} | parameters
    folder.mkdir(exist_ok=True)
    return CheckContext(
        PreflightParameters.model_validate(small), RankInfo(rank, size, rank), folder, 29_999, case_folder=folder
    )
