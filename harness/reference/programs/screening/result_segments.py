"""Results on disk: BP files of a few parts of the index space each, complete or absent, with a summary of each part."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from harness.reference.errors import InputError
from harness.reference.programs.screening.index_partition import MASK
from harness.reference.programs.screening.scoring import Scores, concatenate_scores
from harness.reference.storage.adios.reader import BPFile
from harness.reference.storage.adios.writer import BPWriter
from harness.reference.storage.schema import Block, Column

LABEL = "parts"
FOLDER = "segments"
SENTINEL = -1  # ends the results of each part, as ADIOS2 cannot read empty columns
SUMMARY = ("part", "candidates", "evaluated", "checksum")


class ForeignResults(InputError):
    """The results belong to another screening."""


@dataclass(frozen=True)
class SegmentEntry:
    """The results of one part.

    Attributes:
        part: Number of the part.
        candidates: Number of its candidates.
        evaluated: Candidates with results: not filtered out, inside the training sets of the model, and finite.
        checksum: Checksum of all its candidates.
        results: The retained results, if they are loaded.
    """

    part: int
    candidates: int
    evaluated: int
    checksum: int
    results: Scores | None = None


def write(path: Path, pieces: Iterable[Sequence[SegmentEntry]], names: tuple[str, ...], identity: str) -> None:
    """Write parts to a file, piece by piece; if the disk is full, raise OSError and leave no file."""
    with BPWriter(path, {"dataset": "screening", "identity": identity, "columns": list(names)}) as writer:
        for entries in pieces:
            writer.split(LABEL).put(_build_block(entries, names))


def _build_block(entries: Sequence[SegmentEntry], names: tuple[str, ...]) -> Block:
    rows = [[e.part, e.candidates, e.evaluated, np.uint64(e.checksum).astype(np.int64)] for e in entries]
    end = Scores(names, np.array([SENTINEL]), np.zeros((1, len(names)), dtype=np.float32))
    results = [concatenate_scores(names, [end] if e.results is None else [e.results, end]) for e in entries]
    counts = np.array([len(r) for r in results], dtype=np.int64)
    combined = concatenate_scores(names, results)
    return Block(
        len(entries),
        {
            "summary": Column(np.array(rows, dtype=np.int64).reshape(-1), len(SUMMARY)),
            "candidate": Column(combined.index, counts),
            "scores": Column(combined.values, counts),
        },
    )


def read_summary(path: Path, identity: str) -> dict[int, SegmentEntry]:
    """Return the parts that a file covers, without their results, after checking all of its checksums.

    Raises:
        ForeignResults: The results belong to another screening.
        InputError: The file is damaged or incomplete.
    """
    with BPFile(path) as file:
        if file.attributes.get("identity") != identity:
            raise ForeignResults(f"{path}: results of another screening (other candidates, model or columns)")
        file.verify()
        block = file.columns(LABEL, 0, file.samples(LABEL), ["summary"])
    rows = [record["summary"].tolist() for record in block.records()]
    return {part: SegmentEntry(part, total, evaluated, signed & MASK) for part, total, evaluated, signed in rows}


def read(path: Path) -> list[SegmentEntry]:
    """Return the parts in a file with their results."""
    with BPFile(path) as file:
        names = tuple(file.attributes["columns"])
        block = file.columns(LABEL, 0, file.samples(LABEL))
    entries = []
    for record in block.records():
        part, total, evaluated, signed = record["summary"].tolist()
        results = Scores(names, record["candidate"][:-1], record["scores"][:-1])
        entries.append(SegmentEntry(part, total, evaluated, signed & MASK, results))
    return entries


def scan_segments(paths: Iterable[Path], identity: str) -> tuple[dict[int, int], list[str]]:
    """Return the candidates of each finished part in some files, and a message on each unusable file, which is deleted.

    Raises:
        ForeignResults: A file belongs to another screening; it is not deleted.
    """
    parts: dict[int, int] = {}
    useless = []
    for path in paths:
        try:
            if path.suffix != ".bp":
                raise InputError(f"{path.name}: half-written")
            parts |= {number: entry.candidates for number, entry in read_summary(path, identity).items()}
        except ForeignResults:
            raise
        except InputError as error:
            useless.append(str(error))
            remove([path])
    return parts, useless


def remove(paths: Iterable[Path]) -> None:
    """Delete files or folders, ignoring those that do not exist."""
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(FileNotFoundError):
                path.unlink()
