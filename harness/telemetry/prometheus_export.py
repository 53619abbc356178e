"""Raw exports of the server's API: JSON lines, each `metric`, `values` and `timestamps` in milliseconds.

A series may lie on several lines anywhere in the file. A first pass notes where, a second reads one series at a time:
memory does not grow with the length of the file. What `query_range` answers, one object with values as text and times
in seconds, is read too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import orjson

from harness.telemetry.metrics import ABOUT, ANNOTATION, FIGURE_OF_MERIT, JOB, host_of, name_of, quantity_of
from harness.telemetry.timeseries import FIRST_S, LAST_S, Faults, Floats, Series, timed

ABOUT_JOB = {ANNOTATION, JOB, ABOUT}
NO_JSON, NO_SERIES, UNEQUAL, TORN = (
    "lines that are no JSON", "lines that are no series", "lines with values and times of unequal number",
    "last line torn off",
)  # fmt: skip
TOO_LONG, UNREADABLE = "lines of more than 32 MiB", "files that could not be read"
# Of what the server writes a line holds some thousands of samples; more memory than such a line takes is never used.
LONGEST = 32 << 20
# What the server writes, so that the labels of a line can be read without its numbers.
HEAD = re.compile(rb'\{"metric":(\{[^{}]*\}),"values":\[')
TIMES = b'"timestamps":['
Key = tuple[tuple[str, str], ...]


@dataclass
class Index:
    """Where the lines of each series are (labels -> file and offset), and what the first pass saw of times."""

    places: dict[Key, list[tuple[int, int]]] = field(default_factory=dict)
    spans: dict[str, tuple[float, float]] = field(default_factory=dict)

    def seen(self, host: str, first: float, last: float) -> None:
        """A series of the node has samples from first to last."""
        low, high = self.spans.get(host, (first, last))
        self.spans[host] = (min(low, first), max(high, last))


class Export:
    """A raw export on disk, in one file or in several, such as one a node."""

    def __init__(self, *paths: Path) -> None:
        self.path = paths[0]
        self.paths = paths
        self.faults = Faults()

    @cached_property
    def index(self) -> Index:
        """The first pass over the files."""
        found = Index()
        for which, path in enumerate(self.paths):
            try:
                with path.open("rb") as handle:
                    self._note_all(found, handle, which, path.name)
            except OSError as error:
                self.faults.add(UNREADABLE, f"{path.name}: {error.strerror}")
        return found

    def _note_all(self, index: Index, handle: BinaryIO, which: int, name: str) -> None:
        number = offset = 0
        while line := handle.readline(LONGEST):
            number += 1
            if len(line) == LONGEST and not line.endswith(b"\n"):
                self.faults.add(TOO_LONG, f"{name}:{number}")
                while (rest := handle.readline(LONGEST)) and not rest.endswith(b"\n"):
                    pass
            else:
                self._note(index, line, (which, offset), f"{name}:{number}")
            offset = handle.tell()

    def job_series(self) -> Iterator[Series]:
        """Those that tell of the job."""
        yield from self._read(lambda labels: labels.get("__name__") in ABOUT_JOB)

    def series(self) -> Iterator[Series]:
        """Those that the harness has a use for, each whole."""
        yield from self._read(lambda labels: quantity_of(labels) is not None or _is_merit(labels))

    def spans(self) -> Mapping[str, tuple[float, float]]:
        """Node -> times of its first and last sample."""
        return self.index.spans

    def _read(self, wanted: Callable[[Mapping[str, str]], bool]) -> Iterator[Series]:
        places = self.index.places
        with ExitStack() as stack:
            handles = [stack.enter_context(path.open("rb")) for path in self.paths]
            for key, offsets in places.items():
                labels = dict(key)
                if wanted(labels):
                    parts = [part for which, at in offsets for part in self._parts(handles[which], at, key)]
                    if parts:
                        times, values = (np.concatenate(column) for column in zip(*parts, strict=True))
                        yield Series(labels, *timed(times, values, self.faults, name_of(labels)))

    def _parts(self, handle: BinaryIO, offset: int, key: Key) -> Iterator[tuple[Floats, Floats]]:
        """Times in seconds and values of a series on the line at the offset."""
        handle.seek(offset)
        content = _loaded(handle.readline())
        if content is None:
            self.faults.add(NO_JSON, f"byte {offset}")
            return
        for labels, times, values in _rows(content):
            if len(times) != len(values):
                self.faults.add(UNEQUAL, f"byte {offset}")
            elif _key(labels) == key:
                yield times, values

    def _note(self, index: Index, line: bytes, offset: tuple[int, int], where: str) -> None:
        text = line.strip()
        if not text:
            return
        head = HEAD.match(text)
        if head and text.endswith(b"]}") and text.count(b"[") == 2:
            labels = _loaded(head[1])
            times = text[text.rfind(TIMES) + len(TIMES) : -2]
            if not _named(labels) or not times.strip():
                self.faults.add(NO_SERIES, where)
                return
            ends = times[: times.find(b",")] if b"," in times else times, times[times.rfind(b",") + 1 :]
            try:
                first, last = (float(end) / 1e3 for end in ends)
            except ValueError:
                self.faults.add(NO_JSON, where)
                return
            index.places.setdefault(_key(labels), []).append(offset)
            if FIRST_S <= first <= LAST_S and FIRST_S <= last <= LAST_S:
                index.seen(host_of(labels), first, last)
            return
        self._note_whole(index, line, offset, where)

    def _note_whole(self, index: Index, line: bytes, offset: tuple[int, int], where: str) -> None:
        """A line in another order, an answer of query_range, or none of these."""
        content = _loaded(line)
        if content is None:
            self.faults.add(NO_JSON if line.endswith(b"\n") else TORN, where)
            return
        rows = _rows(content)
        if not rows:
            self.faults.add(NO_SERIES, where)
        for labels, times, _ in rows:
            index.places.setdefault(_key(labels), []).append(offset)
            known = times[(times >= FIRST_S) & (times <= LAST_S)]
            if len(known):
                index.seen(host_of(labels), float(known.min()), float(known.max()))


def _is_merit(labels: Mapping[str, str]) -> bool:
    return labels.get("__name__") == FIGURE_OF_MERIT


def _named(labels: Any) -> bool:
    """Whether these are labels: texts by name, the metric's own among them."""
    return isinstance(labels, dict) and "__name__" in labels and all(isinstance(v, str) for v in labels.values())


