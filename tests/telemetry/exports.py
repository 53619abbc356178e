"""Build exports in the formats of Omnistat, of nodes with known power, counters and faults."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from harness.results.runs import load_runs
from harness.telemetry.collect import Telemetry, collect_usage
from harness.telemetry.usage import Usage

T0 = 1795343604.0  # start of all recordings, as Unix time
Samples = Sequence[tuple[float, float]]


@dataclass
class Recording:
    """Time series with their labels; each sample is (seconds since T0, value)."""

    series: list[tuple[dict[str, str], Samples]] = field(default_factory=list)

    def add(self, metric: str, node: str, samples: Iterable[tuple[float, float]], /, **labels: str) -> Recording:
        """Add a series."""
        self.series.append(({"__name__": metric, "instance": node, **labels, "user": "u"}, list(samples)))
        return self

    def format_lines(self) -> list[str]:
        """Return the lines that the API of VictoriaMetrics exports."""
        return [format_line(labels, samples) for labels, samples in self.series]

    def write(self, path: Path) -> Path:
        """Write the raw export."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{text}\n" for text in self.format_lines()))
        return path

    def write_csv(self, path: Path, *levels: str) -> Path:
        """Write CSV as `omnistat-query --export` does: label rows, a grid with gaps, names that begin with a blank."""
        times = sorted({t for _, samples in self.series for t, _ in samples})
        rows = [["metric", *(f" {labels['__name__']}" for labels, _ in self.series)]]
        rows += [[level, *(labels.get(level, "") for labels, _ in self.series)] for level in ("instance", *levels)]
        rows.append(["timestamp", *("" for _ in self.series)])
        columns = [dict(samples) for _, samples in self.series]
        rows += [[format_time(t), *(str(c.get(t, "")) for c in columns)] for t in times]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(",".join(row) + "\n" for row in rows))
        return path


def format_line(labels: Mapping[str, str], samples: Samples) -> str:
    """Format a series as a line of the raw export."""
    content: dict[str, Any] = {
        "metric": dict(labels),
        "values": [v for _, v in samples],
        "timestamps": [round(1e3 * (T0 + t)) for t, _ in samples],
    }
    return json.dumps(content, separators=(",", ":"))


def format_time(t: float) -> str:
    """Format a time as naive UTC; the fraction of a second is left out if it is zero."""
    return str(datetime.fromtimestamp(T0 + t, UTC).replace(tzinfo=None))


def sample(step: float, until: float, value: Any, start: float = 0.0) -> list[tuple[float, float]]:
    """Return samples of a function of time, or of a constant, every `step` seconds."""
    count = round((until - start) / step) + 1
    times = [start + k * step for k in range(count)]
    return [(t, value(t) if callable(value) else value) for t in times]


def write_case(
    root: Path, name: str, start: float, end: float, *, nodes: Sequence[str] = (),
    events: Iterable[Mapping[str, Any]] = (), program: str = "ladder", campaign: str = "mine", **parameters: Any,
) -> Path:  # fmt: skip
    """Write the run folder of a case that ran from start to end, in seconds since T0."""
    folder = root / "runs" / campaign / name
    folder.mkdir(parents=True)
    if program == "ladder":
        parameters = {"precision": "fp64"} | parameters
    content = {
        "name": name, "id": name, "suite": "mine", "system": "here", "program": program, "parameters": parameters,
        "axis_values": {}, "nodes": max(1, len(nodes)), "ranks_per_node": 8, "ranks": 8 * max(1, len(nodes)),
    }  # fmt: skip
    (folder / "case.json").write_text(json.dumps(content))
    lines = [{"event": "start", "time_s": T0 + start}, *events, {"event": "done", "time_s": T0 + end}]
    (folder / "events.jsonl").write_text("".join(json.dumps(e) + "\n" for e in lines))
    (folder / "exit_code").write_text("0\n1\n")
    if nodes:
        (folder / "nodes").write_text("".join(f"{node}\n" for node in nodes))
    return folder


def make_trial_event(number: int, start: float, end: float, nodes: Sequence[str]) -> dict[str, Any]:
    """Return the event of a search's trial, in seconds since T0."""
    return {
        "event": "trial", "trial": number, "configuration": {}, "backbone": "painn", "state": "done", "objective": None,
        "start_time_s": T0 + start, "end_time_s": T0 + end, "nodes": list(nodes), "node_hours": (end - start) / 3600,
        "folder": f"trials/{number}", "time_s": T0 + end,
    }  # fmt: skip


def collect_telemetry(root: Path) -> Telemetry:
    """Collect the telemetry of the run folders below root."""
    return collect_usage(load_runs(root / "runs"))


def get_usage(root: Path, name: str, scope: str = "case", part: str = "") -> Usage:
    """Return the usage of one case, or of a part of it."""
    (usage,) = (
        u
        for u in collect_telemetry(root).usages
        if u.window.folder.endswith(f"/{name}") and (u.window.scope, u.window.name) == (scope, part)
    )
    return usage
