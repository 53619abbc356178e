"""The data of a downstream task: the official files if they are provided, else the shipped set."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from harness.reference.errors import InputError
from harness.reference.tasks.catalog import TASKS, Task, find_task
from harness.reference.tasks.dataset import TaskDataset
from harness.reference.tasks.readers import crystals, matbench, md17, ms25, qm9, wiggle150
from harness.reference.tasks.shipped_sets import load_shipped_task

READERS: dict[str, Callable[[Path], TaskDataset]] = {
    "qm9": qm9.read_qm9,
    "md17": md17.read_md17,
    "wiggle150": wiggle150.read_wiggle150,
    "ms25": ms25.read_ms25,
    "oqmd": crystals.read_oqmd,
    "abx3": crystals.read_abx3,
    **{t.name: matbench.read_matbench for t in TASKS if t.name.startswith("matbench_")},
}
ENDINGS = (".json.gz", ".json", ".npz", ".xyz", ".extxyz", ".csv", ".traj")


class TaskDataUnavailable(InputError):
    """There are neither official files nor a shipped set of a task."""


def load_task(name: str, files: Path | None = None) -> TaskDataset:
    """Return the data of a task: FILES/<task>/ or FILES/<task>.<ending> if it exists, else the shipped set.

    Raises InputError for an unknown task and for unreadable files, and TaskDataUnavailable if there is neither.
    """
    entry = find_task(name)
    path = None if files is None else find_official_path(entry, files)
    if path is not None:
        return READERS[name](path)
    dataset = load_shipped_task(name)
    if dataset is None:
        hint = "" if files is None else f" (looked in {files})"
        raise TaskDataUnavailable(f"{entry.title}: needs {entry.official[0]}, from {entry.fetch}{hint}")
    return dataset


def find_official_path(entry: Task, files: Path) -> Path | None:
    """Return the path of a task's official files in a folder, or None; raises InputError if there is no such folder."""
    if not files.is_dir():
        raise InputError(f"{files}: no such folder, expected one with a folder or file for each task")
    names = (entry.name, *(entry.name + ending for ending in ENDINGS))
    path = next((files / name for name in names if (files / name).exists()), None)
    if path is not None and path.is_dir() and READERS[entry.name] is matbench.read_matbench:
        inside = [path / name for name in entry.official if (path / name).is_file()]
        if not inside:
            raise InputError(f"{path}: {entry.official[0]} is not there")
        return inside[0]
    return path
