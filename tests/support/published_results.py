"""The published results in reports/measured, and older results, which are unpacked once for all tests of a process.

results-0.1.0.tar.xz is a bundle of `nox -s reproduce` by version 0.1.0 of the harness, whose logs have older names.
"""

from __future__ import annotations

import atexit
import io
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import orjson
import pytest
from matplotlib.figure import Figure

from harness.protocol.case import upgrade_case
from harness.protocol.events import EVENTS_FILE, VERSION
from harness.protocol.upgrade import convert_event
from harness.results.bundles import unpack_bundle
from tests.conftest import ROOT

PUBLISHED = ROOT / "reports" / "measured"
OLDER = "0.1.0"
FILES = ("case.json", "events.jsonl", "exit_code", "provenance.json")
# One finished case of each program: a published result and the case's folder below its runs.
CASES = (
    (".", "ladder-337-local/ladder-337-harness-fp64-8b09e52931"),
    (".", "training-steps-local/training-steps-harness-fp64-e8ffe044cf"),
    *((OLDER, name) for name in (
        "hpo-local/hpo-egnn-1510a10c74", "scaling-local/scaling-weak-per_node_2-4dd3d0a251",
        "precision-local/precision-egnn-01bc721342", "pretrain-short-local/pretrain-short-f1aed702a7",
        "transfer-local/transfer-qm9-199717ed4d", "screening-local/screening-prototypes-judged-cecba89919",
        "screening-local/screening-prototypes-few-2e59583ea6", "data-local/data-convert-ani1x-per_node_1-8637319116",
        "data-local/data-read-all-per_node_2-48120d3c7a", "ladder-local/ladder-crystals-fp32-4ba82fe5bf",
    )),
)  # fmt: skip
NAMES = sorted(str(p.parent.relative_to(PUBLISHED)) for p in PUBLISHED.rglob("runs.tar.xz"))


@cache
def unpack_results(name: str) -> Path:
    """Return a results folder with the run folders of a published result or of OLDER, which tests must not change."""
    folder = Path(tempfile.mkdtemp(prefix="gfm-harness-published-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    bundle = Path(__file__).with_name("results-0.1.0.tar.xz") if name == OLDER else PUBLISHED / name / "runs.tar.xz"
    unpack_bundle(bundle, folder)
    return folder


def copy_case(result: str, case: str, campaign: Path) -> Path:
    """Copy one of CASES, with fewer events of frequent kinds, into a campaign and return the case's folder."""
    folder = campaign / Path(case).name
    folder.mkdir(parents=True)
    for name in FILES:
        shutil.copyfile(unpack_results(result) / "runs" / case / name, folder / name)
    lines = (folder / "events.jsonl").read_bytes().splitlines(keepends=True)
    frequent = [b'"event": "progress"', b'"event": "own_step"', b'"event": "module"', b'"event": "label"']
    selected = [x for k, x in enumerate(lines) if k % 8 == 0 or not any(kind in x for kind in frequent)]
    (folder / "events.jsonl").write_bytes(b"".join(selected))
    return folder


def convert_to_present(folder: Path) -> None:
    """Rewrite case.json and the event log of a case folder in the current version of their formats."""
    case = upgrade_case(orjson.loads((folder / "case.json").read_bytes())) | {"version": VERSION}
    (folder / "case.json").write_bytes(orjson.dumps(case))
    events = [convert_event(case["program"], orjson.loads(line)) for line in (folder / EVENTS_FILE).open("rb")]
    events = [event | ({"version": VERSION} if event["event"] == "start" else {}) for event in events]
    (folder / EVENTS_FILE).write_bytes(b"".join(orjson.dumps(event) + b"\n" for event in events))


def stop_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let figures neither be drawn nor saved, which takes most of the time of a report."""
    monkeypatch.setattr(Figure, "savefig", _save_nothing)
    monkeypatch.setattr(Figure, "draw_without_rendering", lambda figure: None)


def _save_nothing(figure: Figure, file: Any, **options: Any) -> None:
    del figure, options
    if isinstance(file, io.StringIO):
        file.write("<svg></svg>")
