"""Whether the columns of a block of HydraGNN's samples agree with each other."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from harness.reference.data.structure_table import Frames
from harness.reference.datasets.statistics.reference_energies import compositions
from harness.reference.storage.schema import ELEMENTS, Block, Column, sample_major

LENGTH_TOLERANCE = 1e-3  # relative and angstrom: the original computes in single precision
JUDGED_ELSEWHERE = ("pos", "forces", "energy", "cell")
Mask = NDArray[np.bool_]
Finding = tuple[str, Mask, str]  # kind, structures, reason


def find_faults(block: Block, frames: Frames) -> list[Finding]:
    """What makes structures of no use: values that are not finite, counts and edges of other structures."""
    g = block.samples
    result: list[Finding] = []
    for name, column in block.columns.items():
        if column.values.dtype.kind == "f" and name not in JUDGED_ELSEWHERE:
            rows = ~np.isfinite(sample_major(column.values, column.axis)).reshape(column.values.shape[column.axis], -1)
            result.append(("not finite", _any_row(column, rows.any(axis=1), g), f"{name} is not finite"))
    natoms = block.columns.get("natoms")
    if natoms is not None:
        alike = natoms.values.size == g
        differs: Mask = natoms.values.reshape(-1) != frames.sizes if alike else np.ones(g, dtype=bool)
        result.append(("natoms", differs, "natoms is not the number of positions"))
    if "edge_index" in block.columns:
        index, owner = _read_edges(block.columns["edge_index"], g)
        outside = np.asarray(((index < 0) | (index >= frames.sizes[owner])).any(axis=0))
        result.append(("edges", _any_of(owner, outside, g), "edge_index names an atom that is not there"))
    return result


def find_oddities(block: Block, frames: Frames) -> list[Finding]:
    """What contradicts what training reads, and is not read by it."""
    g, n = block.samples, int(frames.sizes.sum())
    result: list[Finding] = []
    composition = block.columns.get("chemical_composition")
    if composition is not None and composition.values.size == g * ELEMENTS:
        differs: Mask = (composition.values.reshape(g, ELEMENTS) != compositions(frames)[:, 1:]).any(axis=1)
        result.append(("chemical_composition", differs, "chemical_composition is not that of atomic_numbers"))
    x = block.columns.get("x")
    if x is not None and len(x.values) == n and x.values.ndim == 2:
        differs = x.values[:, 0] != block.columns["atomic_numbers"].values.reshape(-1)
        result.append(("x", _any_of(frames.owner, differs, g), "x has other elements than atomic_numbers"))
    if {"edge_index", "edge_attr", "edge_shifts"} <= block.columns.keys():
        result += _compare_lengths(block, frames)
    return result


def _compare_lengths(block: Block, frames: Frames) -> list[Finding]:
    index, owner = _read_edges(block.columns["edge_index"], block.samples)
    length, shift = block.columns["edge_attr"].values, block.columns["edge_shifts"].values
    if length.size != len(owner) or shift.size != 3 * len(owner):
        return []
    inside = ((index >= 0) & (index < frames.sizes[owner])).all(axis=0)
    sender, receiver = np.where(inside, index, 0) + (frames.ends - frames.sizes)[owner]
    vector = frames.positions[receiver] - frames.positions[sender] + shift.reshape(-1, 3)
    apart = np.linalg.norm(vector, axis=1)
    differs = inside & (np.abs(apart - length.reshape(-1)) > LENGTH_TOLERANCE * (1.0 + apart))
    return [("edge_attr", _any_of(owner, differs, block.samples), "edge_attr is not the distance of its atoms")]


def _read_edges(column: Column, samples: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the atoms of each edge, [2, e] within their structure, and its structure, [e]."""
    if column.axis == 1:
        return column.values, np.repeat(np.arange(samples), column.rows(samples))
    # All samples have as many edges: their two rows are one below the other.
    edges = column.values.shape[1]
    index = column.values.reshape(samples, 2, edges).transpose(1, 0, 2).reshape(2, -1)
    return index, np.repeat(np.arange(samples), edges)


def _any_row(column: Column, rows: Mask, samples: int) -> Mask:
    return _any_of(np.repeat(np.arange(samples), column.rows(samples)), rows, samples)


def _any_of(owner: NDArray[np.int64], mask: Mask, samples: int) -> Mask:
    """Whether it holds for any row of each structure, [samples]."""
    return np.asarray(np.bincount(owner, weights=mask, minlength=samples) > 0)
