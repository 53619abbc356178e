"""The section of the report on what the numbers rest on: code, environment and machine of every case."""

from __future__ import annotations

import math
import time
from pathlib import Path

from harness.document.blocks import DASH, Link, Section, View, number
from harness.protocol.text import count
from harness.results.runs import Record

KEPT = ("events.jsonl", "stdout", "stderr", "job.sh", "case.json")


def provenance_section(records: list[Record], out: Path) -> Section:
    """Code, environment and machine of every case."""
    rows = []
    for r in records:
        p, seen = r.provenance, r.facts.get("observed", {})
        changed = " + changes" if p.get("changed_since_commit") else ""
        when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(p["time_s"])) if "time_s" in p else DASH
        load = max((s["load_1min"] for s in r.samples if "load_1min" in s), default=math.nan)
        cores = count(p["cores"], "core") if p.get("cores") else DASH
        memory = f"{p['memory_bytes'] / 2**30:.0f} GiB" if p.get("memory_bytes") else DASH
        threads = count(seen["threads"], "thread") if "threads" in seen else DASH
        commit = r.provenance_fault or (p.get("commit") or "not a clone")[:12] + changed
        rows.append(
            [
                r.case.get("name", ""), files(r, out), when, commit,
                f"{p.get('cpu', DASH)}, {cores}, {memory}",
                f"{seen.get('device', DASH)}, {threads}", number(load, ".1f"),
                ", ".join(seen.get("parameters", [])) or DASH,
                ", ".join(f"{k} {v}" for k, v in p.get("packages", {}).items()),
            ]
        )  # fmt: skip
    columns = [
        "case",
        "raw records",
        "submitted",
        "commit",
        "machine",
        "device",
        "highest load",
        "dtype of weights",
        "packages",
    ]
    note = (
        "Load: the highest one-minute load average at the start of a round; well above the thread count, others were"
        " at work."
    )
    return Section("Provenance", "provenance", views=[View("Cases", columns, rows, note)])


def files(record: Record, out: Path) -> tuple[Link, ...]:
    """What a case has left, where it lies below the report."""
    if not record.folder.is_relative_to(out):
        return ()
    own = record.folder.relative_to(out)
    return tuple(Link(name, f"{own}/{name}") for name in KEPT if (record.folder / name).exists())
