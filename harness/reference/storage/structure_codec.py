"""Convert structures to the columns of a store, and stored columns and samples to structures."""

from __future__ import annotations

from collections.abc import Collection
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from harness.reference.data.neighbours import NeighbourList
from harness.reference.data.structure import Array, Structure
from harness.reference.data.structure_table import StructureTable
from harness.reference.errors import InputError
from harness.reference.storage.schema import ELEMENTS, KEYS, Block, Column, Sample

REQUIRED_KEYS = ("pos", "atomic_numbers", "energy", "cell", "pbc", "graph_attr")
EDGE_KEYS = ("edge_index", "edge_shifts")
Values = NDArray[Any]


def encode_table(
    table: StructureTable,
    *,
    dtype: Literal["float64", "float32"] = "float64",
    target: Literal["energy", "energy_per_atom"] = "energy",
    keys: Collection[str] | None = None,
) -> Block:
    """Return a block with the keys of structures, including edges if the table has neighbours.

    Args:
        table: At least one structure.
        dtype: Type of real values: float64 preserves every bit; HydraGNN stores float32.
        target: The content of the key `y`.
        keys: The keys to encode, None for all.

    Raises:
        InputError: There are no structures, a structure has no atoms or an unknown element, an energy is not labelled,
            or another value is not finite.
    """
    if not np.all(table.sizes):
        raise InputError(f"structure {str(table.ids[np.argmin(table.sizes)])!r} has no atoms")
    if len(table) and not 1 <= table.numbers.min() <= table.numbers.max() <= ELEMENTS:
        raise InputError(f"an atomic number of {str(table.ids[0])!r} or a later structure is not in 1..{ELEMENTS}")
    values: dict[str, Values] = (
        _build_structure_values(table, target) | _build_atom_values(table) | _build_edge_values(table)
    )
    counts = {"atom": table.sizes, "edge": table.edge_counts}
    columns = {}
    for name, key in KEYS.items():
        if keys is not None and name not in keys:
            continue
        if name in ("id", "group"):
            columns[name] = encode_texts(table.ids if name == "id" else table.groups)
        elif name in values:
            kind = dtype if key.dtype == "real" else key.dtype
            column = np.ascontiguousarray(values[name], dtype=kind)
            columns[name] = Column(column, key.rows or np.asarray(counts[key.per], dtype=np.int64), key.axis)
    return Block(len(table), columns).check()


def decode_block(block: Block, *, where: str, first: int) -> StructureTable:
    """Return a block as a table, without edges; energies are not changed (HydraGNN stores them minus references).

    Args:
        block: Samples of a split.
        where: The name of the split for messages, and for the ids of structures that have none.
        first: Index of the block's first sample in the split.

    Raises:
        InputError: A column is missing or has the wrong shape.
    """
    missing = next((key for key in REQUIRED_KEYS if key not in block.columns), None)
    if missing:
        raise InputError(f"{where} has no {missing!r}, which training needs")
    g = block.samples
    sizes = block.columns["pos"].rows(g)
    for key in ("atomic_numbers", "forces"):
        if key in block.columns and not np.array_equal(block.columns[key].rows(g), sizes):
            raise InputError(f"{where}: {key} and pos differ in their numbers of rows in samples from {first} on")
    names = np.array([f"{where}/{k}" for k in range(first, first + g)])
    graph = np.nan_to_num(_reshape(block, "graph_attr", (g, 2), where))
    n = int(sizes.sum())
    return StructureTable(
        ids=_decode_texts(block, "id", names),
        groups=_decode_texts(block, "group", names),
        sizes=sizes,
        numbers=decode_numbers(block),
        positions=_reshape(block, "pos", (n, 3), where),
        energy=_reshape(block, "energy", (g,), where),
        cell=_reshape(block, "cell", (g, 3, 3), where),
        periodic=_reshape(block, "pbc", (g, 3), where) != 0,
        charge=np.rint(graph[:, 0]).astype(np.int64),
        multiplicity=np.rint(graph[:, 1]).astype(np.int64),
        forces=_reshape(block, "forces", (n, 3), where) if "forces" in block.columns else None,
        stress=_reshape(block, "stress", (g, 3, 3), where) if "stress" in block.columns else None,
    )


def decode_compositions(block: Block) -> StructureTable:
    """Return a table in which only the elements and the stored energies are meaningful."""
    g = block.samples
    sizes = block.columns["atomic_numbers"].rows(g)
    names = np.zeros(g, dtype="U1")
    return StructureTable(
        ids=names,
        groups=names,
        sizes=sizes,
        numbers=decode_numbers(block),
        positions=np.zeros((int(sizes.sum()), 3)),
        energy=_reshape(block, "energy", (g,), "energy"),
        cell=np.zeros((g, 3, 3)),
        periodic=np.zeros((g, 3), dtype=bool),
        charge=np.zeros(g, dtype=np.int64),
        multiplicity=np.zeros(g, dtype=np.int64),
    )


