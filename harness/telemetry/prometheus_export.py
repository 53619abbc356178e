"""Raw exports of Omnistat's server (VictoriaMetrics), as JSON lines.

A line has the keys `metric`, `values` and `timestamps` (in milliseconds). A series may be spread over several lines
anywhere in the file. A first pass indexes the lines, and a second pass reads one series at a time, so that memory does
not grow with the length of the file. The reader also accepts a response of `query_range`, one object with values as
text and times in seconds.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import orjson

from harness.telemetry.metrics import (
    ANNOTATION,
    COLLECTOR_INFO,
    FIGURE_OF_MERIT,
    JOB_INFO,
    format_name,
    get_host,
    identify_quantity,
)
from harness.telemetry.timeseries import FIRST_S, LAST_S, Faults, Floats, Series, drop_untimed

JOB_METRICS = {ANNOTATION, JOB_INFO, COLLECTOR_INFO}
INVALID_JSON, NOT_A_SERIES, UNEQUAL, TRUNCATED_LINE = (
    "lines that are not JSON", "lines that are not a series", "lines with unequal numbers of values and times",
    "truncated last line",
)  # fmt: skip
MAX_LINE_BYTES = 32 << 20  # the server writes some thousands of samples on a line; longer lines are skipped
TOO_LONG, UNREADABLE = f"lines of more than {MAX_LINE_BYTES >> 20} MiB", "files that could not be read"
# The start of a line as the server writes it; matching it makes parsing the numbers unnecessary.
LINE_START = re.compile(rb'\{"metric":(\{[^{}]*\}),"values":\[')
TIMESTAMPS = b'"timestamps":['
# A job has a file per node, but a process may only open about a thousand at a time.
MAX_OPEN_FILES = 64
Key = tuple[tuple[str, str], ...]


@dataclass
class Index:
    """The positions of the lines of each series, and the time span of each node.

    Attributes:
        positions: File index and byte offset of each line of a series, by the labels of the series.
        spans: Unix times of the first and the last sample, by node.
    """

    positions: dict[Key, list[tuple[int, int]]] = field(default_factory=dict)
    spans: dict[str, tuple[float, float]] = field(default_factory=dict)

    def update_span(self, host: str, first: float, last: float) -> None:
        """Extend the span of a node by that of one of its series."""
        low, high = self.spans.get(host, (first, last))
        self.spans[host] = (min(low, first), max(high, last))


class PrometheusExport:
    """A raw export on disk, in one file or in several, such as one per node."""

    def __init__(self, *paths: Path) -> None:
        self.path = paths[0]
        self.paths = paths
        self.faults = Faults()

    @cached_property
    def index(self) -> Index:
        """The index of the files, which a first pass builds."""
        index = Index()
        for file_index, path in enumerate(self.paths):
            try:
                with path.open("rb") as handle:
                    self._index_file(index, handle, file_index, path.name)
            except OSError as error:
                self.faults.add(UNREADABLE, f"{path.name}: {error.strerror}")
        return index

    def _index_file(self, index: Index, handle: BinaryIO, file_index: int, name: str) -> None:
        number = offset = 0
        while line := handle.readline(MAX_LINE_BYTES):
            number += 1
            if len(line) == MAX_LINE_BYTES and not line.endswith(b"\n"):
                self.faults.add(TOO_LONG, f"{name}:{number}")
                while (rest := handle.readline(MAX_LINE_BYTES)) and not rest.endswith(b"\n"):
                    pass
            else:
                self._index_line(index, line, (file_index, offset), f"{name}:{number}")
            offset = handle.tell()

    def iter_job_series(self) -> Iterator[Series]:
        """Yield the series about the job."""
        yield from self._read(lambda labels: labels.get("__name__") in JOB_METRICS)

    def iter_series(self) -> Iterator[Series]:
        """Yield the complete series that the harness uses."""
        yield from self._read(_is_used)

    def get_spans(self) -> Mapping[str, tuple[float, float]]:
        """Return the Unix times of the first and the last sample of each node."""
        return self.index.spans

    def _read(self, is_selected: Callable[[Mapping[str, str]], bool]) -> Iterator[Series]:
        positions = self.index.positions
        with _OpenFiles(self.paths) as files:
            for key, lines in positions.items():
                labels = dict(key)
                if not is_selected(labels):
                    continue
                parts = [
                    part for file_index, offset in lines for part in self._read_line(files.get(file_index), offset, key)
                ]
                if parts:
                    times, values = (np.concatenate(column) for column in zip(*parts, strict=True))
                    yield Series(labels, *drop_untimed(times, values, self.faults, format_name(labels)))

    def _read_line(self, handle: BinaryIO, offset: int, key: Key) -> Iterator[tuple[Floats, Floats]]:
        """Yield times in seconds and values of a series on the line at a byte offset."""
        handle.seek(offset)
        content = _parse_json(handle.readline())
        if content is None:
            self.faults.add(INVALID_JSON, f"byte {offset}")
            return
        for labels, times, values in _parse_rows(content):
            if len(times) != len(values):
                self.faults.add(UNEQUAL, f"byte {offset}")
            elif _make_key(labels) == key:
                yield times, values

    def _index_line(self, index: Index, line: bytes, position: tuple[int, int], location: str) -> None:
        """Add a line to the index.

        Args:
            index: The index.
            line: The line.
            position: The index of the file and the byte offset of the line.
            location: The name of the file and the number of the line, for messages.
        """
        text = line.strip()
        if not text:
            return
        start = LINE_START.match(text)
        if start and text.endswith(b"]}") and text.count(b"[") == 2:
            labels = _parse_json(start[1])
            times = text[text.rfind(TIMESTAMPS) + len(TIMESTAMPS) : -2]
            if not _are_labels(labels) or not times.strip():
                self.faults.add(NOT_A_SERIES, location)
                return
            ends = times[: times.find(b",")] if b"," in times else times, times[times.rfind(b",") + 1 :]
            try:
                first, last = (float(end) / 1e3 for end in ends)
            except ValueError:
                self.faults.add(INVALID_JSON, location)
                return
            index.positions.setdefault(_make_key(labels), []).append(position)
            if FIRST_S <= first <= LAST_S and FIRST_S <= last <= LAST_S:
                index.update_span(get_host(labels), first, last)
            return
        self._index_nonstandard_line(index, line, position, location)

    def _index_nonstandard_line(self, index: Index, line: bytes, position: tuple[int, int], location: str) -> None:
        """Index a line whose keys are in another order, or a response of query_range."""
        content = _parse_json(line)
        if content is None:
            self.faults.add(INVALID_JSON if line.endswith(b"\n") else TRUNCATED_LINE, location)
            return
        rows = _parse_rows(content)
        if not rows:
            self.faults.add(NOT_A_SERIES, location)
        for labels, times, _ in rows:
            index.positions.setdefault(_make_key(labels), []).append(position)
            valid = times[(times >= FIRST_S) & (times <= LAST_S)]
            if len(valid):
                index.update_span(get_host(labels), float(valid.min()), float(valid.max()))


class _OpenFiles:
    """The files of an export, of which at most MAX_OPEN_FILES are open at a time; a context manager."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths, self._handles = paths, dict[int, BinaryIO]()

    def __enter__(self) -> _OpenFiles:
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles.values():
            handle.close()

    def get(self, index: int) -> BinaryIO:
        """Return the open file with this index; the file that was opened first may be closed."""
        if index not in self._handles:
            if len(self._handles) == MAX_OPEN_FILES:
                self._handles.pop(next(iter(self._handles))).close()
            self._handles[index] = self._paths[index].open("rb")
        return self._handles[index]