def _key(labels: Mapping[str, Any]) -> Key:
    return tuple(sorted((str(name).strip(), str(value).strip()) for name, value in labels.items()))


def _loaded(text: bytes) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return None


def _rows(content: Any) -> list[tuple[dict[str, Any], Floats, Floats]]:
    """Labels, times in seconds and values of each series of a line; none if it is something else."""
    if not isinstance(content, dict):
        return []
    if "data" in content:
        results = content["data"].get("result") if isinstance(content["data"], dict) else None
        results = results if isinstance(results, list) else []
        return [row for result in results if isinstance(result, dict) for row in _queried(result)]
    labels, values, times = (content.get(name) for name in ("metric", "values", "timestamps"))
    if not _named(labels) or not isinstance(values, list) or not isinstance(times, list):
        return []
    assert isinstance(labels, dict)
    return [(labels, _numbers(times) / 1e3, _numbers(values))]


def _queried(result: Mapping[str, Any]) -> Iterator[tuple[dict[str, Any], Floats, Floats]]:
    labels, pairs = result.get("metric"), result.get("values")
    if isinstance(labels, dict) and _named(labels) and isinstance(pairs, list):
        sound = [pair for pair in pairs if isinstance(pair, list) and len(pair) == 2]
        yield labels, _numbers([pair[0] for pair in sound]), _numbers([pair[1] for pair in sound])


def _numbers(values: list[Any]) -> Floats:
    """As floats; what is no number becomes NaN."""
    try:
        found = np.array(values, dtype=float)
    except (TypeError, ValueError, OverflowError):
        found = None
    if found is None or found.ndim != 1:
        found = np.array([_number(value) for value in values], dtype=float)
    return found


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return float("nan")
