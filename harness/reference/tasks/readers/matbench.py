"""Reader of Matbench: matbench_*.json.gz, a table of pandas (orient="split") with pymatgen structures and values."""

from __future__ import annotations

import gzip
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from harness.reference.datasets.containers.json_stream import (
    CHUNK_BYTES,
    JsonScanner,
    decode_json,
    iter_values,
    read_crystal,
)
from harness.reference.datasets.parsing.structure_builder import InvalidStructure, build_each, build_row
from harness.reference.errors import InputError, get_first_line
from harness.reference.tasks.catalog import Task, find_task
from harness.reference.tasks.dataset import Fold, Indices, LabelledRow, TaskDataset, collect_rows
from harness.reference.tasks.readers.crystals import reduce_formula
from harness.reference.tasks.readers.energy_checks import remove_structures

FOLDS = 5
MAX_WRONG_SHARE = 0.5  # if more values are out of range, the whole file is rejected
RANDOM_STATE = 18012019
MAX_HEADER_BYTES = 16 << 20
# For each table, the name of the column of values, and the range of plausible values.
VALUES: dict[str, tuple[str, float, float]] = {
    "matbench_dielectric": ("n", 0.9, 1000.0),
    "matbench_jdft2d": ("exfoliation_en", -1e4, 1e5),
    "matbench_log_gvrh": ("log10(G_VRH)", -3.0, 4.0),
    "matbench_log_kvrh": ("log10(K_VRH)", -3.0, 4.0),
    "matbench_perovskites": ("e_form", -50.0, 50.0),
    "matbench_phonons": ("last phdos peak", 0.0, 10_000.0),
}
_DATA = re.compile(rb'"data"\s*:\s*')


def read_matbench(path: Path) -> TaskDataset:
    """Read the table of the task after which the file is named, with its official folds.

    Raises:
        InputError: The file is not such a table, is truncated, has unknown rows, or leaves a fold empty.
    """
    entry = find_task(path.name.partition(".")[0])
    column, low, high = VALUES[entry.name]
    index, rows = _open_table(path, column)
    numbers = _parse_numbers(path, index, entry)
    names = list_official_ids(entry)
    labelled = collect_rows(
        build_each(((names[k], text) for k, text in _pair_rows(path, numbers, rows)), _build_row),
        str(path),
        f"official {entry.title}, {{count}} structures",
        "as published",
        Counter({"not in the file": entry.size - len(numbers)}),
    )
    labelled = _select_range(labelled, path, low, high)
    rows_by_name = {name: k for k, name in enumerate(names)}
    known = np.array([rows_by_name[name] for name in labelled.official_ids.tolist()])
    folds = tuple(_select_known(known, fold) for fold in build_official_folds(entry.size))
    if empty := [k for k, sides in enumerate(folds) if not all(len(side) for side in sides)]:
        raise InputError(f"{path}: too few rows: official fold {empty[0]} has no training or no test structures")
    return replace(labelled, folds=folds)


def _select_range(labelled: TaskDataset, path: Path, low: float, high: float) -> TaskDataset:
    """Return the rows with values in the range; raises InputError if most values are outside."""
    wrong = (labelled.target < low) | (labelled.target > high)
    if wrong.mean() > MAX_WRONG_SHARE:
        first = int(np.flatnonzero(wrong)[0])
        row_name, value = labelled.official_ids[first], labelled.target[first]
        raise InputError(f"{path}: {row_name} is {value:g}, expected {low:g} .. {high:g}: another quantity or unit?")
    return remove_structures(labelled, wrong, "value out of range")


def list_official_ids(entry: Task) -> list[str]:
    """Return Matbench's names of the rows of a task: mb-dielectric-0001 and so on."""
    stem, width = entry.name.replace("matbench_", "mb-").replace("_", "-"), len(str(entry.size))
    return [f"{stem}-{k + 1:0{width}d}" for k in range(entry.size)]


def build_official_folds(size: int) -> tuple[Fold, ...]:
    """Return the (train, test) rows of each fold of Matbench v0.1 for regression, sorted.

    Matbench made them by scikit-learn's KFold(5, shuffle=True, random_state=18012019): one shuffle, split in five.
    """
    order = np.arange(size)
    np.random.RandomState(RANDOM_STATE).shuffle(order)
    tests = [np.sort(part) for part in np.array_split(order, FOLDS)]
    return tuple((np.setdiff1d(order, test), test) for test in tests)


