"""The report shows a log in which any one of the optional fields is absent or empty."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from harness.claims.papers import load_papers
from harness.experiments.hpo import metrics
from harness.protocol.events import Event, find_invalid_event
from harness.report import render
from harness.report.render import write_report
from tests.support.published_results import CASES, convert_to_present, copy_case, stop_drawing

pytestmark = pytest.mark.slow
FieldPath = tuple[str, ...]
ABSENT = object()


@pytest.mark.parametrize(("result", "case"), CASES)
def test_report_shows_a_log_without_an_optional_field(
    result: str, case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_drawing(monkeypatch)
    monkeypatch.setattr(metrics, "PERMUTATIONS", 20)
    papers = load_papers()
    monkeypatch.setattr(render, "load_papers", lambda files: papers)
    folder = copy_case(result, case, tmp_path / "runs" / "campaign")
    convert_to_present(folder)
    log = folder / "events.jsonl"
    events = [orjson.loads(line) for line in log.read_bytes().splitlines()]
    program = orjson.loads((folder / "case.json").read_bytes())["program"]
    problems, reports = [], 0
    for description, changed in _iter_variants(events):
        if find_invalid_event(program, changed) is not None:
            continue  # the field is required
        reports += 1
        log.write_bytes(b"".join(orjson.dumps(event) + b"\n" for event in changed))
        try:
            write_report(tmp_path)
        except Exception as error:
            problems.append(f"{description}: {error!r}")
            continue
        lines = (tmp_path / "report.md").read_text().splitlines()
        problems += [f"{description}: {line}" for line in lines if "cannot be shown" in line]
    assert reports
    assert not problems, "\n".join(problems)


def _iter_variants(events: list[Event]) -> Iterator[tuple[str, list[Event]]]:
    """Yield the log without each kind of event, and with each field of each kind absent or empty."""
    for kind in sorted({_get_kind(event) for event in events} - {"start"}):
        yield f"no {kind}", [event for event in events if _get_kind(event) != kind]
    for kind, path, is_container in sorted({field for event in events for field in _list_fields(event)}):
        for value in (ABSENT, [], {}) if is_container else (ABSENT,):
            description = f"{kind}.{'.'.join(path)} {'absent' if value is ABSENT else 'empty'}"
            yield description, [_replace(event, path, value) if _get_kind(event) == kind else event for event in events]


def _get_kind(event: Event) -> str:
    return f"fact {event['name']}" if event["event"] == "fact" else str(event["event"])


def _list_fields(event: Event) -> Iterator[tuple[str, FieldPath, bool]]:
    for path, value in _walk(event):
        if path not in {("event",), ("name",)}:
            yield _get_kind(event), path, isinstance(value, list | dict)


def _walk(value: Any) -> Iterator[tuple[FieldPath, Any]]:
    """Yield the path and the value of every field; a list is represented by its first item."""
    if isinstance(value, list):
        for item in value[:1]:
            yield from _walk(item)
    elif isinstance(value, dict):
        for key, child in value.items():
            yield (key,), child
            yield from (((key, *path), descendant) for path, descendant in _walk(child))


def _replace(value: Any, path: FieldPath, new: Any) -> Any:
    """Return a copy with another value at the path; lists along the path are changed in every item."""
    if isinstance(value, list):
        return [_replace(item, path, new) for item in value]
    if not isinstance(value, dict) or path[0] not in value:
        return value
    if len(path) > 1:
        return value | {path[0]: _replace(value[path[0]], path[1:], new)}
    rest = {key: child for key, child in value.items() if key != path[0]}
    return rest if new is ABSENT else rest | {path[0]: new}
