"""Usages kept beside a campaign, so that hundreds of megabytes are not read for every report; safe to delete."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import orjson

from harness.collect.telemetry.series import Source
from harness.collect.telemetry.usage import Usage
from harness.collect.telemetry.windows import Window
from harness.jobs.files import write_bytes

FILE = "telemetry.cache.json"
VERSION = 1


class Entry(NamedTuple):
    """What one source came to."""

    usages: list[Usage]
    version: str
    faults: str


@dataclass
class Memory:
    """The usages of one campaign's sources, by the state of their files and by the windows asked for."""

    folder: Path

    def __enter__(self) -> Memory:
        self._before: dict[str, Any] = {}
        self._now: dict[str, Any] = {}
        with suppress(OSError, orjson.JSONDecodeError, AttributeError):
            content = orjson.loads((self.folder / FILE).read_bytes())
            self._before = content["sources"] if content.get("version") == VERSION else {}
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
        self._now[key] = kept
        with suppress(KeyError, TypeError, ValueError):
            pairs = zip(windows, kept["usages"], strict=True)
            return Entry([Usage(window, **_numbers(plain)) for window, plain in pairs], kept["told"], kept["faults"])
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


def _numbers(plain: dict[str, Any]) -> dict[str, Any]:
    """JSON knows no NaN."""
    return {k: float("nan") if v is None else v for k, v in plain.items()}
