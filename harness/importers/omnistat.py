"""Import exports of Omnistat as run folders: one case for each annotation, or one for a job without annotations."""

from __future__ import annotations

import json
import os
import re
import shutil
from contextlib import suppress
from pathlib import Path

from harness.host.files import write_text
from harness.protocol.errors import UsageError
from harness.protocol.events import EVENTS_FILE
from harness.protocol.text import sanitize_line
from harness.telemetry.omnistat_csv import PATTERN, CsvExport
from harness.telemetry.prometheus_export import PrometheusExport
from harness.telemetry.timeseries import TelemetrySource, find_annotations

PROGRAM = "omnistat"
WHOLE_JOB = "whole-job"
NAME_LENGTH = 150


def import_export(path: Path, out: Path) -> list[Path]:
    """Write a campaign in out/runs from an export, and return the folders of its cases.

    Args:
        path: A file of JSON lines, or a folder of CSV files.
        out: The folder of results.

    Raises:
        UsageError: the path is not an export.
    """
    source = _open_source(path)
    spans = source.get_spans()
    if not spans:
        faults = f" ({source.faults.format_summary()})" if source.faults.format_summary() else ""
        raise UsageError(f"{path}: no samples of Omnistat here{faults}")
    whole_job = (WHOLE_JOB, min(s for s, _ in spans.values()), max(e for _, e in spans.values()))
    campaign = out / "runs" / f"omnistat-{_make_file_name(path.stem or path.resolve().name)}"
    campaign.mkdir(parents=True, exist_ok=True)
    for file in [path] if path.is_file() else sorted(path.glob(PATTERN)):
        _link_or_copy(file, campaign / (f"{path.stem}.omnistat.jsonl" if path.is_file() else file.name))
    folders: list[Path] = []
    for marker, start_s, end_s in find_annotations(source) or [whole_job]:
        folder = campaign / _make_file_name(marker)
        number = 1
        while folder in folders:
            number += 1
            folder = campaign / f"{_make_file_name(marker)}-{number}"
        _write_case(folder, marker, start_s, end_s, nodes=len(spans))
        folders.append(folder)
    return folders


def _open_source(path: Path) -> TelemetrySource:
    if path.is_dir():
        if not any(path.glob(PATTERN)):
            raise UsageError(f"{path}: no {PATTERN} here; expected the files that `omnistat-query --export` writes")
        return CsvExport(path)
    if not path.is_file():
        raise UsageError(f"{path}: no such file or folder")
    return PrometheusExport(path)


def _make_file_name(text: str) -> str:
    return re.sub(r"[^\w.=+-]+", "-", text).strip("-.")[:NAME_LENGTH] or "export"


def _link_or_copy(source: Path, target: Path) -> None:
    """Create a hard link to the file, or copy the file if the file system cannot link it."""
    target.unlink(missing_ok=True)
    with suppress(OSError):
        os.link(source.resolve(), target)
        return
    shutil.copyfile(source, target)


def _write_case(folder: Path, marker: str, start_s: float, end_s: float, *, nodes: int) -> None:
    """Write the run folder of one annotation; replace the folder of an earlier import."""
    folder.mkdir(exist_ok=True)
    name = sanitize_line(marker)[:NAME_LENGTH]
    case = {"id": folder.name, "name": name, "suite": folder.parent.name, "system": "elsewhere", "program": PROGRAM,
            "parameters": {}, "axis_values": {}, "nodes": nodes}  # fmt: skip
    events = [{"event": "start", "time_s": start_s}, {"event": "done", "time_s": end_s}]
    write_text(folder / "case.json", json.dumps(case, indent=2) + "\n")
    write_text(folder / EVENTS_FILE, "".join(json.dumps(event) + "\n" for event in events))
    write_text(folder / "exit_code", "0\n")
