"""Write tiny files in the official layouts, from their descriptions and independently of the readers."""

from __future__ import annotations

import copyreg
import io
import json
import lzma
import pickle
import zlib
from pathlib import Path
from typing import Any

import ase.db
import h5py
import lmdb
import numpy as np
import torch
from ase import Atoms
from torch_geometric.data import Data

from harness.reference.data.structure_table import RejectedStructure, Remark, StructureTable, concatenate
from harness.reference.datasets.parsing.base import DatasetFormat
from harness.reference.datasets.parsing.constants import ATOM_ENERGIES_EV

HARTREE, BOHR = 27.211386245988, 0.529177210903
METHANOL = np.array([6, 8, 1, 1, 1, 1])
METHANOL_POSITIONS = np.array(
    [[-0.05, 0.66, 0.0], [-0.05, -0.76, 0.0], [-1.09, 0.97, 0.0], [0.88, -1.06, 0.0],
     [0.44, 1.07, 0.89], [0.44, 1.07, -0.89]]
)  # fmt: skip


def make_conformations(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return positions [c, 6, 3], energies [c] and forces [c, 6, 3] of methanol, in angstrom and eV."""
    rng = np.random.default_rng(seed)
    positions = METHANOL_POSITIONS + rng.normal(0, 0.05, (count, 6, 3))
    energy = ATOM_ENERGIES_EV[METHANOL].sum() - 20.0 + rng.normal(0, 0.5, count)
    return positions, energy, rng.normal(0, 1.0, (count, 6, 3))


def read_all_files(dataset_format: DatasetFormat, *paths: Path) -> tuple[StructureTable, list[RejectedStructure]]:
    """Return the structures and the rejected structures of some files, without remarks."""
    blocks: list[StructureTable] = []
    faults: list[RejectedStructure] = []
    for part in dataset_format.list_chunks(list(paths)):
        for item in dataset_format.read_chunk(part):
            if not isinstance(item, RejectedStructure):
                blocks.append(item)
            elif not isinstance(item, Remark):
                faults.append(item)
    return concatenate(blocks), faults


def read_remarks(dataset_format: DatasetFormat, *paths: Path) -> list[tuple[str, str]]:
    """Return the kind and reason of each remark on some files."""
    items = (item for part in dataset_format.list_chunks(list(paths)) for item in dataset_format.read_chunk(part))
    return [(item.kind, item.reason) for item in items if isinstance(item, Remark)]


def is_same_table(a: StructureTable, b: StructureTable) -> bool:
    return all(
        np.array_equal(getattr(a, name), getattr(b, name), equal_nan=True) for name in ("positions", "energy")
    ) and (a.ids.tolist() == b.ids.tolist())


def write_ani1x(path: Path, groups: dict[str, int], missing: int = 0) -> None:
    with h5py.File(path, "w") as file:
        for seed, (name, count) in enumerate(groups.items()):
            positions, energy, forces = make_conformations(count, seed)
            group = file.create_group(name)
            group["atomic_numbers"] = METHANOL.astype(np.uint8)
            group["coordinates"] = positions.astype(np.float32)
            energy = energy / HARTREE
            energy[:missing] = np.nan
            group["wb97x_dz.energy"] = energy
            group["wb97x_dz.forces"] = forces / HARTREE
            group["ccsd(t)_cbs.energy"] = np.full(count, np.nan)


def write_transition1x(path: Path, reactions: dict[str, int]) -> None:
    """Write the given number of frames of each "formula/reaction", in the group `data` and in one of the splits."""
    with h5py.File(path, "w") as file:
        for seed, (name, count) in enumerate(reactions.items()):
            positions, energy, forces = make_conformations(count, seed)
            group = file.create_group(f"data/{name}")
            group["atomic_numbers"] = METHANOL
            group["positions"] = positions
            group["wB97x_6-31G(d).energy"] = energy
            group["wB97x_6-31G(d).forces"] = forces
            group["wB97x_6-31G(d).atomization_energy"] = energy
            for point, k in (("reactant", 0), ("product", -1), ("transition_state", count // 2)):
                point_group = group.create_group(point)
                point_group["positions"], point_group["wB97x_6-31G(d).energy"] = positions[[k]], energy[[k]]
            file[f"{('train', 'val', 'test')[seed % 3]}/{name}"] = group


def write_qm7x(path: Path, molecules: dict[str, int]) -> None:
    with h5py.File(path, "w") as file:
        for seed, (molecule, count) in enumerate(molecules.items()):
            positions, energy, forces = make_conformations(count, seed)
            for k in range(count):
                group = file.create_group(f"{molecule}/Geom-m{int(molecule)}-i1-c1-{k or 'opt'}")
                group["atNUM"], group["atXYZ"] = METHANOL, positions[k]
                group["ePBE0"], group["ePBE0+MBD"] = energy[[k]] + 0.1, energy[[k]]
                group["pbe0FOR"], group["totFOR"] = forces[k] + 0.1, forces[k]


def encode_array(values: Any) -> dict[str, Any]:
    result = np.asarray(values)
    return {"__ndarray__": [list(result.shape), str(result.dtype), result.ravel().tolist()]}


def make_ase_row(k: int, **changes: Any) -> dict[str, Any]:
    positions, energy, forces = make_conformations(1, k)
    return {
        "numbers": encode_array(METHANOL), "positions": encode_array(positions[0]),
        "cell": encode_array(np.zeros((3, 3))),
        "pbc": encode_array(np.zeros(3, dtype=bool)), "unique_id": f"{k:032x}", "calculator": "unknown",
        "energy": float(energy[0]), "forces": encode_array(forces[0]), "ctime": 25.0, "mtime": 25.0, "user": "someone",
        "data": {"charge": 0, "spin": 1, "source": "omol/x", "data_id": "x", "num_atoms": 6},
    } | changes  # fmt: skip


def write_aselmdb(path: Path, rows: dict[int, dict[str, Any] | bytes], *, deleted: tuple[int, ...] = ()) -> None:
    entries: dict[str, bytes] = {
        str(k): value if isinstance(value, bytes) else zlib.compress(json.dumps(value).encode())
        for k, value in rows.items()
    }
    entries["nextid"] = zlib.compress(str(max([*rows, *deleted]) + 1).encode())
    if deleted:
        entries["deleted_ids"] = zlib.compress(json.dumps(list(deleted)).encode())
    entries["metadata"] = zlib.compress(b"{}")
    write_lmdb(path, entries)


def write_lmdb(path: Path, entries: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    database = lmdb.open(str(path), subdir=False, lock=False, map_size=1 << 24)
    with database as environment, environment.begin(write=True) as transaction:
        for key, value in entries.items():
            transaction.put(key.encode(), value)


class OldPickler(pickle.Pickler):
    """A pickler that writes graphs like PyTorch Geometric before version 2, as the dictionary of the object."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, Data):
            return copyreg.__newobj__, (Data,), dict(value.to_dict()) | {"edge_index": None, "face": None}
        return NotImplemented


def encode_graph(k: int, *, old: bool = False, **changes: Any) -> bytes:
    positions, _, forces = make_conformations(1, k)
    graph = Data(
        pos=torch.tensor(positions[0], dtype=torch.float32), cell=torch.eye(3)[None] * 12.0,
        atomic_numbers=torch.tensor(METHANOL, dtype=torch.float32), natoms=6, y=-45.0 - k,
        force=torch.tensor(forces[0], dtype=torch.float32), fixed=torch.zeros(6), tags=torch.zeros(6),
        sid=100 + k // 2, fid=torch.tensor([k]), nads=1, oc22=1, id=f"0_{k}",
    )  # fmt: skip
    for name, value in changes.items():
        graph[name] = value
    if not old:
        return pickle.dumps(graph, protocol=-1)
    buffer = io.BytesIO()
    OldPickler(buffer, protocol=2).dump(graph)
    return buffer.getvalue()


def format_extxyz_frame(k: int) -> str:
    positions, _, forces = make_conformations(1, k)
    keys = (
        'Lattice="12.0 0.0 0.0 0.5 12.0 0.0 0.0 0.0 30.0" '
        "Properties=species:S:1:pos:R:3:move_mask:L:1:tags:I:1:forces:R:3 "
        f'energy={-45.0 - k} free_energy={-45.5 - k} pbc="T T T"'
    )
    rows = [
        f"{('C', 'O', 'H', 'H', 'H', 'H')[a]} {' '.join(f'{x:.8f}' for x in positions[0, a])} 1 0 "
        f"{' '.join(f'{x:.8f}' for x in forces[0, a])}"
        for a in range(6)
    ]
    return "\n".join(["6", keys, *rows]) + "\n"


def write_oc20(folder: Path, stem: str, count: int, *, packed: bool = True) -> None:
    text = "".join(format_extxyz_frame(k) for k in range(count))
    lines = "".join(f"random{1000 + k % 3},frame{k},{-40.0 - k}\n" for k in range(count))
    folder.mkdir(parents=True, exist_ok=True)
    for ending, content in (("extxyz", text), ("txt", lines)):
        if packed:
            (folder / f"{stem}.{ending}.xz").write_bytes(lzma.compress(content.encode()))
        else:
            (folder / f"{stem}.{ending}").write_text(content)


def write_nabla(path: Path, count: int, *, units: bool = True) -> None:
    positions, _, forces = make_conformations(count)
    with ase.db.connect(path, type="db") as database:
        for k in range(count):
            labels = {"energy": np.array([-1.1 - 0.001 * k]), "forces": forces[k] / HARTREE}
            database.write(
                Atoms(METHANOL, positions[k]), data=labels, moses_id=k // 2, conformation_id=k % 2, smiles="CO"
            )
        if units:
            database.metadata = {
                "_distance_unit": "Ang", "_property_unit_dict": {"energy": "Hartree", "forces": "Hartree/Ang"},
                "atomrefs": {"energy": [0.0] * 100},
            }  # fmt: skip
