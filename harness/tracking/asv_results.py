"""What asv has written of a round -> entries of the history, with the raw samples."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

from harness.tracking.asv_runner import Session, read
from harness.tracking.history import Entry


def entries(session: Session, number: int) -> Iterator[Entry]:
    """What one round has measured so far; a benchmark that failed on a commit has no values there."""
    results = session.folder / f"round-{number:02}" / "results"
    described = read(results / "benchmarks.json")
    places = {commit.hash: (k, commit) for k, commit in enumerate(session.commits)}
    files = sorted((results / session.machine["machine"]).glob("*-*.json"))
    loaded = [found for found in map(read, files) if found.get("commit_hash") in places]
    several = len({found["env_name"] for found in loaded}) > 1
    for found in loaded:
        place, commit = places[found["commit_hash"]]
        for name, values in _values(found, described):
            yield Entry(
                "asv", session.id, commit.hash, commit.committed_s, commit.subject, place, session.machine_name,
                f"{name} [{found['env_name']}]" if several else name, described[name.split("(")[0]].get("unit", ""),
                "lower", session.project.threshold(name), number, tuple(values),
            )  # fmt: skip


def _values(found: dict[str, Any], described: dict[str, Any]) -> Iterator[tuple[str, list[float]]]:
    """Name with parameters, and samples, of every benchmark that asv tried and that is still the same."""
    for name, row in found["results"].items():
        columns = dict(zip(found["result_columns"], row, strict=False))
        if columns.get("version") != described.get(name, {}).get("version"):
            continue
        names = [name + (f"({', '.join(point)})" if point else "") for point in _points(columns.get("params") or [])]
        values = columns.get("result") or [None] * len(names)
        samples = columns.get("samples") or [None] * len(names)
        for full, value, raw in zip(names, values, samples, strict=False):
            if value is None:
                yield full, []
            elif not math.isnan(value):
                yield full, raw or [value]


def _points(params: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
    return list(itertools.product(*params))
