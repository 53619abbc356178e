"""Exports as the real tool writes them, of nodes whose power, work and faults are known."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from harness.results.runs import load
from harness.telemetry.collect import Telemetry, gather
from harness.telemetry.usage import Usage

T0 = 1795343604.0
Samples = Sequence[tuple[float, float]]


@dataclass
class Recorded:
    """Series by labels; each is a list of (seconds since T0, value)."""

    series: list[tuple[dict[str, str], Samples]] = field(default_factory=list)

    def add(self, metric: str, node: str, samples: Iterable[tuple[float, float]], /, **labels: str) -> Recorded:
        """One more series."""
        self.series.append(({"__name__": metric, "instance": node, **labels, "user": "u"}, list(samples)))
        return self

    def lines(self) -> list[str]:
        """As the server's API exports it."""
        return [line(labels, samples) for labels, samples in self.series]

    def write(self, path: Path) -> Path:
        """The raw export."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{text}\n" for text in self.lines()))
        return path

    def write_csv(self, path: Path, *levels: str) -> Path:
        """As `omnistat-query --export` writes it: label levels, a grid with blanks, names with a leading blank."""
        times = sorted({t for _, samples in self.series for t, _ in samples})
        rows = [["metric", *(f" {labels['__name__']}" for labels, _ in self.series)]]
        rows += [[level, *(labels.get(level, "") for labels, _ in self.series)] for level in ("instance", *levels)]
        rows.append(["timestamp", *("" for _ in self.series)])
        columns = [dict(samples) for _, samples in self.series]
        rows += [[stamp(t), *(str(c.get(t, "")) for c in columns)] for t in times]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(",".join(row) + "\n" for row in rows))
        return path


def line(labels: Mapping[str, str], samples: Samples) -> str:
    """One series on one line."""
    content: dict[str, Any] = {
        "metric": dict(labels),
        "values": [v for _, v in samples],
        "timestamps": [round(1e3 * (T0 + t)) for t, _ in samples],
    }
    return json.dumps(content, separators=(",", ":"))


def stamp(t: float) -> str:
    """Naive UTC, with a fraction only where there is one."""
    return str(datetime.fromtimestamp(T0 + t, UTC).replace(tzinfo=None))


def every(step: float, until: float, value: Any, start: float = 0.0) -> list[tuple[float, float]]:
    """Samples of a function of time, or of a constant."""
    count = round((until - start) / step) + 1
    times = [start + k * step for k in range(count)]
    return [(t, value(t) if callable(value) else value) for t in times]


def case(
    root: Path, name: str, start: float, end: float, *, nodes: Sequence[str] = (),
    events: Iterable[Mapping[str, Any]] = (), program: str = "ladder", campaign: str = "mine", **parameters: Any,
) -> Path:  # fmt: skip
    """A run folder of a case that ran from start to end, in seconds since T0."""
    folder = root / "runs" / campaign / name
    folder.mkdir(parents=True)
    if program == "ladder":
        parameters = {"precision": "fp64"} | parameters
    plain = {"name": name, "id": name, "suite": "mine", "system": "here", "program": program, "parameters": parameters,
             "point": {}, "nodes": max(1, len(nodes)), "ranks_per_node": 8,
             "ranks": 8 * max(1, len(nodes))}  # fmt: skip
    (folder / "case.json").write_text(json.dumps(plain))
    told = [{"event": "start", "time_s": T0 + start}, *events, {"event": "done", "time_s": T0 + end}]
    (folder / "events.jsonl").write_text("".join(json.dumps(e) + "\n" for e in told))
    (folder / "exit_code").write_text("0\n1\n")
    if nodes:
        (folder / "nodes").write_text("".join(f"{node}\n" for node in nodes))
    return folder


def trial_event(number: int, start: float, end: float, nodes: Sequence[str]) -> dict[str, Any]:
    """Return the event of a search's trial, in seconds since T0."""
    return {
        "event": "trial", "trial": number, "configuration": {}, "backbone": "painn", "state": "done", "objective": None,
        "began_s": T0 + start, "ended_s": T0 + end, "nodes": list(nodes), "node_hours": (end - start) / 3600,
        "folder": f"trials/{number}", "time_s": T0 + end,
    }  # fmt: skip


def gathered(root: Path) -> Telemetry:
    """What the harness makes of the run folders below root."""
    return gather(load(root / "runs"))


def usage_of(root: Path, name: str, what: str = "case", piece: str = "") -> Usage:
    """What one case, or a piece of it, used."""
    found = gathered(root).usages
    return next(
        u for u in found if u.window.folder.endswith(f"/{name}") and (u.window.what, u.window.name) == (what, piece)
    )
