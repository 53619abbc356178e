"""A downstream task's data: the official files where they are given, else the set that ships."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from harness.reference.errors import InputError
from harness.reference.tasks.catalog import TASKS, Task, task
from harness.reference.tasks.dataset import Labelled
from harness.reference.tasks.readers import abx3, matbench, md17, ms25, oqmd, qm9, wiggle150
from harness.reference.tasks.shipped_sets import shipped

READERS: dict[str, Callable[[Path], Labelled]] = {
    "qm9": qm9.read,
    "md17": md17.read,
    "wiggle150": wiggle150.read,
    "ms25": ms25.read,
    "oqmd": oqmd.read,
    "abx3": abx3.read,
    **{t.name: matbench.read for t in TASKS if t.name.startswith("matbench_")},
}
ENDINGS = (".json.gz", ".json", ".npz", ".xyz", ".extxyz", ".csv", ".traj")


class Absent(InputError):
    """Nothing of a task is at hand."""


def open_task(name: str, files: Path | None = None) -> Labelled:
    """The data of a task: from FILES/<task>/ or FILES/<task>.<ending> if there, else what ships.

    Raises InputError for an unknown task, for files that cannot be read, and Absent where there is neither.
    """
    entry = task(name)
    path = None if files is None else official(entry, files)
    if path is not None:
        return READERS[name](path)
    found = shipped(name)
    if found is None:
        looked = "" if files is None else f" (looked in {files})"
        raise Absent(f"{entry.title}: needs {entry.official[0]}, from {entry.fetch}{looked}")
    return found


def official(entry: Task, files: Path) -> Path | None:
    """Where the official files of a task lie in a folder, if they do; raises InputError if there is no such folder."""
    if not files.is_dir():
        raise InputError(f"{files}: no such folder, expected one with a folder or file for each task")
    names = (entry.name, *(entry.name + ending for ending in ENDINGS))
    found = next((files / name for name in names if (files / name).exists()), None)
    if found is not None and found.is_dir() and READERS[entry.name] is matbench.read:
        inside = [found / name for name in entry.official if (found / name).is_file()]
        if not inside:
            raise InputError(f"{found}: {entry.official[0]} is not there")
        return inside[0]
    return found
