"""The division of the candidates of a screening into parts, and BP files with the results and checksums of parts."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from harness.reference.errors import InputError
from harness.reference.programs.screening.scoring import Scores, concatenate_scores
from harness.reference.storage.adios.reader import BPFile
from harness.reference.storage.adios.writer import BPWriter
from harness.reference.storage.schema import Block, Column

CHUNK = 1 << 20  # number of indices that are hashed at a time
MASK = (1 << 64) - 1  # checksums are unsigned integers of 64 bits


def splitmix64(index: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Hash each index with the finalizer of splitmix64.

    Source: Steele, Lea and Flood, Fast splittable pseudorandom number generators, OOPSLA 2014.
    """
    x = index.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(x ^ (x >> np.uint64(31)))


def compute_checksum(indices: NDArray[np.int64]) -> int:
    """Return the sum of the hashed indices modulo 2^64, which a missing or repeated index changes."""
    return int(splitmix64(indices).sum(dtype=np.uint64))


def compute_range_checksum(first: int, stop: int) -> int:
    """Return the checksum of the indices from first to stop - 1."""
    pieces = (np.arange(k, min(stop, k + CHUNK), dtype=np.int64) for k in range(first, stop, CHUNK))
    return sum(map(compute_checksum, pieces)) & MASK


@dataclass(frozen=True)
class IndexPartition:
    """The division of the candidates into parts, of which some or all are screened.

    Attributes:
        total: Number of candidates in the whole space.
        size: Number of candidates in a part; the last part may have fewer.
        n_selected: Number of parts that are screened, evenly spaced over the whole space; None for all.
    """

    total: int
    size: int
    n_selected: int | None = None

    def __post_init__(self) -> None:
        if self.total < 1 or self.size < 1 or (self.n_selected is not None and self.n_selected < 1):
            raise InputError(f"{self.total} candidates in parts of {self.size}: expected at least one of each")

    @classmethod
    def for_candidates(cls, total: int, size: int, candidates: int | None) -> IndexPartition:
        """Return a division into parts of which some are screened.

        Args:
            total: Number of candidates in the whole space.
            size: Number of candidates in a part.
            candidates: Approximate number of candidates to screen; None for all.
        """
        return cls(total, size, None if candidates is None else max(1, round(candidates / max(1, size))))

    @property
    def n_parts(self) -> int:
        """The number of parts of the whole space."""
        return -(-self.total // self.size)

    @property
    def selected(self) -> range | list[int]:
        """The numbers of the parts that are screened."""
        if self.n_selected is None or self.n_selected >= self.n_parts:
            return range(self.n_parts)
        return [k * self.n_parts // self.n_selected for k in range(self.n_selected)]

    def bounds(self, number: int) -> tuple[int, int]:
        """Return the index of the first candidate of a part, and the index after its last one."""
        return number * self.size, min(self.total, (number + 1) * self.size)

    @property
    def candidates(self) -> int:
        """The number of candidates in the parts that are screened."""
        return sum(stop - first for first, stop in map(self.bounds, self.selected))

    def checksum(self) -> int:
        """Return the checksum of all candidates that are screened, from their indices alone."""
        return sum(compute_range_checksum(*self.bounds(k)) for k in self.selected) & MASK


LABEL = "parts"  # name of the split of the BP files
SENTINEL = -1  # the last row of the results of each part, as ADIOS2 cannot read empty columns
SUMMARY = ("part", "candidates", "evaluated", "checksum")  # values of a row; the checksum is stored as a signed integer


class ForeignResults(InputError):
    """The results belong to another screening."""


@dataclass(frozen=True)
class PartEntry:
    """The results of one part.

    Attributes:
        part: Number of the part.
        candidates: Number of its candidates.
        evaluated: Number of candidates with results: not filtered out, inside the model's training sets, and finite.
        checksum: Checksum of all its candidates.
        results: The retained results; None if they are not loaded.
    """

    part: int
    candidates: int
    evaluated: int
    checksum: int
    results: Scores | None = None


def write(path: Path, pieces: Iterable[Sequence[PartEntry]], names: tuple[str, ...], identity: str) -> None:
    """Write parts to a file, piece by piece; if the disk is full, raise OSError and leave no file."""
    with BPWriter(path, {"dataset": "screening", "identity": identity, "columns": list(names)}) as writer:
        for entries in pieces:
            writer.split(LABEL).put(_build_block(entries, names))


def _build_block(entries: Sequence[PartEntry], names: tuple[str, ...]) -> Block:
    rows = [[e.part, e.candidates, e.evaluated, np.uint64(e.checksum).astype(np.int64)] for e in entries]
    sentinel = Scores(names, np.array([SENTINEL]), np.zeros((1, len(names)), dtype=np.float32))
    results = [concatenate_scores(names, [sentinel] if e.results is None else [e.results, sentinel]) for e in entries]
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


def read_summary(path: Path, identity: str) -> list[PartEntry]:
    """Check all checksums of a file, and return its parts without their results.

    Raises:
        ForeignResults: The results belong to another screening.
        InputError: The file is damaged or incomplete.
    """
    with BPFile(path) as file:
        if file.attributes.get("identity") != identity:
            raise ForeignResults(f"{path}: results of another screening (other candidates, model or columns)")
        file.verify()
        block = file.columns(LABEL, 0, file.count_samples(LABEL), ["summary"])
    rows = [record["summary"].tolist() for record in block.iter_samples()]
    return [PartEntry(part, total, evaluated, signed & MASK) for part, total, evaluated, signed in rows]


def read(path: Path) -> list[PartEntry]:
    """Return the parts in a file with their results."""
    with BPFile(path) as file:
        names = tuple(file.attributes["columns"])
        block = file.columns(LABEL, 0, file.count_samples(LABEL))
    entries = []
    for record in block.iter_samples():
        part, total, evaluated, signed = record["summary"].tolist()
        results = Scores(names, record["candidate"][:-1], record["scores"][:-1])
        entries.append(PartEntry(part, total, evaluated, signed & MASK, results))
    return entries


def remove(paths: Iterable[Path]) -> None:
    """Delete files or folders, ignoring those that do not exist."""
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(FileNotFoundError):
                path.unlink()