def decode_numbers(block: Block) -> NDArray[np.uint8]:
    """Return the atomic numbers of a block, 0 in place of values that are not atomic numbers."""
    values = block.columns["atomic_numbers"].values.reshape(-1)
    is_number = (values >= 1) & (values <= ELEMENTS) & (values == np.floor(values))
    return np.where(is_number, values, 0).astype(np.uint8)


def decode_structure(
    sample: Sample, *, name: str, head: int = -1, reference_energy_ev: Array | None = None
) -> Structure:
    """Return the structure of a sample.

    Args:
        sample: A sample with the required keys, and optionally forces.
        name: The name of the structure.
        head: Index in HEADS of its dataset, -1 if there is none.
        reference_energy_ev: [119] energy of each element that was subtracted from the stored energy; None if nothing
            was subtracted.
    """
    charge, multiplicity = sample["graph_attr"].reshape(-1).tolist()
    numbers = sample["atomic_numbers"].reshape(-1).astype(np.int64)
    energy = float(sample["energy"].reshape(-1)[0])
    forces = sample.get("forces")
    return Structure(
        name=name,
        numbers=numbers,
        positions=sample["pos"].astype(np.float64, copy=False),
        cell=sample["cell"].astype(np.float64, copy=False),
        periodic=tuple((sample["pbc"].reshape(-1) != 0).tolist()),
        head=head,
        energy=energy if reference_energy_ev is None else energy + float(reference_energy_ev[numbers].sum()),
        forces=None if forces is None else forces.astype(np.float64, copy=False),
        charge=int(charge),
        multiplicity=int(multiplicity),
    )


def decode_neighbours(sample: Sample, structure: Structure) -> NeighbourList:
    """Return the neighbour list of a structure from its sample."""
    sender, receiver = sample["edge_index"]
    return NeighbourList(structure, receiver, sender, -sample["edge_shifts"])


def _build_structure_values(table: StructureTable, target: str) -> dict[str, Values]:
    g = len(table)
    bins = table.owner * ELEMENTS + table.numbers.astype(np.int64) - 1
    per_atom = table.energy / table.sizes
    values = {
        "energy": table.energy,
        "energy_per_atom": per_atom,
        "y": table.energy if target == "energy" else per_atom,
        "cell": table.cell.reshape(3 * g, 3),
        "pbc": table.periodic.reshape(3 * g),
        "natoms": table.sizes,
        "chemical_composition": np.bincount(bins, minlength=ELEMENTS * g)[:, None],
        "graph_attr": np.stack([table.charge, np.maximum(table.multiplicity, 1)], axis=1).reshape(2 * g),
    }
    if table.stress is not None:
        values["stress"] = table.stress.reshape(3 * g, 3)
    return values


def _build_atom_values(table: StructureTable) -> dict[str, Values]:
    numbers = table.numbers[:, None].astype(np.float64)
    values = {"pos": table.positions, "atomic_numbers": numbers}
    if table.forces is None:
        return values | {"x": np.concatenate([numbers, table.positions], axis=1)}
    return values | {"forces": table.forces, "x": np.concatenate([numbers, table.positions, table.forces], axis=1)}


def _build_edge_values(table: StructureTable) -> dict[str, Values]:
    if table.sender is None or table.shift is None or table.distance is None:
        return {}
    return {
        "edge_index": np.stack([table.sender, table.receiver]),  # type: ignore[list-item]
        "edge_attr": table.distance[:, None],
        "edge_shifts": -table.shift + 0.0,  # HydraGNN shifts the receiver, not the sender
    }


def _reshape(block: Block, key: str, shape: tuple[int, ...], where: str) -> Any:
    values = block.columns[key].values
    if values.size != np.prod(shape):
        raise InputError(f"{where}: {key} has shape {values.shape}, expected {shape} for {block.samples} structures")
    return values.reshape(shape).astype(np.float64)


def encode_texts(texts: NDArray[np.str_]) -> Column:
    """Return texts as a column of UTF-8 bytes."""
    encoded = [text.encode("utf-8", "backslashreplace") for text in texts.tolist()]
    counts = np.fromiter(map(len, encoded), dtype=np.int64, count=len(encoded))
    return Column(np.frombuffer(b"".join(encoded), dtype=np.uint8), counts)


def _decode_texts(block: Block, key: str, default: NDArray[np.str_]) -> NDArray[np.str_]:
    if key not in block.columns:
        return default
    column = block.columns[key]
    return np.array([decode_text(column.cut(a, b)) for a, b in pairwise(column.ends(block.samples).tolist())])


def decode_text(values: Values) -> str:
    """Return the text of a sample's bytes."""
    try:
        return values.tobytes().decode()
    except UnicodeDecodeError:
        raise InputError(f"{values.tobytes()[:40]!r} is not UTF-8 text") from None
