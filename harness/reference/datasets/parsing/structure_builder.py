"""What the readers share: structures gathered into blocks, small blocks joined, and what is said of the unfit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from harness.reference.data.structure import Array
from harness.reference.data.structure_table import Fault, Frames, Remark, joined
from harness.reference.datasets.parsing.base import BLOCK, BLOCK_ATOMS, MOST_ATOMS
from harness.reference.datasets.parsing.names import similar_name
from harness.reference.errors import InputError

LARGEST_BYTE = 255
MOST_CHARGE = 100
SHOWN = 8  # names in a message
T = TypeVar("T")
Made = TypeVar("Made")


class Unfit(ValueError):
    """A structure that cannot be used; kind as in Fault."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


class Row(NamedTuple):
    """One structure of n atoms: the columns of Frames for it, None where the source has nothing.

    hints: (label, what to tell users of it) of labels that are missing here, but may stand under another name.
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


def row(
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
) -> Row:
    """A structure from whatever a file holds: lists, flat or nested, or arrays; raises Unfit for a wrong shape.

    names: what the source has of this structure, among which a missing label is looked for.
    """
    found = np.asarray(numbers).reshape(-1)
    n = len(found)
    if n > MOST_ATOMS:
        raise Unfit("too large", f"{n} atoms, more than {MOST_ATOMS}")
    if found.dtype.kind not in "iufb":
        raise Unfit("atomic number", "atomic numbers are not numbers")
    if n and not (found.min() >= 0 and found.max() <= LARGEST_BYTE):
        raise Unfit("atomic number", f"{found.min()} .. {found.max()} are not atomic numbers")
    elements = found.astype(np.uint8)
    if found.dtype.kind == "f" and (elements != found).any():
        raise Unfit("atomic number", "atomic numbers are not whole")
    return Row(
        id=name,
        group=group,
        numbers=elements,
        positions=shaped("positions", positions, (n, 3)),
        energy=np.nan if energy is None else _number("energy", energy),
        forces=None if forces is None else shaped("forces", forces, (n, 3)),
        cell=None if cell is None else shaped("cell", cell, (3, 3)),
        periodic=None if periodic is None else np.broadcast_to(np.asarray(periodic, dtype=bool), 3),
        stress=None if stress is None else shaped("stress", stress, (3, 3)),
        charge=0 if charge is None else _whole("charge", charge, -MOST_CHARGE),
        multiplicity=0 if multiplicity is None else _whole("multiplicity", multiplicity, 0),
        hints=_hints(
            {"energy": energy, "forces": forces, "stress": stress, "charge": charge, "spin": multiplicity}, names
        ),
    )


def _hints(labels: Mapping[str, Any], names: Iterable[str]) -> tuple[tuple[str, str], ...]:
    lacking = [label for label, value in labels.items() if value is None]
    near = {label: similar_name(label, names) for label in lacking} if lacking else {}
    return tuple((label, f"no {label} (did you mean {name!r}?)") for label, name in near.items() if name)


def _number(what: str, value: Any) -> float:
    """A single number; raises Unfit."""
    array = np.asarray(value)
    if array.size != 1 or array.dtype.kind not in "iuf":
        raise Unfit("malformed", f"{what} is {shown(value)}, expected a number")
    return float(array.reshape(()))


def _whole(what: str, value: Any, least: int) -> int:
    """A small whole number; raises Unfit."""
    number = _number(what, value)
    if not least <= number <= MOST_CHARGE or number != round(number):
        raise Unfit("malformed", f"{what} is {shown(value)}, expected a whole number of {least} .. {MOST_CHARGE}")
    return int(number)


def shown(value: Any) -> str:
    """Return a value in few words, without spelling out what may be nested without end."""
    if isinstance(value, str):
        return repr(value[:40])
    return str(value)[:40] if isinstance(value, (int, float, np.generic)) else f"a {type(value).__name__}"


def shaped(what: str, values: Any, shape: tuple[int, ...]) -> Array:
    """The values as float64 of that shape, from flat or nested; raises Unfit naming both shapes."""
    array = np.asarray(values, dtype=np.float64)
    if array.shape == shape:
        return array
    if array.size != np.prod(shape) or (array.ndim > 1 and array.shape[-1] != shape[-1]):
        raise Unfit("shape", f"{what} have shape {array.shape}, expected {shape}")
    return array.reshape(shape)


def gathered(rows: Iterable[Row | Fault]) -> Iterator[Frames | Fault]:
    """Blocks of single structures; a fault stands before the block that its neighbours are in, remarks after it.

    Where the rows end in an InputError, those before it come first.
    """
    kept: list[Row] = []
    atoms = 0
    broken: InputError | None = None
    try:
        for item in rows:
            if isinstance(item, Fault):
                yield item
                continue
            kept.append(item)
            atoms += len(item.numbers)
            if len(kept) == BLOCK or atoms >= BLOCK_ATOMS:
                yield _together(kept)
                yield from _remarks(kept)
                kept, atoms = [], 0
    except InputError as error:
        broken = error
    if kept:
        yield _together(kept)
        yield from _remarks(kept)
    if broken is not None:
        raise broken


def _remarks(rows: Sequence[Row]) -> Iterator[Remark]:
    """One remark for each label and name that the rows hint at."""
    counts = Counter(hint for row in rows for hint in row.hints)
    for (label, reason), count in counts.items():
        where = next(row.id for row in rows if (label, reason) in row.hints)
        yield Remark(where, label, reason, count)


def _together(rows: Sequence[Row]) -> Frames:
    ids, groups, numbers, positions, energy, forces, cell, periodic, stress, charge, multiplicity, _ = zip(
        *rows, strict=True
    )
    zero, nothing = np.zeros((3, 3)), np.zeros(3, dtype=bool)
    blank = np.full((3, 3), np.nan)
    some_forces = any(f is not None for f in forces)
    return Frames(
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


def made(samples: Iterable[tuple[str, T | Fault]], make: Callable[[str, T], Made]) -> Iterator[Made | Fault]:
    """Rows, or what else is made of (where, raw) pairs; what cannot be made into one becomes a Fault there."""
    for where, raw in samples:
        if isinstance(raw, Fault):
            yield raw
            continue
        try:
            yield make(where, raw)
        except Unfit as error:
            yield Fault(where, error.kind, str(error))
        except Exception as error:  # damaged bytes make each decoder fail in its own way
            yield Fault(where, "malformed", f"{type(error).__name__}: {one_line(error)}")


def blocked(pieces: Iterable[Frames | Fault]) -> Iterator[Frames | Fault]:
    """Small frames joined to about BLOCK, large ones cut to it; those before an InputError come first."""
    kept: list[Frames] = []
    count = atoms = 0
    broken: InputError | None = None
    try:
        for piece in pieces:
            if isinstance(piece, Fault):
                yield piece
                continue
            for run in _cut(piece):
                kept.append(run)
                count += len(run)
                atoms += len(run.numbers)
                if count >= BLOCK or atoms >= BLOCK_ATOMS:
                    yield joined(kept) if len(kept) > 1 else run
                    kept, count, atoms = [], 0, 0
    except InputError as error:
        broken = error
    if kept:
        yield joined(kept)
    if broken is not None:
        raise broken


def _cut(piece: Frames) -> Iterator[Frames]:
    """The frames in runs of at most BLOCK structures."""
    for first in range(0, len(piece), BLOCK):
        yield piece[first : first + BLOCK] if len(piece) > BLOCK else piece


def need(mapping: Mapping[str, Any], key: str) -> Any:
    """The value under a key; raises Unfit with the nearest key that is there."""
    try:
        return mapping[key]
    except (KeyError, TypeError):
        raise Unfit("missing key", missing(key, mapping)) from None


def missing(key: str, known: Iterable[str]) -> str:
    """Say that a key is missing, with the nearest name or the names that exist."""
    names = sorted(str(k) for k in known) if isinstance(known, Iterable) else []
    near = similar_name(key, names)
    shown = ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
    return f"no {key!r} ({f'did you mean {near!r}? ' if near else ''}there are: {shown or 'none'})"


def one_line(error: BaseException) -> str:
    """The first line of an error, or its kind."""
    text = str(error).strip()
    return text.splitlines()[0][:160] if text else type(error).__name__
