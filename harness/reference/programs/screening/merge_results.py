"""The results of all ranks put together: one file a node, a proof that nothing is missing, and a table of the best."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from harness.reference.distributed.group import Team
from harness.reference.distributed.launch import share
from harness.reference.errors import InputError
from harness.reference.programs.screening import result_segments
from harness.reference.programs.screening.index_partition import MASK, Parts, checksum_of_range
from harness.reference.programs.screening.result_segments import Covered
from harness.reference.programs.screening.retention import Keeping
from harness.reference.programs.screening.scoring import Scores, joined

AT_ONCE = 64  # parts
CUTS = 60  # after so many halvings two numbers of single precision are the same


def results_files(folder: Path) -> list[Path]:
    """The files that a finished screening leaves, one a node."""
    return sorted(folder.glob("results-*.bp"))


def proven(files: Sequence[Path], parts: Parts, identity: str, team: Team) -> dict[str, object]:
    """That the files cover every part that was to be screened, once; raises InputError saying what is amiss.

    Each rank reads its share of the files. The checksum over what they say is held against one over the indices
    themselves, which the ranks make anew; a part that is missing or there twice changes it.
    """
    place = team.place
    covered = [
        c for path in share(files, place.rank, place.size) for c in result_segments.summary(path, identity).values()
    ]
    own = [checksum_of_range(*parts.bounds(k)) for k in share(parts.numbers, place.rank, place.size)]
    sums = (
        len(covered), sum(c.candidates for c in covered), sum(c.evaluated for c in covered),
        sum(c.checksum for c in covered) & MASK, sum(own) & MASK,
    )  # fmt: skip
    count, candidates, evaluated, found, expected = (sum(each) for each in zip(*team.gathered(sums), strict=True))
    found, expected = found & MASK, expected & MASK
    if count != len(parts.numbers) or found != expected:
        raise InputError(
            f"results: {count} parts are there for {len(parts.numbers)}, checksum {found:016x} for {expected:016x}"
        )
    return {
        "parts": count,
        "candidates": candidates,
        "evaluated": evaluated,
        "checksum": f"{found:016x}",
        "expected": f"{expected:016x}",
    }


def combine(
    folder: Path, files: Sequence[Path], number: int, names: tuple[str, ...], keeping: Keeping, identity: str
) -> Scores:
    """Put segments into this node's one file, piece by piece; returns the best of them."""
    best = joined(names, [])
    path = folder / f"results-{number:05d}.bp"

    def pieces() -> Iterator[list[Covered]]:
        nonlocal best
        for segment in files:
            covered = result_segments.read(segment)
            for first in range(0, len(covered), AT_ONCE):
                piece = covered[first : first + AT_ONCE]
                best = top(joined(names, [best, *(c.kept for c in piece if c.kept is not None)]), keeping)
                yield piece

    result_segments.write(path, pieces(), names, identity)
    return best


def best_of_all(own: Scores, keeping: Keeping, team: Team) -> Scores:
    """The best of what ranks have each found best, on rank 0; nothing elsewhere.

    What a rank sends lies within a limit that is drawn closer until not many more than are asked for lie within it.
    """
    values = own.column(keeping.by).astype(float) * (-1 if keeping.highest else 1)
    ends = team.largest(torch.tensor([-values.min(initial=np.inf), values.max(initial=-np.inf)])).tolist()
    low, high = -ends[0], ends[1]
    for _ in range(CUTS):
        middle = low + (high - low) / 2
        within = float(team.total(torch.tensor([(values <= middle).sum()])))
        if within >= keeping.count:
            high = middle
        else:
            low = middle
        if keeping.count <= within <= 2 * keeping.count:
            break
    return top(joined(own.names, team.gathered_by_first(own[values <= high])), keeping)


def top(scores: Scores, keeping: Keeping) -> Scores:
    """The best by the column that counts, as many as are asked for; all of them where that is what is kept."""
    return keeping.ranked(scores)[: keeping.count] if len(scores) > keeping.count else keeping.ranked(scores)
