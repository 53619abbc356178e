"""The facts of a store: its dataset, its level of theory and its reference energies."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.reference.data.structure import Array
from harness.reference.data.structure_table import StructureTable
from harness.reference.datasets import reference_energies
from harness.reference.datasets.catalog import DatasetSource, find_source
from harness.reference.datasets.reference_energies import References, count_elements
from harness.reference.errors import InputError
from harness.reference.storage.adios.integrity import find_seal
from harness.reference.storage.adios.reader import BPFile
from harness.reference.storage.schema import ELEMENTS, Block, Column, move_samples_first
from harness.reference.storage.structure_codec import decode_block, decode_numbers

VERSION_SUFFIX = re.compile(r"-v\d+$")  # HydraGNN's suffix: NAME-v2.bp has references subtracted
OTHER_NAMES = {"opoly26": "opoly2026"}  # names that HydraGNN's converters use
REFERENCED, TOTAL = "referenced", "total"
COEFFICIENTS = "energy_linear_regression_coeff"
BLOCK_SAMPLES = 1024
LENGTH_TOLERANCE = 1e-3  # relative and in angstrom: HydraGNN computes in single precision
TABLE_KEYS = ("pos", "forces", "energy", "cell")
Mask = NDArray[np.bool_]
ColumnFinding = tuple[str, Mask, str]  # kind, mask of the structures [g], reason


@dataclass(frozen=True)
class StoreFacts:
    """The facts of a store.

    Attributes:
        source: The dataset.
        about: Facts of the dataset, including its data origin (`role`) and level of theory (`level`).
        references: The reference energies.
        energies: "total", or "referenced" if the reference energies are subtracted from the stored energies.
        statistics: Statistics of the structures, as plain data.
        left_out: Indices of the samples of each split that cannot be used.
    """

    source: DatasetSource
    about: Mapping[str, Any]
    references: References
    energies: str
    statistics: Mapping[str, Any]
    left_out: Mapping[str, list[int]]

    @property
    def data_origin(self) -> str:
        """The name of the data in reports."""
        return str(self.about["role"])

    @property
    def level(self) -> str:
        """The level of theory of the labels."""
        return str(self.about["level"])


def find_named_source(name: str) -> DatasetSource:
    """Return the dataset by its name in HydraGNN's files or attributes; raises InputError if it is unknown."""
    plain = VERSION_SUFFIX.sub("", name.lower())
    return find_source(OTHER_NAMES.get(plain, plain))


def is_bp_folder(path: Path) -> bool:
    """Return whether a path looks like a BP folder."""
    return (path / "md.idx").is_file()


def require_seal(path: Path) -> None:
    """Raise InputError, with the command to run, if a store of HydraGNN has no seal yet."""
    if not is_bp_folder(path) or find_seal(path) is not None:
        return
    try:
        name = find_named_source(path.stem).slug
    except InputError:
        name = "DATASET"
    raise InputError(
        f"{path}: has no harness.json; a store of HydraGNN gets one next to it, without a copy, by"
        f" `harness data convert {name} {path}`"
    )


def describe_store(file: BPFile) -> StoreFacts:
    """Return the facts of a store; raises InputError, with a remedy, if it has none."""
    attributes = file.attributes
    if not file.is_sealed:
        require_seal(file.path)
    try:
        about, references = attributes["about"], attributes["references"]
        left_out = {
            label: sorted(map(int, indices)) for label, indices in attributes.get("left_out_samples", {}).items()
        }
        facts = StoreFacts(
            find_source(str(about["slug"])),
            {**about, "role": str(about["role"]), "level": str(about["level"])},
            reference_energies.from_json(references),
            energies=str(attributes.get("energies", TOTAL)),
            statistics=dict(attributes["statistics"]),
            left_out=left_out,
        )
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError):
        raise InputError(
            f"{file.path}: has neither a level of theory nor reference energies; convert it again"
        ) from None
    for label, indices in left_out.items():
        if label not in file.splits or len(set(indices)) < len(indices):
            raise InputError(f"{file.path}: damaged, its list of unusable samples names {label[:80]!r}")
        if indices and not 0 <= indices[0] <= indices[-1] < file.count_samples(label):
            raise InputError(f"{file.path}: damaged, its list of unusable samples exceeds {label}")
    if facts.energies not in (REFERENCED, TOTAL) or np.isinf(facts.references.energy_ev).any():
        raise InputError(f"{file.path}: damaged, its energies are neither total nor referenced")
    return facts


def read_blocks(file: BPFile, label: str, keys: tuple[str, ...] | None = None) -> Iterator[tuple[int, Block]]:
    """Yield the samples of a split in blocks, as (index of the first sample, block)."""
    samples = file.count_samples(label)
    for first in range(0, samples, BLOCK_SAMPLES):
        yield first, file.columns(label, first, min(first + BLOCK_SAMPLES, samples), keys)


