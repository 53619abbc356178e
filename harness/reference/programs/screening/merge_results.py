"""Merge the results of all ranks into a few files, and verify that they cover every part exactly once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from itertools import chain, islice
from pathlib import Path

import numpy as np
import torch
from torch import nn

from harness.protocol.programs.screening import Verification
from harness.reference.distributed.group import ProcessGroup
from harness.reference.distributed.launch import shard
from harness.reference.errors import InputError
from harness.reference.programs.screening import part_results
from harness.reference.programs.screening.candidates.workload import Workload
from harness.reference.programs.screening.journals import read_parts
from harness.reference.programs.screening.part_results import (
    MASK,
    IndexPartition,
    PartEntry,
    compute_range_checksum,
)
from harness.reference.programs.screening.scoring import Retention, Scores, concatenate_scores

CHUNK = 64  # number of parts that are merged at a time
MAX_NODES = 16  # number of nodes whose results are merged into one file
MAX_BISECTIONS = 60  # the distance of the bounds is then 2^-60 of the range of values, which are in single precision


def list_results(folder: Path) -> list[Path]:
    """Return the paths of the merged files of a finished screening."""
    return sorted(folder.glob("results-*.bp"))


def compute_identity(
    model: nn.Module, workload: Workload, parts: IndexPartition, names: Sequence[str], retention: Retention
) -> str:
    """Return a hash of everything that results must have in common to be merged."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    candidates = [workload.name, workload.total, workload.facts, parts.size, parts.n_selected]
    plain = [*candidates, list(names), str(asdict(retention))]
    digest.update(json.dumps(plain).encode())
    return digest.hexdigest()[:32]


def verify_coverage(
    files: Sequence[Path], read: Callable[[Path], Iterable[PartEntry]], parts: IndexPartition, world: ProcessGroup
) -> Verification:
    """Verify that the files cover every selected part exactly once; collective.

    Each rank reads its share of the files. The sum of the checksums in the files is compared with the sum that the
    ranks compute from the indices; a missing or repeated part changes the sum.

    Args:
        files: The files to verify; rank 0 passes them, and those of other ranks are ignored.
        read: The function that returns the parts in a file.
        parts: The division of the candidates into parts.
        world: The ranks.

    Raises:
        InputError: A file is damaged, or parts are missing or repeated.
    """
    entries = [replace(e, results=None) for path in world.deal(files) for e in read(path)]
    recomputed = [compute_range_checksum(*parts.bounds(k)) for k in shard(parts.selected, world.rank, world.size)]
    sums = (
        len(entries), sum(e.candidates for e in entries), sum(e.evaluated for e in entries),
        sum(e.checksum for e in entries) & MASK, sum(recomputed) & MASK,
    )  # fmt: skip
    count, candidates, evaluated, actual, expected = world.sum_integers(sums)
    actual, expected = actual & MASK, expected & MASK
    if count != len(parts.selected) or actual != expected:
        raise InputError(
            f"results: {count} parts with checksum {actual:016x}, expected {len(parts.selected)} with {expected:016x}"
        )
    return Verification(
        parts=count,
        candidates=candidates,
        evaluated=evaluated,
        checksum=f"{actual:016x}",
        expected=f"{expected:016x}",
    )


def merge_journals(
    folder: Path, files: Sequence[Path], number: int, *, names: tuple[str, ...], retention: Retention, identity: str
) -> Scores:
    """Merge journals into one file, CHUNK parts at a time, and return the best results.

    Args:
        folder: The folder of the case.
        files: The journals.
        number: Number of the merged file.
        names: Names of the columns.
        retention: The rule by which results are retained.
        identity: The identity of the screening.
    """
    best = concatenate_scores(names, [])
    path = folder / f"results-{number:05d}.bp"

    def pieces() -> Iterator[list[PartEntry]]:
        nonlocal best
        entries = chain.from_iterable(read_parts(journal, identity) for journal in files)
        while piece := list(islice(entries, CHUNK)):
            best = select_best(
                concatenate_scores(names, [best, *(e.results for e in piece if e.results is not None)]), retention
            )
            yield piece

    part_results.write(path, pieces(), names, identity)
    return best


def gather_best(local: Scores, retention: Retention, world: ProcessGroup) -> Scores:
    """Return the best results of all ranks on rank 0, and no results on the other ranks; collective.

    Ranks send only the results up to a bound on the value. Bisection determines the bound, so that the ranks
    send in total at most about twice as many results as requested, or more if many values are equal.

    Args:
        local: The best results of this rank.
        retention: The rule by which results are retained.
        world: The ranks.
    """
    values = local.column(retention.column).astype(float) * (-1 if retention.descending else 1)
    # lower is better from here on; the minimum over ranks is the negative maximum of the negative values
    extremes = world.all_reduce_max(torch.tensor([-values.min(initial=np.inf), values.max(initial=-np.inf)])).tolist()
    low, high = -extremes[0], extremes[1]
    for _ in range(MAX_BISECTIONS):
        middle = low + (high - low) / 2
        within = float(world.all_reduce_sum(torch.tensor([(values <= middle).sum()])))
        if within >= retention.count:
            high = middle
        else:
            low = middle
        if retention.count <= within <= 2 * retention.count:
            break
    return select_best(concatenate_scores(local.names, world.gather(local[values <= high])), retention)


def select_best(scores: Scores, retention: Retention) -> Scores:
    """Return the best results in the order of the retention, best first, at most `retention.count` of them."""
    return retention.sort(scores)[: retention.count]
