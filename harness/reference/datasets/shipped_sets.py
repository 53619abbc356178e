"""The small labelled sets that ship with the harness, one for each head; shipped/sets.yaml describes them."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from ruamel.yaml import YAML

from harness.protocol.errors import did_you_mean
from harness.reference.data.structure import Array, Structure
from harness.reference.data.structure_table import StructureTable
from harness.reference.datasets.catalog import HEADS
from harness.reference.errors import InputError

if TYPE_CHECKING:
    import h5py

FOLDER = Path(__file__).parent / "shipped"
TABLE = "sets.yaml"
# sets whose structures are in the file of another set: the name of that set, and whether they are its neutral ones
CHARGE_VIEWS = {"omol25-neutral": ("omol25", True), "omol25-non-neutral": ("omol25", False)}


@dataclass(frozen=True)
class ShippedSet:
    """One shipped set: the file shipped/<name>.h5, or the neutral or charged structures of another set's file.

    Attributes:
        name: The name of the head in lower case.
        head: The head.
        sample: Whether the set is a sample of the head's dataset; otherwise it is a stand-in, with other chemistry or
            another level of theory.
        level: The level of theory.
        labels: The kind of energy and the other labels.
        chemistry: The kinds of structures.
        count: Number of structures.
        rejected: Number of structures that were computed but left out, and the reasons.
        sha256: Digest of the file.
        provenance: Package, version and digest of the archive, or the program that computed the set.
        licence: The licence.
        attribution: The authors.
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
        """The index of the head in the model."""
        return HEADS.index(self.head)

    @property
    def data_origin(self) -> str:
        """The name of the set in reports, such as "stand-in for MPTrj"."""
        return f"sample of {self.head}" if self.sample else f"stand-in for {self.head}"

    @property
    def file(self) -> Path:
        """The file with its structures."""
        return FOLDER / f"{CHARGE_VIEWS[self.name][0] if self.name in CHARGE_VIEWS else self.name}.h5"


def read_table(path: Path) -> tuple[ShippedSet, ...]:
    """Return the sets of a table in the order of HEADS; raises InputError with the name of a missing entry."""
    rows = YAML(typ="safe").load(path)
    sets = []
    for head in HEADS:
        row = rows.get(head.lower())
        if row is None:
            raise InputError(f"{path}: no entry {head.lower()!r}")
        missing = [f.name for f in fields(ShippedSet) if f.name not in {"name", "head", "sample", *row}]
        if missing:
            raise InputError(f"{path}: {head.lower()} lacks {', '.join(missing)}")
        values = {f.name: row[f.name] for f in fields(ShippedSet) if f.name not in {"name", "head", "sample"}}
        sets.append(ShippedSet(name=head.lower(), head=head, sample=row["role"] == "sample", **values))
    return tuple(sets)


SHIPPED_SETS: tuple[ShippedSet, ...] = read_table(FOLDER / TABLE)


def find_shipped_set(name: str) -> ShippedSet:
    """Return the set of a name; raises InputError, with the closest name, if there is none."""
    for entry in SHIPPED_SETS:
        if entry.name == name:
            return entry
    raise InputError(f"no shipped set {name!r}{did_you_mean(name.lower(), (s.name for s in SHIPPED_SETS))}")


def load_table(entry: ShippedSet) -> StructureTable:
    """Read a shipped set; raises InputError if its file does not have the recorded digest and number of structures."""
    try:
        data = entry.file.read_bytes()
    except OSError as error:
        raise InputError(f"{entry.file}: cannot be read ({error.strerror})") from None
    if hashlib.sha256(data).hexdigest() != entry.sha256:
        raise InputError(f"{entry.file}: sha256 differs from the one recorded for {entry.name!r}")
    import h5py  # imported here, as planning a suite does not need it

    with h5py.File(io.BytesIO(data), "r") as file:
        table = decode_columns(file)
    if entry.name in CHARGE_VIEWS:
        table = table[(table.charge == 0) == CHARGE_VIEWS[entry.name][1]]
    if len(table) != entry.count:
        raise InputError(f"{entry.file}: {len(table)} structures, expected {entry.count}")
    return table


def load_structures(entry: ShippedSet) -> list[Structure]:
    """Load the structures of a shipped set and check each; raises InputError as `load_table` does."""
    return [s.check() for s in load_table(entry).structures(head=entry.branch)]


def decode_columns(file: h5py.File) -> StructureTable:
    """Return all columns of a shipped file, with fixed-point columns converted to floating point."""
    sizes = file["natoms"][:].astype(np.int64)
    slug = file.attrs["slug"]
    return StructureTable(
        ids=np.array([f"{slug}/{k}" for k in range(len(sizes))]),
        groups=np.char.decode(file["group"][:], "utf-8"),
        sizes=sizes,
        numbers=file["numbers"][:],
        positions=decode_decimals(file, "positions"),
        energy=decode_decimals(file, "energy"),
        cell=decode_decimals(file, "cell"),
        periodic=file["periodic"][:].astype(bool),
        charge=file["charge"][:].astype(np.int64),
        multiplicity=file["multiplicity"][:].astype(np.int64),
        forces=decode_decimals(file, "forces"),
        stress=decode_decimals(file, "stress") if "stress" in file else None,
    )


def decode_decimals(file: h5py.File, name: str) -> Array:
    """Return a column of fixed-point numbers as the doubles that are nearest to the decimal values."""
    column = file[name]
    integers: NDArray[np.int64] = column[:]
    return np.asarray(integers / 10.0 ** int(column.attrs["decimals"]))
