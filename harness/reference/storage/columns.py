"""Structures and their neighbour lists as the columns of a store."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from harness.reference.data.neighbour_columns import Edges
from harness.reference.data.structure_table import Frames
from harness.reference.errors import InputError
from harness.reference.storage.schema import ELEMENTS, KEYS, Block, Column

Values = NDArray[Any]


def frames_block(
    frames: Frames,
    edges: Edges | None = None,
    *,
    dtype: Literal["float64", "float32"] = "float64",
    target: Literal["energy", "energy_per_atom"] = "energy",
    keys: Collection[str] | None = None,
) -> Block:
    """All keys of the layout that the structures have, or those asked for; `y` is the target.

    float64 keeps every bit; the original stores float32. Raises InputError for an unlabelled energy and other values
    that are not finite, and for no structures.
    """
    if not np.all(frames.sizes):
        raise InputError(f"structure {str(frames.ids[np.argmin(frames.sizes)])!r} has no atoms")
    if len(frames) and not 1 <= frames.numbers.min() <= frames.numbers.max() <= ELEMENTS:
        raise InputError(f"an atomic number of {str(frames.ids[0])!r} or a later structure is not in 1..{ELEMENTS}")
    values: dict[str, Values] = _structure_values(frames, target) | _atom_values(frames)
    atoms = np.asarray(frames.sizes, dtype=np.int64)
    counts: dict[str, NDArray[np.int64]] = {"atom": atoms}
    if edges is not None:
        values |= _edge_values(edges)
        counts["edge"] = np.asarray(edges.counts, dtype=np.int64)
    columns = {}
    for name, key in KEYS.items():
        if keys is not None and name not in keys:
            continue
        if name in ("id", "group"):
            columns[name] = text_column(frames.ids if name == "id" else frames.groups)
        elif name in values:
            kind = dtype if key.dtype == "real" else key.dtype
            column = np.ascontiguousarray(values[name], dtype=kind)
            columns[name] = Column(column, key.rows or counts[key.per], key.axis)
    return Block(len(frames), columns).check()


def _structure_values(frames: Frames, target: str) -> dict[str, Values]:
    g = len(frames)
    bins = frames.owner * ELEMENTS + frames.numbers.astype(np.int64) - 1
    per_atom = frames.energy / frames.sizes
    found = {
        "energy": frames.energy,
        "energy_per_atom": per_atom,
        "y": frames.energy if target == "energy" else per_atom,
        "cell": frames.cell.reshape(3 * g, 3),
        "pbc": frames.periodic.reshape(3 * g),
        "natoms": frames.sizes,
        "chemical_composition": np.bincount(bins, minlength=ELEMENTS * g)[:, None],
        "graph_attr": np.stack([frames.charge, np.maximum(frames.multiplicity, 1)], axis=1).reshape(2 * g),
    }
    if frames.stress is not None:
        found["stress"] = frames.stress.reshape(3 * g, 3)
    return found


def _atom_values(frames: Frames) -> dict[str, Values]:
    numbers = frames.numbers[:, None].astype(np.float64)
    found = {"pos": frames.positions, "atomic_numbers": numbers}
    if frames.forces is None:
        return found | {"x": np.concatenate([numbers, frames.positions], axis=1)}
    return found | {"forces": frames.forces, "x": np.concatenate([numbers, frames.positions, frames.forces], axis=1)}


def _edge_values(edges: Edges) -> dict[str, Values]:
    """The original shifts the receiver, not the sender."""
    return {
        "edge_index": np.stack([edges.sender, edges.receiver]),
        "edge_attr": edges.distance[:, None],
        "edge_shifts": -edges.shift + 0.0,
    }


def text_column(texts: NDArray[np.str_]) -> Column:
    """Texts as UTF-8 bytes."""
    encoded = [text.encode("utf-8", "backslashreplace") for text in texts.tolist()]
    counts = np.fromiter(map(len, encoded), dtype=np.int64, count=len(encoded))
    return Column(np.frombuffer(b"".join(encoded), dtype=np.uint8), counts)


def text_of(values: Values) -> str:
    """The text of a sample's bytes."""
    try:
        return values.tobytes().decode()
    except UnicodeDecodeError:
        raise InputError(f"{values.tobytes()[:40]!r} is not UTF-8 text") from None


def degree_histogram(frames: Frames, edges: Edges) -> NDArray[np.int64]:
    """How many atoms have 0, 1, ... neighbours; summed over the training set, the original's attribute `pna_deg`."""
    receiver = np.repeat(frames.ends - frames.sizes, edges.counts) + edges.receiver
    degrees = np.bincount(receiver, minlength=int(frames.sizes.sum()))
    return np.bincount(degrees).astype(np.int64)
