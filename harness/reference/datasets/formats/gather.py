"""What the readers share: structures gathered into blocks, small blocks joined, and what is said of the unfit."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from harness.reference.datasets.formats.reader import BLOCK
from harness.reference.errors import InputError
from harness.reference.frames import Fault, Frames, joined
from harness.reference.structures import Array

LARGEST_BYTE = 255
MOST_CHARGE = 100
T = TypeVar("T")
Made = TypeVar("Made")


class Unfit(ValueError):
    """A structure that cannot be used; kind as in Fault."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


class Row(NamedTuple):
    """One structure of n atoms: the columns of Frames for it, None where the source has nothing."""

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
    charge: int = 0,
    multiplicity: int = 0,
) -> Row:
    """A structure from whatever a file holds: lists, flat or nested, or arrays; raises Unfit for a wrong shape."""
    found = np.asarray(numbers).reshape(-1)
    n = len(found)
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
        charge=_whole("charge", charge, -MOST_CHARGE),
        multiplicity=_whole("multiplicity", multiplicity, 0),
    )


def _number(what: str, value: Any) -> float:
    """A single number; raises Unfit."""
    array = np.asarray(value)
    if array.size != 1 or array.dtype.kind not in "iuf":
        raise Unfit("malformed", f"{what} is {str(value)[:40]!r}, expected a number")
    return float(array.reshape(()))


def _whole(what: str, value: Any, least: int) -> int:
    """A small whole number; raises Unfit."""
    number = _number(what, value)
    if not least <= number <= MOST_CHARGE or number != round(number):
        raise Unfit("malformed", f"{what} is {str(value)[:40]!r}, expected a whole number of {least} .. {MOST_CHARGE}")
    return int(number)


def shaped(what: str, values: Any, shape: tuple[int, ...]) -> Array:
    """The values as float64 of that shape, from flat or nested; raises Unfit naming both shapes."""
    array = np.asarray(values, dtype=np.float64)
    if array.shape == shape:
        return array
    if array.size != np.prod(shape) or (array.ndim > 1 and array.shape[-1] != shape[-1]):
        raise Unfit("shape", f"{what} have shape {array.shape}, expected {shape}")
    return array.reshape(shape)


def gathered(rows: Iterable[Row | Fault]) -> Iterator[Frames | Fault]:
    """Blocks of single structures; a fault stands before the block that its neighbours are in.

    Where the rows end in an InputError, those before it come first.
    """
    kept: list[Row] = []
    broken: InputError | None = None
    try:
        for item in rows:
            if isinstance(item, Fault):
                yield item
                continue
            kept.append(item)
            if len(kept) == BLOCK:
                yield _together(kept)
                kept = []
    except InputError as error:
        broken = error
    if kept:
        yield _together(kept)
    if broken is not None:
        raise broken


def _together(rows: Sequence[Row]) -> Frames:
    ids, groups, numbers, positions, energy, forces, cell, periodic, stress, charge, multiplicity = zip(
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
    count = 0
    broken: InputError | None = None
    try:
        for piece in pieces:
            if isinstance(piece, Fault):
                yield piece
                continue
            for first in range(0, len(piece), BLOCK):
                run = piece[first : first + BLOCK] if len(piece) > BLOCK else piece
                kept.append(run)
                count += len(run)
                if count >= BLOCK:
                    yield joined(kept) if len(kept) > 1 else run
                    kept, count = [], 0
    except InputError as error:
        broken = error
    if kept:
        yield joined(kept)
    if broken is not None:
        raise broken


def need(mapping: Mapping[str, Any], key: str) -> Any:
    """The value under a key; raises Unfit with the nearest key that is there."""
    try:
        return mapping[key]
    except (KeyError, TypeError):
        raise Unfit("missing key", missing(key, mapping)) from None


def missing(key: str, known: Iterable[str]) -> str:
    """What to say of a key that is not there."""
    names = sorted(str(k) for k in known) if isinstance(known, Iterable) else []
    near = difflib.get_close_matches(key, names, n=1)
    there = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    return f"no {key!r} ({f'did you mean {near[0]!r}? ' if near else ''}there are: {there or 'none'})"


def one_line(error: BaseException) -> str:
    """The first line of an error, or its kind."""
    text = str(error).strip()
    return text.splitlines()[0][:160] if text else type(error).__name__
