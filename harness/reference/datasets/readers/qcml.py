"""QCML: the TFDS folder qcml/dft_force_field, in atomic units (Ganscha et al., Sci. Data 12, 406 (2025))."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from harness.reference.data.structure import Array
from harness.reference.data.structure_table import Fault, Frames
from harness.reference.datasets.containers.tfrecord import example, records
from harness.reference.datasets.parsing.base import Format, Part
from harness.reference.datasets.parsing.composition import formula
from harness.reference.datasets.parsing.paths import below_folder, files
from harness.reference.datasets.parsing.structure_builder import Row, Unfit, gathered, made, missing, need, row
from harness.reference.datasets.units import BOHR_ANGSTROM, HARTREE_EV
from harness.reference.errors import InputError

SHARD = re.compile(r"\.tfrecord(-\d+-of-\d+)?$")
FEATURES = ("atomic_numbers", "positions", "pbe0_energy", "pbe0_forces")


def parts(paths: Sequence[Path]) -> list[Part]:
    """One part for each shard."""
    shards: list[Path] = []
    for path in paths:
        below = [p for p in below_folder(path) if SHARD.search(p.name)] if path.is_dir() else [path]
        if not below:
            raise InputError(f"{path}: no TFRecord shards in this folder (looked for *.tfrecord-<k>-of-<n>)")
        shards += below
    found = files(shards, (), "TFRecord shards")
    for folder in sorted({path.parent for path, _ in found}):
        _described(folder)
    next(records(found[0][0]), None)
    return [Part(path, label) for path, label in found]


def _described(folder: Path) -> None:
    """Raises InputError where features.json beside the shards has not the features that are read."""
    path = folder / "features.json"
    if not path.is_file():
        return
    try:
        named = orjson.loads(path.read_bytes())["featuresDict"]["features"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        raise InputError(f"{path}: not the description of a TFDS dataset") from None
    for feature in FEATURES:
        if feature not in named:
            raise InputError(f"{path}: not qcml/dft_force_field, {missing(feature, named)}")


def read(part: Part) -> Iterator[Frames | Fault]:
    """Molecules in the order of the shard; what its authors flag as outliers is a fault of that kind."""
    yield from gathered(made(_samples(part), _row))


def _samples(part: Part) -> Iterator[tuple[str, Any]]:
    for k, data in enumerate(records(part.path)):
        where = f"{part.key}/{k}"
        yield where, Fault(where, "corrupt", "the record's checksum is wrong") if data is None else data


def _row(where: str, data: bytes) -> Row:
    found = example(data)
    if any(found.get("is_outlier", ())):
        raise Unfit("outlier", "flagged by the dataset's authors")
    numbers = need(found, "atomic_numbers")
    return row(
        where,
        formula(numbers),
        numbers,
        _reals(found, "positions") * BOHR_ANGSTROM,
        energy=_reals(found, "pbe0_energy")[0] * HARTREE_EV,
        forces=_reals(found, "pbe0_forces") * (HARTREE_EV / BOHR_ANGSTROM),
        charge=_integer(found, "charge"),
        multiplicity=_integer(found, "multiplicity"),
    )


def _reals(found: dict[str, Any], name: str) -> Array:
    values = need(found, name)
    if not isinstance(values, np.ndarray) or not len(values):
        raise Unfit("malformed", f"{name!r} holds no floats")
    return values.astype(np.float64)


def _integer(found: dict[str, Any], name: str) -> int:
    values = found.get(name, ())
    return int(values[0]) if len(values) else 0


FORMAT = Format("qcml", "tfds/qcml/dft_force_field/1.0.0 (TFRecord shards)", parts, read)
