"""Functions that all readers share: they build rows and tables of structures, and describe what is invalid."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from harness.reference.data.structure import Array
from harness.reference.data.structure_table import RejectedStructure, Remark, StructureTable, concatenate
from harness.reference.datasets.parsing.base import MAX_ATOMS, TABLE_ATOMS, TABLE_STRUCTURES
from harness.reference.errors import InputError, get_first_line

MAX_BYTE = 255
MAX_CHARGE = 100
MAX_NAMES = 8  # maximum number of names in a message
T = TypeVar("T")
Built = TypeVar("Built")
# Patterns of names that may stand for a label. They are only suggested to the user, since such a value may differ in
# method, corrections or units.
SYNONYMS = {
    "energy": re.compile(r"energ|^e$|^e[_.-]|[_.-]e$|^(raw_)?y(_|$)|toten|^u0$|e_?tot", re.IGNORECASE),
    "forces": re.compile(r"forc|^f$|^f[_.-]|[_.-]f$|grad", re.IGNORECASE),
    "stress": re.compile(r"stress|virial", re.IGNORECASE),
    "charge": re.compile(r"^(\w*(tot|net|mol|sys)\w*_)?charge$|^q$", re.IGNORECASE),
    "spin": re.compile(r"^(\w+_)?(spin|multiplicity)$", re.IGNORECASE),
}
SYNONYMS["y"] = SYNONYMS["energy"]  # the key of PyTorch Geometric graphs


class InvalidStructure(ValueError):  # `build_each` turns it into a RejectedStructure
    """A structure that cannot be used; `kind` is that of the RejectedStructure."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


class StructureRow(NamedTuple):
    """One structure of n atoms, with the columns of a StructureTable.

    A value that the source lacks is NaN (energy), 0 (charge, multiplicity) or None (all others).

    Attributes:
        hints: (label, message) for each missing label for which the source has a similar name.
    """

    id: str
    group: str
    numbers: NDArray[np.uint8]
    positions: Array
    energy: float
    forces: Array | None
    cell: Array | None
    periodic: NDArray[np.bool_] | None
    stress: Array | None
    charge: int
    multiplicity: int
    hints: tuple[tuple[str, str], ...] = ()


def build_row(
    name: str,
    group: str,
    numbers: Any,
    positions: Any,
    *,
    energy: float | None = None,
    forces: Any = None,
    cell: Any = None,
    periodic: Any = None,
    stress: Any = None,
    charge: Any = 0,
    multiplicity: Any = 0,
    names: Iterable[str] = (),
) -> StructureRow:
    """Build a structure from arrays or lists, flat or nested, in the units of StructureTable.

    A value that the source lacks is None.

    Args:
        name: The id.
        group: The group.
        numbers: [n] atomic numbers.
        positions: [n, 3].
        energy: A number.
        forces: [n, 3].
        cell: [3, 3].
        periodic: [3] or one flag.
        stress: [3, 3].
        charge: A whole number.
        multiplicity: A whole number.
        names: The keys of the structure in the source, among which a similar name is looked up for each missing label.

    Raises:
        InvalidStructure: A shape is wrong, or a number is impossible.
    """
    values = np.asarray(numbers).reshape(-1)
    n = len(values)
    if n > MAX_ATOMS:
        raise InvalidStructure("too large", f"{n} atoms, more than {MAX_ATOMS}")
    if values.dtype.kind not in "iufb":
        raise InvalidStructure("atomic number", "atomic numbers are not numbers")
    if n and not (values.min() >= 0 and values.max() <= MAX_BYTE):
        raise InvalidStructure(
            "atomic number", f"atomic numbers from {values.min()} to {values.max()}, expected 0 to {MAX_BYTE}"
        )
    elements = values.astype(np.uint8)
    if values.dtype.kind == "f" and (elements != values).any():
        raise InvalidStructure("atomic number", "atomic numbers are not integers")
    return StructureRow(
        id=name,
        group=group,
        numbers=elements,
        positions=reshape_values("positions", positions, (n, 3)),
        energy=np.nan if energy is None else _read_number("energy", energy),
        forces=None if forces is None else reshape_values("forces", forces, (n, 3)),
        cell=None if cell is None else reshape_values("cell", cell, (3, 3)),
        periodic=None if periodic is None else np.broadcast_to(np.asarray(periodic, dtype=bool), 3),
        stress=None if stress is None else reshape_values("stress", stress, (3, 3)),
        charge=0 if charge is None else _read_integer("charge", charge, -MAX_CHARGE),
        multiplicity=0 if multiplicity is None else _read_integer("multiplicity", multiplicity, 0),
        hints=_find_hints(
            {"energy": energy, "forces": forces, "stress": stress, "charge": charge, "spin": multiplicity}, names
        ),
    )


