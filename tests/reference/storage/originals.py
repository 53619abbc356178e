"""Write stores like HydraGNN, with the same calls of ADIOS2."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from adios2 import bindings

from harness.reference.data.neighbours import add_neighbours
from harness.reference.data.structure_table import StructureTable
from harness.reference.datasets.reference_energies import count_elements
from harness.reference.datasets.shipped_sets import find_shipped_set, load_table
from harness.reference.datasets.splits import SPLITS, assign_by_name
from harness.reference.storage.schema import Sample


def write_original(path: Path, splits: Mapping[str, Sequence[Sample]], **attributes: Any) -> Path:
    adios = bindings.ADIOS()
    io = adios.DeclareIO(str(path))
    engine = io.Open(str(path), bindings.Mode.Write)
    for label, samples in splits.items():
        io.DefineAttribute(f"{label}/ndata", np.array(len(samples)))
        io.DefineAttribute(f"{label}/keys", list(samples[0]))
        for key in sorted(samples[0]):
            arrays = [s[key] for s in samples]
            shapes = np.array([a.shape for a in arrays])
            varying = np.flatnonzero(shapes.min(0) != shapes.max(0))
            axis = int(varying[0]) if len(varying) else 0
            all_values = np.ascontiguousarray(np.concatenate(arrays, axis=axis))
            counts = np.array([a.shape[axis] for a in arrays])
            offsets = np.cumsum(counts) - counts
            for ending, values in {"": all_values, "/variable_count": counts, "/variable_offset": offsets}.items():
                shape = list(values.shape)
                variable = io.DefineVariable(f"{label}/{key}{ending}", values, shape, [0] * len(shape), shape, True)
                engine.Put(variable, values, bindings.Mode.Sync)
            io.DefineAttribute(f"{label}/{key}/variable_dim", np.array(axis))
    io.DefineAttribute("total_ndata", np.array(sum(map(len, splits.values()))))
    for name, value in attributes.items():
        io.DefineAttribute(name, value)
    engine.Close()
    return path


def load_shipped_frames(name: str = "qm7x") -> StructureTable:
    return load_table(find_shipped_set(name))


def make_original_records(frames: StructureTable, energies: np.ndarray, dtype: type = np.float32) -> list[Sample]:
    """Return records as HydraGNN's converters write them; `energies` become `energy` and `y`."""
    table: Any = add_neighbours(frames, cutoff=5.0, max_neighbours=20)[0]
    ends, atom_ends = np.cumsum(table.edge_counts), frames.ends
    records = []
    for k, (size, count) in enumerate(zip(frames.sizes.tolist(), table.edge_counts.tolist(), strict=True)):
        atoms, edges = slice(atom_ends[k] - size, atom_ends[k]), slice(ends[k] - count, ends[k])
        numbers, pos = frames.numbers[atoms, None].astype(dtype), frames.positions[atoms].astype(dtype)
        forces = np.zeros_like(pos) if frames.forces is None else frames.forces[atoms].astype(dtype)
        records.append(
            {
                "natoms": np.array([size], np.int32),
                "pos": pos,
                "cell": frames.cell[k].astype(dtype) if frames.periodic[k].any() else np.eye(3, dtype=dtype),
                "pbc": frames.periodic[k].astype(np.int32),
                "edge_index": np.stack([table.sender[edges], table.receiver[edges]]),
                "edge_attr": table.distance[edges, None].astype(dtype),
                "atomic_numbers": numbers,
                "chemical_composition": np.bincount(frames.numbers[atoms], minlength=119)[1:, None].astype(dtype),
                "x": np.concatenate([numbers, pos, forces], axis=1),
                "energy": np.array([energies[k]], dtype),
                "energy_per_atom": np.array([frames.energy[k] / size], dtype),
                "forces": forces,
                "graph_attr": np.array([frames.charge[k], max(1, frames.multiplicity[k])], dtype),
                "y": np.array([energies[k]], dtype),
                "edge_shifts": (-table.shift[edges] + 0.0).astype(dtype),
            }
        )
    return records


def fit_regression(frames: StructureTable, *, per_atom: bool = False) -> np.ndarray:
    """Return HydraGNN's 118 coefficients, 0 for absent elements."""
    weight = 1.0 / frames.sizes if per_atom else np.ones(len(frames))
    rows = count_elements(frames)[:, 1:] * weight[:, None]
    return np.linalg.lstsq(rows, frames.energy * weight, rcond=None)[0]


def apply_regression(frames: StructureTable, coefficients: np.ndarray) -> np.ndarray:
    return np.asarray(count_elements(frames)[:, 1:] @ np.nan_to_num(coefficients))


def group_by_split(frames: StructureTable, records: Sequence[Sample]) -> dict[str, list[Sample]]:
    split_numbers = assign_by_name(frames.groups)
    return {label: [r for r, k in zip(records, split_numbers, strict=True) if k == s] for s, label in enumerate(SPLITS)}


def write_authors_store(path: Path, frames: StructureTable | None = None, **changes: Any) -> Path:
    """Write a store like NAME-v2.bp, with energies from which the regression over all splits is subtracted."""
    frames = load_shipped_frames() if frames is None else frames
    coefficients = fit_regression(frames)
    records = make_original_records(frames, frames.energy - apply_regression(frames, coefficients))
    attributes = {
        "pna_deg": np.arange(5),
        "energy_linear_regression_coeff": coefficients,
        "dataset_name": "qm7x",
        **changes,
    }
    result = {name: value for name, value in attributes.items() if value is not None}
    return write_original(path, group_by_split(frames, records), **result)


def hash_folder(folder: Path) -> str:
    files = sorted(f for f in folder.rglob("*") if f.is_file())
    return hashlib.sha256(b"".join(f.name.encode() + f.read_bytes() for f in files)).hexdigest()
