"""Run programs of the reference implementation in the process of the test."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.protocol.events import CaseLog
from harness.protocol.records import Start
from harness.protocol.registry import PROGRAMS, parse_parameters


def run_program(name: str, parameters: Mapping[str, Any], folder: Path) -> CaseLog:
    """Run a program as a job would, and return its log; invalid parameters raise UsageError."""
    log = CaseLog(folder / "events.jsonl", name)
    log.write(Start())
    importlib.import_module(PROGRAMS[name].module).run(parse_parameters(name, dict(parameters)), log, folder)
    return log
