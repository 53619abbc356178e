"""MPtrj: one JSON file of relaxation trajectories by material, read without loading it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from harness.reference.data.structure_table import Fault, Frames
from harness.reference.datasets.containers.json_stream import CHUNK, Scanner, Value, decoded
from harness.reference.datasets.parsing.base import Format, Part
from harness.reference.datasets.parsing.paths import bounds, files, opened
from harness.reference.datasets.parsing.pymatgen_json import crystal, stress_from_kbar
from harness.reference.datasets.parsing.structure_builder import Row, Unfit, gathered, made, need, row
from harness.reference.errors import InputError

PART_BYTES = 256 << 20  # about 35,000 frames
KEY_LONGEST = 128
NAME = rb"(?:mp|mvc)-\d+"  # of a material; frames are named mp-1234-0-1
MATERIAL = re.compile(rb'"(' + NAME + rb')"\s*:\s*\{')
FRAME = b'"structure"'  # a key that every frame has once
ANY_KEY = re.compile(rb'"([^"]{1,%d})"\s*:\s*$' % KEY_LONGEST)


def parts(paths: Sequence[Path]) -> list[Part]:
    """Ranges of bytes; a material belongs to the range that its name begins in."""
    found = []
    for path, label in files(paths, (".json",), "JSON files"):
        size = path.stat().st_size
        with opened(path) as file:
            head = file.read(4096)
        if not re.match(rb'\s*\{\s*"[^"]+"\s*:\s*\{', head) and head.strip() != b"{}":
            raise InputError(f"{path}: not MPtrj, expected {{material: {{frame: ...}}}}, it begins {head[:24]!r}")
        cuts = [*range(0, max(size - PART_BYTES // 2, 1), PART_BYTES), size]
        found += [Part(path, f"{label} {first}:{stop}") for first, stop in pairwise(cuts)]
    return found


def read(part: Part) -> Iterator[Frames | Fault]:
    """Frames in the order of the file; energies without the Materials Project's corrections."""
    label, first, stop = bounds(part)
    yield from gathered(made(_frames(part.path, label, first, stop), _row))


def _frames(path: Path, label: str, first: int, stop: int) -> Iterator[tuple[str, Any]]:
    for material, value in _materials(path, first, stop):
        where = f"{label}/{material}"
        try:
            frames = decoded(value.text)
            if not isinstance(frames, dict):
                raise Unfit("malformed", f"a {type(frames).__name__}, expected frames by name")
        except Unfit as error:
            yield where, Fault(where, error.kind, str(error), max(1, value.text.count(FRAME)))
            continue
        twins = value.text.count(FRAME) - len(frames)
        if twins > 0:
            yield where, Fault(where, "duplicate", f"{twins} of its frames have the name of another", twins)
        for name, frame in frames.items():
            yield f"{label}/{name}", (material, frame)


def _materials(path: Path, first: int, stop: int) -> Iterator[tuple[str, Value]]:
    """(name, value) of the materials whose names begin in [first, stop)."""
    with opened(path) as file:
        start = _boundary(file, first) if first else 0
        if start is None or start >= stop:
            return
        file.seek(start)
        scanner = Scanner(str(path), 1, level=int(first > 0), offset=start)
        while chunk := file.read(CHUNK):
            for value in scanner.feed(chunk):
                before = value.before[-2 * KEY_LONGEST :]
                named = ANY_KEY.search(before)
                if named is None:
                    raise InputError(f"{path}: the object at byte {value.offset} has no name, expected a material's")
                begins = value.offset - len(before) + named.start()
                if begins >= stop and re.fullmatch(NAME, named[1]):
                    return
                yield named[1].decode("utf-8", "replace"), value
        scanner.finish()


def _boundary(file: Any, first: int) -> int | None:
    """Where the first material begins at or after a byte; None if there is none."""
    file.seek(first)
    held, base = b"", first
    while chunk := file.read(CHUNK):
        held += chunk
        if match := MATERIAL.search(held):
            return base + match.start()
        base += max(len(held) - KEY_LONGEST, 0)
        held = held[-KEY_LONGEST:]
    return None


def _row(name: str, found: tuple[str, Any]) -> Row:
    material, frame = found
    numbers, positions, cell, periodic = crystal(need(frame, "structure"))
    if not numbers:
        raise Unfit("empty", "no atoms")
    return row(
        name,
        material,
        numbers,
        positions,
        energy=need(frame, "uncorrected_total_energy"),
        forces=need(frame, "force"),
        cell=cell,
        periodic=periodic,
        stress=stress_from_kbar(frame.get("stress")),
        names=frame,
    )


FORMAT = Format("mptrj", "MPtrj_2022.9_full.json", parts, read)