def _find_hints(labels: Mapping[str, Any], names: Iterable[str]) -> tuple[tuple[str, str], ...]:
    lacking = [label for label, value in labels.items() if value is None]
    similar = {label: find_similar_name(label, names) for label in lacking} if lacking else {}
    return tuple((label, f"no {label} (did you mean {name!r}?)") for label, name in similar.items() if name)


def _read_number(what: str, value: Any) -> float:
    """Return a single number; raises InvalidStructure."""
    array = np.asarray(value)
    if array.size != 1 or array.dtype.kind not in "iuf":
        raise InvalidStructure("malformed", f"{what} is {describe_value(value)}, expected a number")
    return float(array.reshape(()))


def _read_integer(what: str, value: Any, least: int) -> int:
    """Return a small whole number; raises InvalidStructure."""
    number = _read_number(what, value)
    if not least <= number <= MAX_CHARGE or number != round(number):
        raise InvalidStructure(
            "malformed", f"{what} is {describe_value(value)}, expected a whole number of {least} .. {MAX_CHARGE}"
        )
    return int(number)


def describe_value(value: Any) -> str:
    """Return a short description of a value for messages; the value may be large or deeply nested."""
    if isinstance(value, str):
        return repr(value[:40])
    return str(value)[:40] if isinstance(value, (int, float, np.generic)) else f"a {type(value).__name__}"


