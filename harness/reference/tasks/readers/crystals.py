"""Crystals with a formation energy per atom: what the readers of OQMD and of ABX3 share."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from harness.reference.datasets.containers.json_stream import decoded
from harness.reference.datasets.parsing.structure_builder import Unfit, missing, need, one_line, row
from harness.reference.datasets.readers import extxyz
from harness.reference.errors import InputError
from harness.reference.tasks.dataset import Value
from harness.reference.tasks.readers.compositions import reduced

ENERGY = "formation_energy_per_atom"
LONGEST_FIELD = 1 << 24
# where it is, and what makes its value
Sample = tuple[str, Callable[[], Value]]


def finished(_: str, make: Callable[[], Value]) -> Value:
    """The value of a sample."""
    return make()


def value(name: str, numbers: Any, positions: Any, cell: Any, energy: Any) -> Value:
    """A periodic crystal, its group the reduced formula; energy in eV/atom; raises Unfit."""
    if energy in (None, ""):
        raise Unfit("value not finite", f"{name} has no formation energy")
    columns = row(name, reduced(numbers), numbers, positions, cell=cell, periodic=True)
    return Value(columns, float(energy))


def frames(path: Path) -> Iterator[Sample]:
    """Extended XYZ with `formation_energy_per_atom` (eV/atom) and, if there, `id` in the comment lines."""
    with path.open(errors="replace") as file:
        for k, frame in enumerate(extxyz.frames(file, str(path))):
            name = str(_keys(frame).get("id", f"{path.stem}/{k}"))
            yield name, partial(_from_frame, name, frame)


def _keys(frame: extxyz.Text) -> dict[str, Any]:
    """Return the keys of a frame, none where its header cannot be read: its value says why."""
    try:
        return frame.keys
    except Unfit:
        return {}


def _from_frame(name: str, frame: extxyz.Text) -> Value:
    parsed = extxyz.parsed(frame)
    return value(name, parsed.numbers, parsed.positions, parsed.cell, need(frame.keys, ENERGY))


def table(path: Path, needed: Sequence[str]) -> Iterator[dict[str, str]]:
    """The rows of a CSV whose header has these columns; raises InputError with the nearest where one is missing."""
    csv.field_size_limit(LONGEST_FIELD)
    try:
        with path.open(newline="", errors="replace") as file:
            reader = csv.DictReader(file)
            reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
            for column in needed:
                if column not in reader.fieldnames:
                    raise InputError(f"{path}: " + missing(column, reader.fieldnames))
            yield from reader
    except (OSError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read as a table ({one_line(error)})") from None


def json_file(path: Path) -> Any:
    """What a JSON file holds; raises InputError where it is cut or none."""
    try:
        return decoded(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except Unfit as error:
        raise InputError(f"{path}: truncated, or {error}") from None
