"""Exports of Omnistat from elsewhere -> run folders: a case for each annotation, or one for the whole job."""

from __future__ import annotations

import json
import os
import re
import shutil
from contextlib import suppress
from pathlib import Path

from harness.host.atomic_files import write_text
from harness.protocol.errors import UsageError
from harness.protocol.events import FILE_NAME
from harness.protocol.text import sanitize_line
from harness.telemetry.job_annotations import markers
from harness.telemetry.omnistat_csv import PATTERN, CsvExport
from harness.telemetry.prometheus_export import Export
from harness.telemetry.timeseries import Source

PROGRAM = "omnistat"
WHOLE = "whole-job"
LONGEST_NAME = 150


def take_in(place: Path, out: Path) -> list[Path]:
    """Make a campaign below out/runs of an export (a JSON lines file, or a folder of CSV files); return its cases.

    Raises UsageError for what is no export.
    """
    source = _source(place)
    spans = source.spans()
    if not spans:
        wrong = f" ({source.faults.told()})" if source.faults.told() else ""
        raise UsageError(f"{place}: no samples of Omnistat here{wrong}")
    whole = (WHOLE, min(s for s, _ in spans.values()), max(e for _, e in spans.values()))
    campaign = out / "runs" / f"omnistat-{_plain(place.stem or place.resolve().name)}"
    campaign.mkdir(parents=True, exist_ok=True)
    for path in [place] if place.is_file() else sorted(place.glob(PATTERN)):
        name = f"{path.stem}.omnistat.jsonl" if place.is_file() else path.name
        _linked(path, campaign / name)
    written: list[Path] = []
    for marker, start, end in markers(source) or [whole]:
        folder = campaign / _plain(marker)
        number = 1
        while folder in written:
            number += 1
            folder = campaign / f"{_plain(marker)}-{number}"
        written.append(_written(folder, marker, start, end, nodes=len(spans)))
    return written


def _source(place: Path) -> Source:
    if place.is_dir():
        if not any(place.glob(PATTERN)):
            raise UsageError(f"{place}: no {PATTERN} here; expected what `omnistat-query --export` writes")
        return CsvExport(place)
    if not place.is_file():
        raise UsageError(f"{place}: no such file or folder")
    return Export(place)


def _plain(text: str) -> str:
    return re.sub(r"[^\w.=+-]+", "-", text).strip("-.")[:LONGEST_NAME] or "export"


def _linked(source: Path, target: Path) -> None:
    """The file, without a second copy where the file system can do that."""
    target.unlink(missing_ok=True)
    with suppress(OSError):
        os.link(source.resolve(), target)
        return
    shutil.copyfile(source, target)


def _written(folder: Path, marker: str, start: float, end: float, *, nodes: int) -> Path:
    folder.mkdir(exist_ok=True)
    shown = sanitize_line(marker)[:LONGEST_NAME]
    case = {"id": folder.name, "name": shown, "suite": folder.parent.name, "system": "elsewhere", "program": PROGRAM,
            "parameters": {}, "point": {}, "nodes": nodes}  # fmt: skip
    events = [{"event": "start", "time_s": start}, {"event": "done", "time_s": end}]
    write_text(folder / "case.json", json.dumps(case, indent=2) + "\n")
    write_text(folder / FILE_NAME, "".join(json.dumps(e) + "\n" for e in events))
    write_text(folder / "exit_code", "0\n")
    return folder