def reshape_values(what: str, values: Any, shape: tuple[int, ...]) -> Array:
    """Return flat or nested values as a float64 array of the given shape.

    Args:
        what: The name of the values in messages.
        values: The values.
        shape: The shape.

    Raises:
        InvalidStructure: The number of values is wrong.
        ValueError: The values are nested lists of unequal lengths.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.shape == shape:
        return array
    if array.size != np.prod(shape) or (array.ndim > 1 and array.shape[-1] != shape[-1]):
        raise InvalidStructure("shape", f"the shape of {what} is {array.shape}, expected {shape}")
    return array.reshape(shape)


def tabulate_rows(rows: Iterable[StructureRow | RejectedStructure]) -> Iterator[StructureTable | RejectedStructure]:
    """Collect rows into tables of about TABLE_STRUCTURES structures.

    Rejections are yielded at once, and the remarks on rows after the table of these rows. If the rows end with an
    InputError, the rows before it are yielded first.
    """
    pending: list[StructureRow] = []
    atoms = 0
    failure: InputError | None = None
    try:
        for item in rows:
            if isinstance(item, RejectedStructure):
                yield item
                continue
            pending.append(item)
            atoms += len(item.numbers)
            if len(pending) == TABLE_STRUCTURES or atoms >= TABLE_ATOMS:
                yield _build_table(pending)
                yield from _collect_remarks(pending)
                pending, atoms = [], 0
    except InputError as error:
        failure = error
    if pending:
        yield _build_table(pending)
        yield from _collect_remarks(pending)
    if failure is not None:
        raise failure


def _collect_remarks(rows: Sequence[StructureRow]) -> Iterator[Remark]:
    """Yield one remark for each hint of the rows."""
    counts = Counter(hint for row in rows for hint in row.hints)
    for (label, reason), count in counts.items():
        where = next(row.id for row in rows if (label, reason) in row.hints)
        yield Remark(where, label, reason, count)


def _build_table(rows: Sequence[StructureRow]) -> StructureTable:
    ids, groups, numbers, positions, energy, forces, cell, periodic, stress, charge, multiplicity, _ = zip(
        *rows, strict=True
    )
    zero, nothing = np.zeros((3, 3)), np.zeros(3, dtype=bool)
    blank = np.full((3, 3), np.nan)
    some_forces = any(f is not None for f in forces)
    return StructureTable(
        ids=np.array(ids),
        groups=np.array(groups),
        sizes=np.array([len(z) for z in numbers], dtype=np.int64),
        numbers=np.concatenate(numbers),
        positions=np.concatenate(positions),
        energy=np.array(energy),
        cell=np.array([zero if c is None else c for c in cell]),
        periodic=np.array([nothing if p is None else p for p in periodic]),
        charge=np.array(charge, dtype=np.int64),
        multiplicity=np.array(multiplicity, dtype=np.int64),
        forces=np.concatenate(
            [np.full_like(p, np.nan) if f is None else f for f, p in zip(forces, positions, strict=True)]
        )
        if some_forces
        else None,
        stress=np.array([blank if s is None else s for s in stress]) if any(s is not None for s in stress) else None,
    )


def build_each(
    samples: Iterable[tuple[str, T | RejectedStructure]], make: Callable[[str, T], Built]
) -> Iterator[Built | RejectedStructure]:
    """Yield make(name, raw) for each pair, or a rejection if it fails or `raw` is a rejection."""
    for where, raw in samples:
        if isinstance(raw, RejectedStructure):
            yield raw
            continue
        try:
            yield make(where, raw)
        except InvalidStructure as error:
            yield RejectedStructure(where, error.kind, str(error))
        except Exception as error:  # damaged bytes make each decoder fail in its own way
            yield RejectedStructure(where, "malformed", f"{type(error).__name__}: {get_first_line(error)}")


def resize_tables(pieces: Iterable[StructureTable | RejectedStructure]) -> Iterator[StructureTable | RejectedStructure]:
    """Join small tables and divide large ones, so that each has about TABLE_STRUCTURES structures.

    Pending tables are yielded before an InputError is raised.
    """
    pending: list[StructureTable] = []
    count = atoms = 0
    failure: InputError | None = None
    try:
        for piece in pieces:
            if isinstance(piece, RejectedStructure):
                yield piece
                continue
            for run in _split_table(piece):
                pending.append(run)
                count += len(run)
                atoms += len(run.numbers)
                if count >= TABLE_STRUCTURES or atoms >= TABLE_ATOMS:
                    yield concatenate(pending) if len(pending) > 1 else run
                    pending, count, atoms = [], 0, 0
    except InputError as error:
        failure = error
    if pending:
        yield concatenate(pending)
    if failure is not None:
        raise failure


def _split_table(piece: StructureTable) -> Iterator[StructureTable]:
    """Yield the table in runs of at most TABLE_STRUCTURES structures."""
    for first in range(0, len(piece), TABLE_STRUCTURES):
        yield piece[first : first + TABLE_STRUCTURES] if len(piece) > TABLE_STRUCTURES else piece


def require_key(mapping: Mapping[str, Any], key: str) -> Any:
    """Return the value of a key; raises InvalidStructure, with the most similar key, if it is missing."""
    try:
        return mapping[key]
    except (KeyError, TypeError):
        raise InvalidStructure("missing key", describe_missing_key(key, mapping)) from None


def describe_missing_key(key: str, known: Iterable[str]) -> str:
    """Return a message for a missing key, with the most similar name or the existing names."""
    names = sorted(str(k) for k in known) if isinstance(known, Iterable) else []
    similar = find_similar_name(key, names)
    listed = ", ".join(names[:MAX_NAMES]) + (", ..." if len(names) > MAX_NAMES else "")
    return f"no {key!r} ({f'did you mean {similar!r}? ' if similar else ''}there are: {listed or 'none'})"


def find_similar_name(key: str, names: Iterable[str]) -> str:
    """Return the name that most likely stands for a key, or ""."""
    candidates = sorted({str(name) for name in names if str(name) != key})
    if pattern := SYNONYMS.get(key):
        candidates = [name for name in candidates if pattern.search(name)]
        return min(candidates, key=lambda name: (len(name), name)) if candidates else ""
    return next(iter(difflib.get_close_matches(key, candidates, n=1)), "")