def sum_coefficients(block: Block, coefficients: Array) -> Array:
    """Return the energy of each structure by a linear regression on composition, [samples] eV.

    Args:
        block: The structures.
        coefficients: [118] eV for each element, from hydrogen on.
    """
    sizes = block.columns["atomic_numbers"].rows(block.samples)
    owner = np.repeat(np.arange(block.samples), sizes)
    known = np.concatenate([[0.0], coefficients])[decode_numbers(block)]
    return np.asarray(np.bincount(owner, weights=known, minlength=block.samples), dtype=np.float64)


def decode_total_energies(block: Block, *, where: str, first: int, coefficients: Array | None) -> StructureTable:
    """Return a block as a table with total energies.

    Args:
        block: As in `decode_block`.
        where: As in `decode_block`.
        first: As in `decode_block`.
        coefficients: The coefficients of the regression that was subtracted from the stored energies, or None.

    Raises:
        InputError: As in `decode_block`.
    """
    table = decode_block(block, where=where, first=first)
    return (
        table if coefficients is None else replace(table, energy=table.energy + sum_coefficients(block, coefficients))
    )


def check_columns(block: Block, table: StructureTable) -> list[ColumnFinding]:
    """Return masks of structures with non-finite values, a wrong number of atoms, or edges to missing atoms."""
    g = block.samples
    findings: list[ColumnFinding] = []
    for name, column in block.columns.items():
        if column.values.dtype.kind == "f" and name not in TABLE_KEYS:
            rows = ~np.isfinite(move_samples_first(column.values, column.axis)).reshape(
                column.values.shape[column.axis], -1
            )
            findings.append(("not finite", _any_row(column, rows.any(axis=1), g), f"{name} is not finite"))
    natoms = block.columns.get("natoms")
    if natoms is not None:
        fits = natoms.values.size == g
        differs: Mask = natoms.values.reshape(-1) != table.sizes if fits else np.ones(g, dtype=bool)
        findings.append(("natoms", differs, "natoms is not the number of positions"))
    if "edge_index" in block.columns:
        index, owner = _read_edges(block.columns["edge_index"], g)
        outside = np.asarray(((index < 0) | (index >= table.sizes[owner])).any(axis=0))
        findings.append(("edges", _any_of_structure(owner, outside, g), "edge_index names an atom that does not exist"))
    return findings


def find_inconsistencies(block: Block, table: StructureTable) -> list[ColumnFinding]:
    """Return masks of structures in which a column that training does not read contradicts one that it reads."""
    g, n = block.samples, int(table.sizes.sum())
    findings: list[ColumnFinding] = []
    composition = block.columns.get("chemical_composition")
    if composition is not None and composition.values.size == g * ELEMENTS:
        differs: Mask = (composition.values.reshape(g, ELEMENTS) != count_elements(table)[:, 1:]).any(axis=1)
        findings.append(("chemical_composition", differs, "chemical_composition is not that of atomic_numbers"))
    x = block.columns.get("x")
    if x is not None and len(x.values) == n and x.values.ndim == 2:
        differs = x.values[:, 0] != block.columns["atomic_numbers"].values.reshape(-1)
        findings.append(("x", _any_of_structure(table.owner, differs, g), "x has other elements than atomic_numbers"))
    if {"edge_index", "edge_attr", "edge_shifts"} <= block.columns.keys():
        findings += _compare_lengths(block, table)
    return findings


def _compare_lengths(block: Block, table: StructureTable) -> list[ColumnFinding]:
    index, owner = _read_edges(block.columns["edge_index"], block.samples)
    length, shift = block.columns["edge_attr"].values, block.columns["edge_shifts"].values
    if length.size != len(owner) or shift.size != 3 * len(owner):
        return []
    inside = ((index >= 0) & (index < table.sizes[owner])).all(axis=0)
    sender, receiver = np.where(inside, index, 0) + (table.ends - table.sizes)[owner]
    vector = table.positions[receiver] - table.positions[sender] + shift.reshape(-1, 3)
    distance = np.linalg.norm(vector, axis=1)
    differs = inside & (np.abs(distance - length.reshape(-1)) > LENGTH_TOLERANCE * (1.0 + distance))
    return [
        ("edge_attr", _any_of_structure(owner, differs, block.samples), "edge_attr is not the distance of its atoms")
    ]


def _read_edges(column: Column, samples: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the two atoms of each edge as indices within the structure, [2, e], and the structure, [e]."""
    if column.axis == 1:
        return column.values, np.repeat(np.arange(samples), column.rows(samples))
    # All samples have equal numbers of edges: the two rows of each follow one another.
    edges = column.values.shape[1]
    index = column.values.reshape(samples, 2, edges).transpose(1, 0, 2).reshape(2, -1)
    return index, np.repeat(np.arange(samples), edges)


def _any_row(column: Column, rows: Mask, samples: int) -> Mask:
    return _any_of_structure(np.repeat(np.arange(samples), column.rows(samples)), rows, samples)


def _any_of_structure(owner: NDArray[np.int64], mask: Mask, samples: int) -> Mask:
    """Return whether the mask is true for any row of each structure, [samples]."""
    return np.asarray(np.bincount(owner, weights=mask, minlength=samples) > 0)
