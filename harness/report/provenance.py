"""The page on provenance: code, environment and machine of every case."""

from __future__ import annotations

import math
import time
from pathlib import Path

from harness.document.blocks import EN_DASH, Cell, Link, Section, TableBlock, format_number
from harness.protocol.text import pluralize
from harness.results.runs import RunRecord

FILES = ("events.jsonl", "stdout", "stderr", "job.sh", "case.json")


def build_provenance_section(records: list[RunRecord], out: Path) -> Section:
    """Return the section on code, environment and machine of every case."""
    heads = (
        "case", "raw records", "submitted", "commit", "machine", "device", "highest load", "dtype of weights",
        "packages",
    )  # fmt: skip
    note = (
        "Highest load: the largest one-minute load average at the start of a round. A load well above the number of"
        " threads shows that other processes were running."
    )
    block = TableBlock("Cases", list(heads), [_describe_run(record, out) for record in records], note)
    return Section("Provenance", "provenance", views=[block])


def _describe_run(record: RunRecord, out: Path) -> list[Cell]:
    p, observed = record.provenance, record.facts.get("observed", {})
    changed = " + changes" if p.get("changed_since_commit") else ""
    submitted = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(p["time_s"])) if "time_s" in p else EN_DASH
    load = max((s["load_1min"] for s in record.samples if "load_1min" in s), default=math.nan)
    cores = pluralize(p["cores"], "core") if p.get("cores") else EN_DASH
    memory = f"{p['memory_bytes'] / 2**30:.0f} GiB" if p.get("memory_bytes") else EN_DASH
    threads = pluralize(observed["threads"], "thread") if "threads" in observed else EN_DASH
    return [
        record.case.get("name", ""),
        link_files(record, out),
        submitted,
        record.provenance_fault or (p.get("commit") or "not a clone")[:12] + changed,
        f"{p.get('cpu', EN_DASH)}, {cores}, {memory}",
        f"{observed.get('device', EN_DASH)}, {threads}",
        format_number(load, ".1f"),
        ", ".join(observed.get("parameters", [])) or EN_DASH,
        ", ".join(f"{name} {version}" for name, version in p.get("packages", {}).items()),
    ]


def link_files(record: RunRecord, out: Path) -> tuple[Link, ...]:
    """Return links to the files of a case if its folder is below the report."""
    if not record.folder.is_relative_to(out):
        return ()
    folder = record.folder.relative_to(out)
    return tuple(Link(name, f"{folder}/{name}") for name in FILES if (record.folder / name).exists())
