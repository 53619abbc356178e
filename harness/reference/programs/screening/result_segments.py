"""Results on disk: a BP file for each few parts of the index space, whole or not there, each telling what it covers."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from harness.reference.errors import InputError
from harness.reference.programs.screening.index_partition import MASK
from harness.reference.programs.screening.scoring import Scores, joined
from harness.reference.storage.adios.writer import BPFile, BPWriter
from harness.reference.storage.schema import Block, Column

LABEL = "parts"
FOLDER = "segments"
NOBODY = -1  # ends the results of a part, so that those of a part, and of all, are never nothing: ADIOS2 reads no such
SUMMARY = ("part", "candidates", "evaluated", "checksum")


class Foreign(InputError):
    """Results of another screening."""


@dataclass(frozen=True)
class Covered:
    """One part: its number, its candidates, those with results (not filtered out, within what the model was trained
    on, and finite), the checksum of all its candidates, and what is kept of the results, where they are at hand."""

    part: int
    candidates: int
    evaluated: int
    checksum: int
    kept: Scores | None = None


def write(path: Path, pieces: Iterable[Sequence[Covered]], names: tuple[str, ...], identity: str) -> None:
    """Put parts into a file, piece by piece; OSError where the disk is full, and then nothing is left of it."""
    with BPWriter(path, {"dataset": "screening", "identity": identity, "columns": list(names)}) as writer:
        for covered in pieces:
            writer.split(LABEL).put(_block(covered, names))


def _block(covered: Sequence[Covered], names: tuple[str, ...]) -> Block:
    rows = [[c.part, c.candidates, c.evaluated, np.uint64(c.checksum).astype(np.int64)] for c in covered]
    end = Scores(names, np.array([NOBODY]), np.zeros((1, len(names)), dtype=np.float32))
    results = [joined(names, [end] if c.kept is None else [c.kept, end]) for c in covered]
    counts = np.array([len(r) for r in results], dtype=np.int64)
    kept = joined(names, results)
    return Block(
        len(covered),
        {
            "summary": Column(np.array(rows, dtype=np.int64).reshape(-1), len(SUMMARY)),
            "candidate": Column(kept.index, counts),
            "scores": Column(kept.values, counts),
        },
    )


def summary(path: Path, identity: str) -> dict[int, Covered]:
    """What a file covers, by part, without its results, which are checked against their checksums all the same.

    Raises InputError for a file that is damaged, half-written, or of another screening.
    """
    with BPFile(path) as file:
        if file.attributes.get("identity") != identity:
            raise Foreign(f"{path}: results of another screening (other candidates, model or columns)")
        file.verify()
        block = file.columns(LABEL, 0, file.samples(LABEL), ["summary"])
    rows = [record["summary"].tolist() for record in block.records()]
    return {part: Covered(part, total, evaluated, signed & MASK) for part, total, evaluated, signed in rows}


def read(path: Path) -> list[Covered]:
    """The parts in a file with their results."""
    with BPFile(path) as file:
        names = tuple(file.attributes["columns"])
        block = file.columns(LABEL, 0, file.samples(LABEL))
    found = []
    for record in block.records():
        part, total, evaluated, signed = record["summary"].tolist()
        kept = Scores(names, record["candidate"][:-1], record["scores"][:-1])
        found.append(Covered(part, total, evaluated, signed & MASK, kept))
    return found


def found_in(paths: Iterable[Path], identity: str) -> tuple[dict[int, int], list[str]]:
    """The finished parts in some files, with their candidates, and a line on each file of no use, which is now gone.

    Raises Foreign for results of another screening: they are not thrown away.
    """
    parts: dict[int, int] = {}
    useless = []
    for path in paths:
        try:
            if path.suffix != ".bp":
                raise InputError(f"{path.name}: half-written")
            parts |= {number: covered.candidates for number, covered in summary(path, identity).items()}
        except Foreign:
            raise
        except InputError as error:
            useless.append(str(error))
            remove([path])
    return parts, useless


def remove(paths: Iterable[Path]) -> None:
    """Delete files or folders; those that are gone already are fine."""
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(FileNotFoundError):
                path.unlink()
