"""Everything ever measured of a project's commits: <out>/history.jsonl, one line a measurement, only appended to.

A line is an Entry as JSON beside its `version`. Lines that are torn, foreign or of another version are counted and
passed over, so that files of several machines can be joined by `cat`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import orjson

from harness.host.atomic_files import append_below

FILE_NAME = "history.jsonl"
VERSION = 1
Better = Literal["lower", "higher"]
Key = tuple[str, str, str, str, str, int | None]


@dataclass(frozen=True)
class Entry:
    """What one machine measured of one commit, at one time.

    source: asv or campaign. session: what was measured together, in turns, and may be compared row by row. place:
    the commit's among those of its session, or in the history of its clone. threshold: the least relative change that
    counts. round: which turn, None for a run by itself. values: raw samples; none if the benchmark failed.
    """

    source: Literal["asv", "campaign"]
    session: str
    commit: str
    committed_s: int
    subject: str
    place: int
    machine: str
    name: str
    unit: str
    better: Better
    threshold: float
    round: int | None
    values: tuple[float, ...]

    @property
    def key(self) -> Key:
        """Equal keys are the same measurement."""
        return self.source, self.session, self.machine, self.commit, self.name, self.round


@dataclass(frozen=True)
class History:
    """The measurements, oldest line first, and how many lines are not told of."""

    entries: list[Entry]
    passed_over: int


def read(path: Path) -> History:
    """Every measurement once; the first line of a key counts, but a failure yields to a later success."""
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return History([], 0)
    found: dict[Key, Entry] = {}
    passed_over = 0
    for line in lines:
        entry = parsed(line)
        if entry is None:
            passed_over += bool(line.strip())
        elif entry.key not in found or not found[entry.key].values:
            found[entry.key] = entry
    return History(list(found.values()), passed_over)


def append(path: Path, entries: Iterable[Entry]) -> int:
    """Add those that the file does not hold yet, in one write; how many they were."""
    known = {entry.key: bool(entry.values) for entry in read(path).entries}
    new = [entry for entry in entries if not known.get(entry.key, False) and (entry.values or entry.key not in known)]
    if not new:
        return 0
    torn = path.exists() and path.read_bytes()[-1:] not in (b"", b"\n")
    append_below(path.parent, path.name, b"\n" * torn + b"".join(map(_line, new)))
    return len(new)


def parsed(line: bytes) -> Entry | None:
    """The measurement of a line; None if it holds none that this version understands."""
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(value, dict) or value.pop("version", None) != VERSION or value.keys() != KINDS.keys():
        return None
    sound = all(isinstance(value[name], kind) and not isinstance(value[name], bool) for name, kind in KINDS.items())
    if not sound or not all(map(_is_number, (*value["values"], value["threshold"]))):
        return None
    if value["source"] not in ("asv", "campaign") or value["better"] not in ("lower", "higher"):
        return None
    return Entry(**value | {"values": tuple(map(float, value["values"]))})


def _line(entry: Entry) -> bytes:
    return orjson.dumps({"version": VERSION, **asdict(entry)}, option=orjson.OPT_APPEND_NEWLINE)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


OTHER_KINDS: dict[str, tuple[type, ...]] = {
    "committed_s": (int,), "place": (int,), "threshold": (float, int), "round": (int, type(None)), "values": (list,),
}  # fmt: skip
KINDS = {f.name: OTHER_KINDS.get(f.name, (str,)) for f in fields(Entry)}