def _select_known(known: Indices, fold: Fold) -> Fold:
    """Convert a fold of official rows to positions in `known`, the official rows of the structures in the dataset."""
    train, test = fold
    return np.flatnonzero(np.isin(known, train)), np.flatnonzero(np.isin(known, test))


def _open_table(path: Path, value: str) -> tuple[list[Any], Iterator[bytes]]:
    """Return the index of the table, and the text of each of its rows."""
    chunks = _iter_chunks(path)
    head = b""
    for chunk in chunks:
        head += chunk
        if _DATA.search(head) or len(head) > MAX_HEADER_BYTES:
            break
    match = _DATA.search(head)
    header = _parse_header(path, head[: match.start()]) if match else {}
    if match is None or not {"index", "columns"} <= header.keys():
        raise InputError(f"{path}: not a Matbench table, expected JSON with index, columns and data in this order")
    if header["columns"] != ["structure", value]:
        others = [name for name, (column, _, _) in VALUES.items() if header["columns"] == ["structure", column]]
        hint = f"; it is the table of {others[0]}" if others else ""
        raise InputError(f"{path}: columns {header['columns']}, expected {['structure', value]}{hint}")
    if not isinstance(header["index"], list):
        raise InputError(f"{path}: its index is {str(header['index'])[:40]!r}, expected a list")
    return header["index"], _iter_rows(path, head[match.end() :], chunks)


def _parse_header(path: Path, text: bytes) -> dict[str, Any]:
    try:
        header = decode_json(text.rstrip().rstrip(b",") + b"}")
    except InvalidStructure as error:
        raise InputError(f"{path}: {error}") from None
    return header if isinstance(header, dict) else {}


def _iter_rows(path: Path, rest: bytes, chunks: Iterator[bytes]) -> Iterator[bytes]:
    def join_chunks() -> Iterator[bytes]:
        yield rest
        # the brace that closes the table was opened in the header
        yield from chunks

    scanner = JsonScanner(str(path), 2, level=1)
    for value in iter_values(join_chunks(), scanner):
        yield value.text


def _iter_chunks(path: Path) -> Iterator[bytes]:
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                yield chunk
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cut short, or not a gzip file ({get_first_line(error)})") from None


def _parse_numbers(path: Path, index: list[Any], entry: Task) -> list[int]:
    """Return the official row number (from 0) of each row; the index has such numbers, or names that count from 1."""
    official = {name: k for k, name in enumerate(list_official_ids(entry))}
    numbers = [k if type(k) is int else official.get(str(k), -1) for k in index]
    if unknown := [k for k, number in zip(index, numbers, strict=True) if number < 0]:
        first, last = (next(names) for names in (iter(official), reversed(official)))
        raise InputError(
            f"{path}: its index holds {str(unknown[0])[:40]!r}, expected row numbers or the official {first} .. {last}"
        )
    if len(set(numbers)) < len(numbers):
        raise InputError(f"{path}: its index names a row twice")
    if set(numbers) - set(range(entry.size)):
        raise InputError(f"{path}: row {max(numbers)}, but {entry.name} has {entry.size:,} rows")
    return numbers


def _pair_rows(path: Path, numbers: list[int], rows: Iterator[bytes]) -> Iterator[tuple[int, bytes]]:
    count = 0
    for count, text in enumerate(rows, start=1):
        if count <= len(numbers):
            yield numbers[count - 1], text
    if count != len(numbers):
        raise InputError(f"{path}: {count} rows of data for an index of {len(numbers)}")


def _build_row(name: str, text: bytes) -> LabelledRow:
    cells = decode_json(text)
    if len(cells) != 2 or not isinstance(cells[0], dict):
        raise InvalidStructure("malformed", "a row without a structure and a value")
    numbers, positions, cell, periodic = read_crystal(cells[0])
    if isinstance(cells[1], bool) or not isinstance(cells[1], int | float):
        raise InvalidStructure("value not finite", f"the value is {cells[1]!r}")
    columns = build_row(name, reduce_formula(numbers), numbers, positions, cell=cell, periodic=periodic)
    return LabelledRow(columns, float(cells[1]))
