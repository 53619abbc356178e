"""Structures with the values that a downstream task predicts, and their splits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from harness.reference.data.structure import Array
from harness.reference.data.structure_table import RejectedStructure, StructureTable, concatenate
from harness.reference.datasets.parsing.structure_builder import StructureRow, tabulate_rows
from harness.reference.datasets.splits import hash_texts
from harness.reference.errors import InputError

Indices = NDArray[np.int64]
Fold = tuple[Indices, Indices]


@dataclass(frozen=True)
class TaskDataset:
    """g structures with their values.

    table: the structures, with forces if the task has them and energies if they are known. target: [g] the value to
    predict, in the task's unit. role: the name of the data in reports. level: of theory. left_out: structures of the
    source that were rejected, by reason. official_ids: [g] the benchmark's names. subset: [g] the part of the task that
    a structure belongs to, trained and tested separately; "" if none. folds: (train, test) positions where the
    benchmark fixes its splits.
    """

    table: StructureTable
    target: Array
    role: str
    level: str
    official_ids: NDArray[np.str_]
    subset: NDArray[np.str_]
    left_out: Counter[str] = field(default_factory=Counter)
    folds: tuple[Fold, ...] = ()

    def __len__(self) -> int:
        return len(self.target)


@dataclass(frozen=True)
class LabelledRow:
    """One structure of a reader: its columns, the value to predict and the subset it belongs to."""

    row: StructureRow
    target: float
    subset: str = ""


def collect_rows(
    values: Iterable[LabelledRow | RejectedStructure],
    source: str,
    role: str,
    level: str,
    left_out: Counter[str] | None = None,
) -> TaskDataset:
    """Return all usable values as a dataset, and count the rejections; `{count}` in the role becomes their number.

    Raises InputError, naming the source, if no value is usable.
    """
    usable: list[LabelledRow] = []
    rejections: Counter[str] = Counter(left_out or {})
    for value in values:
        if isinstance(value, RejectedStructure):
            rejections[value.kind] += value.count
        elif kind := _find_rejection_kind(value):
            rejections[kind] += 1
        else:
            usable.append(value)
    rejections += Counter()  # drops the zeros
    if not usable:
        reasons = ", ".join(f"{count} {kind}" for kind, count in rejections.most_common(3)) or "it is empty"
        raise InputError(f"{source}: no structure with a value can be read from it ({reasons})")
    return TaskDataset(
        table=concatenate([f for f in tabulate_rows(v.row for v in usable) if isinstance(f, StructureTable)]),
        target=np.array([v.target for v in usable], dtype=np.float64),
        role=role.format(count=f"{len(usable):,}"),
        level=level,
        official_ids=np.array([v.row.id for v in usable]),
        subset=np.array([v.subset for v in usable]),
        left_out=rejections,
    )


def _find_rejection_kind(value: LabelledRow) -> str:
    """Return the kind of fault that makes a structure unusable, or ""."""
    row = value.row
    checks = (
        ("value not finite", not np.isfinite(value.target)),
        ("no atoms", len(row.numbers) == 0),
        ("atomic number", bool(((row.numbers < 1) | (row.numbers > 118)).any())),
        ("positions not finite", not np.isfinite(row.positions).all()),
        ("forces not finite", row.forces is not None and not np.isfinite(row.forces).all()),
        ("cell not finite", row.cell is not None and not np.isfinite(row.cell).all()),
        ("cell without volume", row.cell is not None and abs(np.linalg.det(row.cell)) < 1e-6),
    )
    return next((name for name, is_faulty in checks if is_faulty), "")


def split_task(labelled: TaskDataset, *, seed: int, test_fraction: float) -> Fold:
    """Return (pool, test): positions of structures, with no group in both.

    About test_fraction of each subset is in test.
    Groups are selected by their names, so that the choice of a group does not depend on the others. Raises InputError
    if a subset has only one group, or the share leaves one side empty.
    """
    if not 0 < test_fraction < 1:
        raise InputError(f"a test share of {test_fraction} leaves a side empty, expected between 0 and 1")
    chosen = np.zeros(len(labelled), dtype=bool)
    for name in np.unique(labelled.subset):
        rows = np.flatnonzero(labelled.subset == name)
        groups, group, sizes = np.unique(labelled.table.groups[rows], return_inverse=True, return_counts=True)
        if len(groups) < 2:
            where = f"subset {str(name)!r}" if name else "the data"
            raise InputError(f"{labelled.role}: {where} has only the group {str(groups[0])!r}, which cannot be split")
        order = np.argsort(hash_texts(groups, f"task {seed}"), kind="stable")
        # the groups whose middle lies within the share, which is as close to it as whole groups allow
        middle = np.cumsum(sizes[order]) - sizes[order] / 2
        count = int(np.clip(np.count_nonzero(middle < test_fraction * len(rows)), 1, len(groups) - 1))
        chosen[rows] = np.isin(group, order[:count])
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)