def _is_used(labels: Mapping[str, str]) -> bool:
    return identify_quantity(labels) is not None or labels.get("__name__") == FIGURE_OF_MERIT


def _are_labels(labels: Any) -> bool:
    """Return whether these are labels: a mapping from names to strings that includes the name of the metric."""
    return isinstance(labels, dict) and "__name__" in labels and all(isinstance(v, str) for v in labels.values())


def _make_key(labels: Mapping[str, Any]) -> Key:
    return tuple(sorted((str(name).strip(), str(value).strip()) for name, value in labels.items()))


def _parse_json(text: bytes) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return None


def _parse_rows(content: Any) -> list[tuple[dict[str, Any], Floats, Floats]]:
    """Return labels, times in seconds and values of each series of a line; empty if the line has no series."""
    if not isinstance(content, dict):
        return []
    if "data" in content:
        results = content["data"].get("result") if isinstance(content["data"], dict) else None
        results = results if isinstance(results, list) else []
        return [row for result in results if isinstance(result, dict) for row in _parse_query_result(result)]
    labels, values, times = (content.get(name) for name in ("metric", "values", "timestamps"))
    if not _are_labels(labels) or not isinstance(values, list) or not isinstance(times, list):
        return []
    assert isinstance(labels, dict)
    return [(labels, _to_floats(times) / 1e3, _to_floats(values))]


def _parse_query_result(result: Mapping[str, Any]) -> Iterator[tuple[dict[str, Any], Floats, Floats]]:
    labels, pairs = result.get("metric"), result.get("values")
    if isinstance(labels, dict) and _are_labels(labels) and isinstance(pairs, list):
        valid = [pair for pair in pairs if isinstance(pair, list) and len(pair) == 2]
        yield labels, _to_floats([pair[0] for pair in valid]), _to_floats([pair[1] for pair in valid])


def _to_floats(values: list[Any]) -> Floats:
    """Convert to floats; a value that cannot be converted becomes NaN."""
    with suppress(TypeError, ValueError, OverflowError):
        numbers = np.array(values, dtype=float)
        if numbers.ndim == 1:
            return numbers
    return np.array([_to_float(value) for value in values], dtype=float)


def _to_float(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return float("nan")
