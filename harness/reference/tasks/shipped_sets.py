"""The small labelled sets that ship with the harness for the downstream tasks; shipped/tasks.yaml describes them."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from ruamel.yaml import YAML

from harness.reference.data.structure import Array
from harness.reference.data.structure_table import Frames
from harness.reference.errors import InputError
from harness.reference.tasks.catalog import TASKS, Task, task
from harness.reference.tasks.dataset import Labelled

if TYPE_CHECKING:
    import h5py

FOLDER = Path(__file__).parent / "shipped"
TABLE = "tasks.yaml"
ROLES = ("official sample", "stand-in")


@dataclass(frozen=True)
class ShippedSet:
    """One row of the table: shipped/<name>.h5.

    role: of ROLES. target: what the values are, with the unit. count: structures. sha256: of the file. rejected:
    structures made but left out, and why. provenance: package, version and digest, or what computed it.
    """

    name: str
    role: str
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
    def words(self) -> str:
        """How the set is to be called wherever its numbers are shown."""
        title = task(self.name).title
        if self.role == "stand-in":
            return f"stand-in for {title}: {self.chemistry}"
        return f"official {title}, a sample of {self.count:,}"


@cache
def shipped_sets(folder: Path = FOLDER) -> dict[str, ShippedSet]:
    """The sets by the name of their task, in the order of the tasks; raises InputError naming what is wrong."""
    path = folder / TABLE
    rows = YAML(typ="safe").load(path)
    if unknown := sorted(set(rows) - {t.name for t in TASKS}):
        raise InputError(f"{path}: {unknown[0]!r} is no task")
    found = {}
    for name in (t.name for t in TASKS if t.name in rows):
        row = rows[name]
        words = {f.name for f in fields(ShippedSet)} - {"name"}
        if missing := sorted(words - row.keys()):
            raise InputError(f"{path}: {name} lacks {', '.join(missing)}")
        if unknown := sorted(row.keys() - words):
            raise InputError(f"{path}: {name} has {unknown[0]!r}, which is no column")
        if row["role"] not in ROLES:
            raise InputError(f"{path}: {name} has the role {row['role']!r}, expected one of {', '.join(ROLES)}")
        found[name] = ShippedSet(name=name, **row)
    return found


def shipped(name: str, folder: Path = FOLDER) -> Labelled | None:
    """The set that ships for a task, or None; raises InputError if its file is not the one described."""
    wanted = task(name)
    entry = shipped_sets(folder).get(name)
    if entry is None:
        return None
    path = folder / f"{name}.h5"
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    if hashlib.sha256(data).hexdigest() != entry.sha256:
        raise InputError(f"{path}: sha256 differs from the one recorded for {name!r}")
    import h5py  # not where suites are only planned

    with h5py.File(io.BytesIO(data), "r") as file:
        labelled = _labelled(file, entry, wanted)
    if len(labelled) != entry.count:
        raise InputError(f"{path}: {len(labelled)} structures, expected {entry.count}")
    return labelled


def _labelled(file: h5py.File, entry: ShippedSet, wanted: Task) -> Labelled:
    sizes = file["natoms"][:].astype(np.int64)
    count = len(sizes)
    target = _decimal(file, "target")
    ids = _text(file, "id")
    known = target if wanted.kind != "property" else np.full(count, np.nan)
    frames = Frames(
        ids=ids,
        groups=_text(file, "group"),
        sizes=sizes,
        numbers=file["numbers"][:],
        positions=_decimal(file, "positions"),
        energy=_decimal(file, "energy") if "energy" in file else known,
        cell=_decimal(file, "cell") if "cell" in file else np.zeros((count, 3, 3)),
        periodic=file["periodic"][:].astype(bool) if "periodic" in file else np.zeros((count, 3), dtype=bool),
        charge=np.zeros(count, dtype=np.int64),
        multiplicity=file["multiplicity"][:].astype(np.int64),
        forces=_decimal(file, "forces") if "forces" in file else None,
    )
    return Labelled(
        frames=frames,
        target=target,
        role=entry.words,
        level=entry.level,
        official_ids=ids,
        subset=_text(file, "subset"),
    )


def _text(file: h5py.File, name: str) -> NDArray[np.str_]:
    return np.char.decode(file[name][:], "utf-8")


def _decimal(file: h5py.File, name: str) -> Array:
    """A column of fixed-point numbers; the division gives the double nearest to each decimal."""
    column = file[name]
    integers: NDArray[np.int64] = column[:]
    return np.asarray(integers / 10.0 ** int(column.attrs["decimals"]))
