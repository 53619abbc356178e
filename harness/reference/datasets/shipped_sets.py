"""The small labelled sets that ship with the harness, one for each branch; shipped/sets.yaml describes them."""

from __future__ import annotations

import difflib
import hashlib
import io
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from ruamel.yaml import YAML

from harness.reference.data.structure import Array, Structure
from harness.reference.data.structure_table import Frames
from harness.reference.datasets.heads import HEADS
from harness.reference.errors import InputError

if TYPE_CHECKING:
    import h5py

FOLDER = Path(__file__).parent / "shipped"
TABLE = "sets.yaml"
# branches that hold the frames of another one's set: the charges they keep
VIEWS = {"omol25-neutral": ("omol25", True), "omol25-non-neutral": ("omol25", False)}


@dataclass(frozen=True)
class MiniSet:
    """One shipped set: shipped/<name>.h5, or the frames of another one's file by their charge.

    name: the head's name in lower case. sample: drawn from the branch's own dataset; otherwise a stand-in, with other
    chemistry or another level of theory. labels: of E, F, stress. count: structures. sha256: of the file. rejected:
    structures made but left out, and why. provenance: package, version and digest of the archive, or what computed it.
    """

    name: str
    head: str
    sample: bool
    level: str
    labels: str
    chemistry: str
    count: int
    rejected: str
    sha256: str
    provenance: str
    licence: str
    attribution: str

    @property
    def branch(self) -> int:
        """The branch id in the model."""
        return HEADS.index(self.head)

    @property
    def role(self) -> str:
        """How the set is to be called wherever its numbers are shown."""
        return f"sample of {self.head}" if self.sample else f"stand-in for {self.head}"

    @property
    def file(self) -> Path:
        """Where its frames are."""
        return FOLDER / f"{VIEWS[self.name][0] if self.name in VIEWS else self.name}.h5"


def read_table(path: Path) -> tuple[MiniSet, ...]:
    """The sets that a table describes, in the order of the branches; raises InputError naming what is missing."""
    rows = YAML(typ="safe").load(path)
    sets = []
    for head in HEADS:
        row = rows.get(head.lower())
        if row is None:
            raise InputError(f"{path}: no entry {head.lower()!r}")
        missing = [f.name for f in fields(MiniSet) if f.name not in {"name", "head", "sample", *row}]
        if missing:
            raise InputError(f"{path}: {head.lower()} lacks {', '.join(missing)}")
        words = {f.name: row[f.name] for f in fields(MiniSet) if f.name not in {"name", "head", "sample"}}
        sets.append(MiniSet(name=head.lower(), head=head, sample=row["role"] == "sample", **words))
    return tuple(sets)


MINI_SETS: tuple[MiniSet, ...] = read_table(FOLDER / TABLE)


def mini_set(name: str) -> MiniSet:
    """The set of that name; raises InputError with the known names and the closest."""
    for entry in MINI_SETS:
        if entry.name == name:
            return entry
    names = [s.name for s in MINI_SETS]
    close = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.5)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    raise InputError(f"no mini set {name!r}{hint}; there are {', '.join(names)}")


def load_frames(entry: MiniSet) -> Frames:
    """Read a shipped set after checking its digest; raises InputError if the file is not the one described."""
    try:
        data = entry.file.read_bytes()
    except OSError as error:
        raise InputError(f"{entry.file}: cannot be read ({error.strerror})") from None
    if hashlib.sha256(data).hexdigest() != entry.sha256:
        raise InputError(f"{entry.file}: sha256 differs from the one recorded for {entry.name!r}")
    import h5py  # not where suites are only planned

    with h5py.File(io.BytesIO(data), "r") as file:
        frames = columns(file)
    if entry.name in VIEWS:
        frames = frames[(frames.charge == 0) == VIEWS[entry.name][1]]
    if len(frames) != entry.count:
        raise InputError(f"{entry.file}: {len(frames)} structures, expected {entry.count}")
    return frames


def load_mini(entry: MiniSet) -> list[Structure]:
    """The structures of a shipped set, each checked; InputError as from load_frames."""
    return [s.check() for s in load_frames(entry).structures(head=entry.branch)]


def columns(file: h5py.File) -> Frames:
    """All columns of a shipped file, the fixed-point ones as numbers."""
    sizes = file["natoms"][:].astype(np.int64)
    return Frames(
        ids=np.array([f"{file.attrs['slug']}/{k}" for k in range(len(sizes))]),
        groups=np.char.decode(file["group"][:], "utf-8"),
        sizes=sizes,
        numbers=file["numbers"][:],
        positions=_decimal(file, "positions"),
        energy=_decimal(file, "energy"),
        cell=_decimal(file, "cell"),
        periodic=file["periodic"][:].astype(bool),
        charge=file["charge"][:].astype(np.int64),
        multiplicity=file["multiplicity"][:].astype(np.int64),
        forces=_decimal(file, "forces"),
        stress=_decimal(file, "stress") if "stress" in file else None,
    )


def _decimal(file: h5py.File, name: str) -> Array:
    """A column of fixed-point numbers; the division gives the double nearest to each decimal."""
    column = file[name]
    integers: NDArray[np.int64] = column[:]
    return np.asarray(integers / 10.0 ** int(column.attrs["decimals"]))
