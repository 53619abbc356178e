"""The samples of a store as frames with total energies, whoever wrote the store."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.reference.data.structure import Array
from harness.reference.data.structure_table import Frames
from harness.reference.errors import InputError
from harness.reference.storage.adios.writer import BPFile
from harness.reference.storage.columns import text_of
from harness.reference.storage.schema import ELEMENTS, Block

STEP = 1024
REQUIRED = ("pos", "atomic_numbers", "energy", "cell", "pbc", "graph_attr")
COEFFICIENTS = "energy_linear_regression_coeff"


def read_blocks(file: BPFile, label: str, keys: tuple[str, ...] | None = None) -> Iterator[tuple[int, Block]]:
    """Yield the samples of a split in blocks, with the index of the first of each."""
    samples = file.samples(label)
    for first in range(0, samples, STEP):
        yield first, file.columns(label, first, min(first + STEP, samples), keys)


def read_numbers(block: Block) -> NDArray[np.uint8]:
    """Return the atomic numbers of a block, 0 in place of what is none."""
    values = block.columns["atomic_numbers"].values.reshape(-1)
    is_number = (values >= 1) & (values <= ELEMENTS) & (values == np.floor(values))
    return np.where(is_number, values, 0).astype(np.uint8)


def sum_coefficients(block: Block, coefficients: Array) -> Array:
    """Return the energy that a linear regression gives each structure, [samples] eV.

    coefficients: [118] of hydrogen and on.
    """
    sizes = block.columns["atomic_numbers"].rows(block.samples)
    owner = np.repeat(np.arange(block.samples), sizes)
    known = np.concatenate([[0.0], coefficients])[read_numbers(block)]
    return np.asarray(np.bincount(owner, weights=known, minlength=block.samples), dtype=np.float64)


def frames_of(block: Block, where: str, first: int, coefficients: Array | None) -> Frames:
    """Return a block as frames, which are named by split and index where the store has no names.

    coefficients: of the regression that was subtracted from the energies and is added again; None: energies are total.
    Raises InputError for columns that cannot be of structures.
    """
    missing = next((key for key in REQUIRED if key not in block.columns), None)
    if missing:
        raise InputError(f"{where} has no {missing!r}, which training needs")
    g = block.samples
    sizes = block.columns["pos"].rows(g)
    for key in ("atomic_numbers", "forces"):
        if key in block.columns and not np.array_equal(block.columns[key].rows(g), sizes):
            raise InputError(f"{where}: {key} and pos have other numbers of rows in samples from {first} on")
    names = np.array([f"{where}/{k}" for k in range(first, first + g)])
    energy = _shaped(block, "energy", (g,), where)
    graph = np.nan_to_num(_shaped(block, "graph_attr", (g, 2), where))
    if coefficients is not None:
        energy = energy + sum_coefficients(block, coefficients)
    n = int(sizes.sum())
    return Frames(
        ids=_texts(block, "id", names),
        groups=_texts(block, "group", names),
        sizes=sizes,
        numbers=read_numbers(block),
        positions=_shaped(block, "pos", (n, 3), where),
        energy=energy,
        cell=_shaped(block, "cell", (g, 3, 3), where),
        periodic=_shaped(block, "pbc", (g, 3), where) != 0,
        charge=np.rint(graph[:, 0]).astype(np.int64),
        multiplicity=np.rint(graph[:, 1]).astype(np.int64),
        forces=_shaped(block, "forces", (n, 3), where) if "forces" in block.columns else None,
        stress=_shaped(block, "stress", (g, 3, 3), where) if "stress" in block.columns else None,
    )


def compositions_of(block: Block) -> Frames:
    """Return frames of which only elements and energies, as they are stored, are known."""
    g = block.samples
    sizes = block.columns["atomic_numbers"].rows(g)
    names = np.zeros(g, dtype="U1")
    return Frames(
        ids=names,
        groups=names,
        sizes=sizes,
        numbers=read_numbers(block),
        positions=np.zeros((int(sizes.sum()), 3)),
        energy=_shaped(block, "energy", (g,), "energy"),
        cell=np.zeros((g, 3, 3)),
        periodic=np.zeros((g, 3), dtype=bool),
        charge=np.zeros(g, dtype=np.int64),
        multiplicity=np.zeros(g, dtype=np.int64),
    )


def _shaped(block: Block, key: str, shape: tuple[int, ...], where: str) -> Any:
    values = block.columns[key].values
    if values.size != np.prod(shape):
        raise InputError(f"{where}: {key} has shape {values.shape}, expected {shape} for {block.samples} structures")
    return values.reshape(shape).astype(np.float64)


def _texts(block: Block, key: str, otherwise: NDArray[np.str_]) -> NDArray[np.str_]:
    if key not in block.columns:
        return otherwise
    ends = block.columns[key].ends(block.samples).tolist()
    column = block.columns[key]
    return np.array([text_of(column.cut(a, b)) for a, b in pairwise(ends)])
