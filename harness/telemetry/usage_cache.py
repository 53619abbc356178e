"""Usages kept beside a campaign, so that hundreds of megabytes are not read for every report; safe to delete."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import orjson
from pydantic import BaseModel

from harness.host.atomic_files import write_bytes
from harness.telemetry.timeseries import Source
from harness.telemetry.usage import Usage
from harness.telemetry.windows import Window

FILE = "telemetry.cache.json"
VERSION = 2
LARGEST = 256 << 20


class Entry(NamedTuple):
    """What one source came to."""

    usages: list[Usage]
    version: str
    faults: str


class Plain(BaseModel, strict=True, extra="forbid"):
    """A usage without its window, as the file has it: NaN is null there."""

    source: str
    nodes_seen: int
    nodes: int
    interval_s: float | None
    samples: int
    energy_j: dict[str, float]
    how: dict[str, str]
    figures: dict[str, float]
    why_not: str
    missing: str


class Kept(BaseModel, strict=True, extra="forbid"):
    """What the file has of one source."""

    usages: list[Plain]
    told: str
    faults: str


@dataclass
class Memory:
    """The usages of one campaign's sources, by the state of their files and by the windows asked for."""

    folder: Path

    def __enter__(self) -> Memory:
        self._before: dict[str, Any] = {}
        self._now: dict[str, Any] = {}
        path = self.folder / FILE
        with suppress(OSError, orjson.JSONDecodeError):
            content = orjson.loads(path.read_bytes()) if path.stat().st_size < LARGEST else None
            if isinstance(content, dict) and content.get("version") == VERSION:
                sources = content.get("sources")
                self._before = sources if isinstance(sources, dict) else {}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is None and self._now and self._now != self._before:
            # Runs that were brought here from elsewhere may not be writable.
            with suppress(OSError):
                content = {"version": VERSION, "sources": self._now}
                options = orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY
                write_bytes(f"{self.folder}/{FILE}", orjson.dumps(content, option=options))

    def recall(self, source: Source, windows: Sequence[Window]) -> Entry | None:
        """What the source came to before, if nothing has changed since."""
        key = self._key(source, windows)
        kept = self._before.get(key)
        if kept is None:
            return None
        with suppress(ValueError):  # what is not as it was written is read from the source again
            known = Kept.model_validate(kept)
            pairs = zip(windows, known.usages, strict=True)
            entry = Entry([_usage(window, plain) for window, plain in pairs], known.told, known.faults)
            self._now[key] = kept
            return entry
        return None

    def keep(self, source: Source, windows: Sequence[Window], entry: Entry) -> None:
        """Remember what the source came to."""
        plain = [{k: v for k, v in vars(usage).items() if k != "window"} for usage in entry.usages]
        self._now[self._key(source, windows)] = {"usages": plain, "told": entry.version, "faults": entry.faults}

    def _key(self, source: Source, windows: Sequence[Window]) -> str:
        text = hashlib.sha256(repr(list(windows)).encode())
        for path in getattr(source, "paths", None) or sorted(source.path.glob("*.csv")):
            state = path.stat()
            text.update(f"{path.name} {state.st_size} {state.st_mtime_ns}".encode())
        return text.hexdigest()


def _usage(window: Window, plain: Plain) -> Usage:
    interval_s = math.nan if plain.interval_s is None else plain.interval_s
    return Usage(window, **{**plain.model_dump(), "interval_s": interval_s})
