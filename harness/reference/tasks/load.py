"""Load the data of a downstream task: official files if there are any, else the shipped set."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from harness.reference.data.structure_table import StructureTable
from harness.reference.datasets.shipped_sets import decode_decimals
from harness.reference.errors import InputError, get_first_line
from harness.reference.tasks.catalog import TASKS, Task, find_task
from harness.reference.tasks.dataset import TaskDataset
from harness.reference.tasks.readers import crystals, matbench, md17, ms25, qm9, wiggle150

if TYPE_CHECKING:
    import h5py

FOLDER = Path(__file__).parent / "shipped"
TABLE = "tasks.yaml"


class ShippedSet(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One shipped set: the file shipped/<name>.h5, which shipped/tasks.yaml describes.

    Attributes:
        name: The task.
        role: Whether the set is a sample of the official data or a stand-in for them.
        chemistry: The kinds of structures.
        target: The quantity to predict, with its unit.
        level: The level of theory.
        count: Number of structures.
        rejected: A sentence: how many structures were computed but left out, and why.
        sha256: Digest of the file.
        provenance: Package, version and digest, or the program that computed the set.
        licence: The licence.
        attribution: The authors.
    """

    name: str
    role: Literal["official sample", "stand-in"]
    chemistry: str
    target: str
    level: str
    count: int
    rejected: str
    sha256: str
    provenance: str
    licence: str
    attribution: str

    @property
    def display_name(self) -> str:
        """The name of the set in reports."""
        title = find_task(self.name).title
        if self.role == "stand-in":
            return f"stand-in for {title}: {self.chemistry}"
        return f"official {title}, a sample of {self.count:,}"


@cache
def read_shipped_tasks(folder: Path = FOLDER) -> dict[str, ShippedSet]:
    """Return the shipped sets by the name of their task, in the order of the tasks.

    Raises:
        InputError: The table has an unknown task, a missing or unknown column, or a value that is not valid.
    """
    path = folder / TABLE
    try:
        rows = YAML(typ="safe").load(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except YAMLError as error:
        raise InputError(f"{path}: cannot be read ({get_first_line(error)})") from None
    if not isinstance(rows, dict):
        raise InputError(f"{path}: expected a table of tasks")
    if unknown := sorted(set(rows) - {t.name for t in TASKS}):
        raise InputError(f"{path}: {unknown[0]!r} is not a task")
    sets = {}
    for name in (t.name for t in TASKS if t.name in rows):
        try:
            sets[name] = msgspec.convert({"name": name, **rows[name]}, ShippedSet)
        except (TypeError, msgspec.ValidationError) as error:
            raise InputError(f"{path}: {name}: {error}") from None
    return sets


def load_shipped_task(name: str, folder: Path = FOLDER) -> TaskDataset | None:
    """Return the shipped set of a task, or None if there is none; raise InputError if its digest is not as recorded."""
    task = find_task(name)
    entry = read_shipped_tasks(folder).get(name)
    if entry is None:
        return None
    path = folder / f"{name}.h5"
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    if hashlib.sha256(data).hexdigest() != entry.sha256:
        raise InputError(f"{path}: sha256 differs from the one recorded for {name!r}")
    import h5py  # imported here, as planning a suite does not need it

    with h5py.File(io.BytesIO(data), "r") as file:
        dataset = _decode_dataset(file, entry, task)
    if len(dataset) != entry.count:
        raise InputError(f"{path}: {len(dataset)} structures, expected {entry.count}")
    return dataset


def _decode_dataset(file: h5py.File, entry: ShippedSet, task: Task) -> TaskDataset:
    sizes = file["natoms"][:].astype(np.int64)
    count = len(sizes)
    target = decode_decimals(file, "target")
    ids = _decode_texts(file, "id")
    known = target if task.kind != "property" else np.full(count, np.nan)
    table = StructureTable(
        ids=ids,
        groups=_decode_texts(file, "group"),
        sizes=sizes,
        numbers=file["numbers"][:],
        positions=decode_decimals(file, "positions"),
        energy=decode_decimals(file, "energy") if "energy" in file else known,
        cell=decode_decimals(file, "cell") if "cell" in file else np.zeros((count, 3, 3)),
        periodic=file["periodic"][:].astype(bool) if "periodic" in file else np.zeros((count, 3), dtype=bool),
        charge=np.zeros(count, dtype=np.int64),
        multiplicity=file["multiplicity"][:].astype(np.int64),
        forces=decode_decimals(file, "forces") if "forces" in file else None,
    )
    return TaskDataset(
        table=table,
        target=target,
        data_origin=entry.display_name,
        level=entry.level,
        official_ids=ids,
        subset=_decode_texts(file, "subset"),
    )


def _decode_texts(file: h5py.File, name: str) -> NDArray[np.str_]:
    return np.char.decode(file[name][:], "utf-8")


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


class MissingTaskData(InputError):
    """A task has neither official files nor a shipped set."""


def load_task(name: str, files: Path | None = None) -> TaskDataset:
    """Load the data of a task: FILES/<task>/ or FILES/<task>.<ending> if it exists, else the shipped set.

    Args:
        name: The task.
        files: The folder FILES with official files; None for the shipped set.

    Raises:
        InputError: The task is unknown, or its files cannot be read or have another name.
        MissingTaskData: There are neither official files nor a shipped set.
    """
    entry = find_task(name)
    path = None if files is None else find_official_path(entry, files)
    if path is not None:
        return READERS[name](path)
    dataset = load_shipped_task(name)
    if dataset is None:
        hint = "" if files is None else f" (looked in {files})"
        raise MissingTaskData(f"{entry.title}: needs {entry.files[0]}, from {entry.fetch}{hint}")
    return dataset


def find_official_path(entry: Task, files: Path) -> Path | None:
    """Return the path of a task's official files in a folder, or None if the folder has none.

    Raises:
        InputError: There is no such folder, or it has files of the task under a name that is not read.
    """
    if not files.is_dir():
        raise InputError(f"{files}: no such folder, expected one with a folder or file for each task")
    names = (entry.name, *(entry.name + ending for ending in ENDINGS))
    path = next((files / name for name in names if (files / name).exists()), None)
    if path is None:
        _refuse_other_names(entry, files)
    elif path.is_dir() and READERS[entry.name] is matbench.read_matbench:
        candidates = [path / name for name in entry.files if (path / name).is_file()]
        if not candidates:
            raise InputError(f"{path}: {entry.files[0]} is missing")
        return candidates[0]
    return path


def _refuse_other_names(entry: Task, files: Path) -> None:
    """Raise InputError if a name in the folder begins with that of the task, or is that of an official file."""
    patterns = (f"{entry.name}*", *(text.split()[0] for text in entry.files if not text.startswith("*")))
    for name in sorted(path.name for path in files.iterdir()):
        if any(fnmatch(name.lower(), pattern.lower()) for pattern in patterns):
            expected = f"{entry.name}/ with the files, or {entry.name} with the ending {', '.join(ENDINGS)}"
            raise InputError(f"{files}: {name!r} is not read as data of {entry.title}: expected {expected}")
