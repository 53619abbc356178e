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
    """The dataset of a task: g structures with the values to predict.

    Attributes:
        table: The structures, with forces if the task has forces, and with energies if they are known.
        target: [g] the value to predict, in the unit of the task.
        data_origin: The name of the data in reports, such as "official QM9, a sample of 1,000".
        level: The level of theory.
        official_ids: [g] the names of the structures in the publication of the task.
        subset: [g] the subset of each structure; each subset is trained and tested separately. "" if there are none.
        left_out: Number of structures of the source that are left out, by reason.
        folds: The (train, test) positions of each published split; empty if there are none.
    """

    table: StructureTable
    target: Array
    data_origin: str
    level: str
    official_ids: NDArray[np.str_]
    subset: NDArray[np.str_]
    left_out: Counter[str] = field(default_factory=Counter)
    folds: tuple[Fold, ...] = ()

    def __len__(self) -> int:
        return len(self.target)


@dataclass(frozen=True)
class LabelledRow:
    """One structure from a reader: its columns, the value to predict, and its subset."""

    row: StructureRow
    target: float
    subset: str = ""


def collect_rows(
    values: Iterable[LabelledRow | RejectedStructure],
    source: str,
    data_origin: str,
    level: str,
    left_out: Counter[str] | None = None,
) -> TaskDataset:
    """Collect usable rows in a dataset, and count the rejections.

    Args:
        values: Rows and rejections.
        source: The name of the source for messages.
        data_origin: The name of the data in reports; `{count}` is replaced by the number of usable rows.
        level: The level of theory.
        left_out: Number of structures that are left out already, by reason.

    Raises:
        InputError: No row is usable.
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
        data_origin=data_origin.format(count=f"{len(usable):,}"),
        level=level,
        official_ids=np.array([v.row.id for v in usable]),
        subset=np.array([v.subset for v in usable]),
        left_out=rejections,
    )


def _find_rejection_kind(value: LabelledRow) -> str:
    """Return the kind of the problem that makes a structure unusable, or ""."""
    row = value.row
    checks = (
        ("value not finite", not np.isfinite(value.target)),
        ("no atoms", len(row.numbers) == 0),
        ("atomic number out of range", bool(((row.numbers < 1) | (row.numbers > 118)).any())),
        ("positions not finite", not np.isfinite(row.positions).all()),
        ("forces not finite", row.forces is not None and not np.isfinite(row.forces).all()),
        ("cell not finite", row.cell is not None and not np.isfinite(row.cell).all()),
        ("cell without volume", row.cell is not None and abs(np.linalg.det(row.cell)) < 1e-6),
    )
    return next((name for name, is_faulty in checks if is_faulty), "")


def split_task(labelled: TaskDataset, *, seed: int, test_fraction: float) -> Fold:
    """Split a dataset into a pool, from which training structures are drawn, and a test set without common groups.

    In each subset, groups are ordered by a hash of their names; the first ones, up to the share, are the test set.

    Args:
        labelled: The dataset.
        seed: Seed of the hash.
        test_fraction: The approximate share of the structures of each subset in the test set.

    Returns:
        The positions of the structures in the pool and in the test set.

    Raises:
        InputError: A subset has only one group, or the share is not between 0 and 1.
    """
    if not 0 < test_fraction < 1:
        raise InputError(f"the test share is {test_fraction}, expected a number between 0 and 1")
    is_test = np.zeros(len(labelled), dtype=bool)
    for name in np.unique(labelled.subset):
        rows = np.flatnonzero(labelled.subset == name)
        groups, group, sizes = np.unique(labelled.table.groups[rows], return_inverse=True, return_counts=True)
        if len(groups) < 2:
            where = f"subset {str(name)!r}" if name else "the data"
            raise InputError(
                f"{labelled.data_origin}: {where} has only the group {str(groups[0])!r}, which cannot be split"
            )
        order = np.argsort(hash_texts(groups, f"task {seed}"), kind="stable")
        # A group is taken if more than half of it fits: no other number of whole groups comes closer to the share.
        half_filled = np.cumsum(sizes[order]) - sizes[order] / 2
        count = int(np.clip(np.count_nonzero(half_filled < test_fraction * len(rows)), 1, len(groups) - 1))
        is_test[rows] = np.isin(group, order[:count])
    return np.flatnonzero(~is_test), np.flatnonzero(is_test)
