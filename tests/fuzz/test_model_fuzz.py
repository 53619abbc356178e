"""Randomly changed checkpoints, task files and atoms give correct results, or are refused in one line."""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import random
import tarfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.calculator import PropertyNotImplementedError
from ase.calculators.singlepoint import SinglePointCalculator

from harness.protocol.backbones import BACKBONES
from harness.reference.errors import InputError
from harness.reference.inference.calculator import ReferenceCalculator
from harness.reference.models import checkpoints, sealed
from harness.reference.models.config import ModelConfig
from harness.reference.models.foundation import FoundationModel
from harness.reference.tasks.dataset import TaskDataset
from harness.reference.tasks.load import load_task
from tests.fuzz.bounded import COUNT, run_fuzzer

pytestmark = pytest.mark.slow

ODD_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 8, 64, 117, 119, 255, 256, 2**31, 2**63, 10**8, 10**30, 0.0, -0.0, 0.5, 1.5,
    1e-300, 1e300, math.nan, math.inf, -math.inf, "", "8", "x", "nan", "eV", "\x1b[2J", "\n", [], [1], {}, {"a": 1},
    [[]],
)  # fmt: skip


def is_refused(call: Callable[[], object]) -> bool:
    """Return whether the call raised an InputError, whose message must be one printable line."""
    try:
        call()
    except InputError as error:
        message = str(error)
        assert message
        assert message.isprintable(), repr(message)
        return True
    return False


def change_bytes(data: bytes, rng: random.Random) -> bytes:
    """Flip, cut, repeat or replace some bytes."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5))):
        case, position = rng.randrange(5), rng.randrange(max(1, len(changed)))
        if case == 0 and changed:
            changed[position] ^= 1 << rng.randrange(8)
        elif case == 1:
            del changed[position:]
        elif case == 2:
            del changed[position : position + rng.randrange(1, 20)]
        elif case == 3:
            changed[position:position] = rng.choice((b"0", b"-", b"nan", b"1e999", b"\n", b"\0", b"{", b'"', b"9" * 30))
        else:
            changed[position : position + 8] = rng.randbytes(rng.choice((1, 8)))
    return bytes(changed)


def change_value(value: Any, rng: random.Random) -> Any:  # noqa: PLR0911
    """Change one item of nested lists and dictionaries."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(list(value))
        case = rng.randrange(8)
        if case == 0:
            return {k: v for k, v in value.items() if k != key}
        if case == 1:
            return value | {str(key)[::-1] + "x": value[key]}
        return value | {key: change_value(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.9:
        position = rng.randrange(len(value))
        case = rng.randrange(8)
        if case == 0:
            return value[:position] + value[position + 1 :]
        if case == 1:
            return [*value, value[position]]
        return [*value[:position], change_value(value[position], rng), *value[position + 1 :]]
    if isinstance(value, int | float) and not isinstance(value, bool) and rng.random() < 0.3:
        return value * rng.choice((-1, 0, 1e-3, 27.2114, 627.5, 1e6, 1e300))
    return rng.choice(ODD_VALUES)


SIZES: dict[str, Any] = {"hidden_dim": 8, "num_conv_layers": 1, "dim_sharedlayers": 4, "dim_headlayers": 4, "heads": 16}


def examine_checkpoint(rng: random.Random, folder: Path) -> None:
    path = folder / "model.safetensors"
    config = ModelConfig(backbone=rng.choice((*BACKBONES, "painn", "painn", "egnn")), **SIZES)  # type: ignore[arg-type]
    model = FoundationModel(config)
    model.trained[:] = True
    model.mark_all_elements_known()
    tensors = dict(model.state_dict())
    metadata: Any = {"format": checkpoints.FORMAT, "config": config.asdict(), "notes": {}}
    case = rng.randrange(4)
    if case == 0:
        metadata["config"] = change_value(metadata["config"], rng)
    elif case == 1:
        metadata = change_value(metadata, rng)
    elif case == 2:
        name = rng.choice(list(tensors))
        value = tensors.pop(name)
        change = rng.randrange(5)
        if change == 0:
            tensors[name + rng.choice(("x", ".weight"))] = value
        elif change == 1:
            tensors[name] = value[:-1] if value.dim() else value.reshape(1)
        elif change == 2:
            tensors[name] = value.to(rng.choice((torch.float64, torch.float16, torch.int64, torch.bool)))
        elif change == 3:
            tensors[name] = (
                torch.full_like(value, rng.choice((math.nan, math.inf, -1e38))) if value.is_floating_point() else value
            )
    sealed.write(path, checkpoints.KIND, tensors, metadata)
    if case == 3:
        data = path.read_bytes()
        path.write_bytes(change_bytes(data, rng))
        if path.read_bytes() != data:
            assert is_refused(lambda: checkpoints.load(path))
            return
    loaded: list[FoundationModel] = []
    if not is_refused(lambda: loaded.append(checkpoints.load(path)[0])):
        assert all(torch.isfinite(v).all() for v in loaded[0].state_dict().values())
        if bool(loaded[0].trained[8]) and rng.random() < 0.2:
            is_refused(lambda: ReferenceCalculator(loaded[0], head="OMol25").get_potential_energy(molecule("H2O")))


def make_structure_json() -> dict[str, Any]:
    sites = [
        {"species": [{"element": e, "occu": 1}], "abc": [x] * 3, "xyz": [4.0 * x] * 3, "label": e}
        for e, x in (("Na", 0.0), ("Cl", 0.5))
    ]
    return {"lattice": {"matrix": np.diag([4.0] * 3).tolist()}, "sites": sites}


METHANE = [("C", 0.0, 0.0, 0.0), ("H", 0.63, 0.63, 0.63), ("H", -0.63, -0.63, 0.63), ("H", 0.63, -0.63, -0.63),
           ("H", -0.63, 0.63, -0.63)]  # fmt: skip


def write_qm9(rng: random.Random, folder: Path) -> None:
    lines = "\n".join(f"{e}\t{x}\t{y}\t{z}\t-5.3*^-1" for e, x, y, z in METHANE)
    properties = "\t".join(["1.0"] * 10 + ["-40.47893"] + ["1.0"] * 5)
    text = f"5\ngdb 7\t{properties}\n{lines}\n1.0\nC\nInChI\n".encode()
    if rng.random() < 0.5:
        text = change_bytes(text, rng)
    if rng.random() < 0.4:
        (folder / "dsgdb9nsd_000007.xyz").write_bytes(text)
        return
    if rng.random() < 0.4:
        row = {"Index": 7, "Elements": str([a[0] for a in METHANE]), "XYZ_Ang": str([list(a[1:]) for a in METHANE]),
               "InternalEnergy_0K_au": "-40.47893"}  # fmt: skip
        stream = io.StringIO()
        writer = csv.DictWriter(stream, list(row))
        writer.writeheader()
        writer.writerow(row)
        (folder / "qm9_part1.csv").write_bytes(change_bytes(stream.getvalue().encode(), rng))
        return
    compressed = io.BytesIO()
    with tarfile.open(fileobj=compressed, mode=rng.choice(("w:bz2", "w", "w:gz"))) as archive:
        member = tarfile.TarInfo("dsgdb9nsd_000007.xyz")
        member.size = len(text)
        archive.addfile(member, io.BytesIO(text))
    data = compressed.getvalue()
    (folder / "dsgdb9nsd.xyz.tar.bz2").write_bytes(change_bytes(data, rng) if rng.random() < 0.5 else data)


def write_md17(rng: random.Random, folder: Path) -> None:
    positions = np.array([a[1:] for a in METHANE])
    arrays: dict[str, Any] = {
        "E": np.full(3, -25_400.0), "F": np.zeros((3, 5, 3)), "R": np.stack([positions] * 3),
        "z": np.array([6, 1, 1, 1, 1]), "e_unit": "kcal/mol", "r_unit": "Ang", "theory": "PBE", "type": "d",
    }  # fmt: skip
    key = rng.choice(list(arrays))
    case = rng.randrange(6)
    if case == 0:
        arrays[rng.choice(("energies", "coords", "x"))] = arrays.pop(key)
    elif case == 1:
        arrays[key] = np.asarray(
            rng.choice([o for o in ODD_VALUES if not isinstance(o, dict | list) and o is not None])
        )
    elif case == 2:
        arrays[key] = np.asarray(arrays[key])[..., None]
    elif case == 3 and np.asarray(arrays[key]).dtype.kind in "if":
        scaled = np.asarray(arrays[key], dtype=float)
        arrays[key] = scaled * rng.choice((-1, 0, 27.2, 23.06, math.nan, 1e300))
    elif case == 4:
        del arrays[key]
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    data = stream.getvalue()
    (folder / "a.npz").write_bytes(change_bytes(data, rng) if case == 5 else data)


def write_wiggle150(rng: random.Random, folder: Path) -> None:
    atoms = "\n".join(" ".join(map(str, a)) for a in METHANE)
    text = f"5\nado_00 -25400.0\n{atoms}\n5\nado_01 -25395.5\n{atoms}\n"
    (folder / "a.xyz").write_bytes(change_bytes(text.encode(), rng))


def write_ms25(rng: random.Random, folder: Path) -> None:
    atoms = bulk("Cu", cubic=True)
    odd_number = rng.choice([o for o in ODD_VALUES if isinstance(o, int | float)])
    energy = -15.0 if rng.random() < 0.7 else float(odd_number)
    atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=np.zeros((4, 3)))
    ase.io.write(folder / "a.traj", [atoms, atoms], format="traj")
    if rng.random() < 0.7:
        path = folder / "a.traj"
        path.write_bytes(change_bytes(path.read_bytes(), rng))


def write_oqmd(rng: random.Random, folder: Path) -> None:
    entry = {"entry_id": 5, "unit_cell": np.diag([4.0] * 3).tolist(), "sites": ["Na @ 0 0 0", "Cl @ 0.5 0.5 0.5"],
             "delta_e": -1.5}  # fmt: skip
    page: Any = {"data": [entry, entry | {"entry_id": 6}]}
    text = json.dumps(change_value(page, rng)).encode()
    (folder / "page.json").write_bytes(change_bytes(text, rng) if rng.random() < 0.2 else text)


def write_abx3(rng: random.Random, folder: Path) -> None:
    table = "mp_id,formation_energy (eV/atom)\nmp-1,-1.5\nmp-2,-0.5\n"
    structures: Any = {"mp-1": make_structure_json(), "mp-2": make_structure_json()}
    changed = rng.random() < 0.5
    (folder / "abc3_data.csv").write_bytes(change_bytes(table.encode(), rng) if changed else table.encode())
    (folder / "structures.json").write_text(json.dumps(structures if changed else change_value(structures, rng)))


def write_matbench(rng: random.Random, folder: Path) -> None:
    data = [[make_structure_json(), 1.0 + k / 100] for k in range(40)]
    table: Any = {"index": list(range(40)), "columns": ["structure", "log10(K_VRH)"], "data": data}
    text = json.dumps(change_value(table, rng)).encode()
    if rng.random() < 0.3:
        text = change_bytes(text, rng)
    compressed = gzip.compress(text)
    (folder / "matbench_log_kvrh.json.gz").write_bytes(
        change_bytes(compressed, rng) if rng.random() < 0.2 else compressed
    )


WRITERS: dict[str, Callable[[random.Random, Path], None]] = {
    "qm9": write_qm9, "md17": write_md17, "wiggle150": write_wiggle150, "ms25": write_ms25, "oqmd": write_oqmd,
    "abx3": write_abx3, "matbench_log_kvrh": write_matbench,
}  # fmt: skip


def examine_task(rng: random.Random, folder: Path) -> None:
    name = rng.choice(list(WRITERS))
    (folder / name).mkdir()
    WRITERS[name](rng, folder / name)
    loaded: list[TaskDataset] = []
    if is_refused(lambda: loaded.append(load_task(name, folder))):
        return
    labelled = loaded[0]
    assert len(labelled) == len(labelled.table) > 0
    assert np.isfinite(labelled.target).all()
    assert np.isfinite(labelled.table.positions).all()
    energies = labelled.table.energy if name in ("qm9", "md17", "wiggle150") else np.zeros(0)
    assert (energies < 0).all(), energies


SHARED_CALCULATORS: list[ReferenceCalculator] = []


def examine_atoms(rng: random.Random, _: Path) -> None:
    if not SHARED_CALCULATORS:
        torch.set_num_threads(1)
        SHARED_CALCULATORS.append(ReferenceCalculator("painn-64", head=None))
        SHARED_CALCULATORS.append(ReferenceCalculator("painn-64", head="OMol25"))
    calculator = rng.choice(SHARED_CALCULATORS)
    atoms = rng.choice((molecule("H2O"), molecule("CH3OH", cell=[6.0] * 3, pbc=True), bulk("NaCl", "rocksalt", a=5.6)))
    for _ in range(rng.choice((1, 1, 2, 3))):
        change_atoms(atoms, rng)
    name = rng.choice(("energy", "forces", "stress", "free_energy", "energies"))

    def get_property(calculator_to_use: ReferenceCalculator) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return calculator_to_use.get_property(name, atoms)

    try:
        if is_refused(lambda: get_property(calculator)):
            return
    except PropertyNotImplementedError:
        return
    value = get_property(calculator)
    assert np.isfinite(value).all(), value
    fresh_calculator = ReferenceCalculator(calculator.model)
    fresh_calculator.head = calculator.head
    assert np.allclose(get_property(fresh_calculator), value, atol=1e-9)


def change_atoms(atoms: Atoms, rng: random.Random) -> None:
    """Change the atoms to values that may be invalid."""
    number = rng.choice([float(o) for o in ODD_VALUES if isinstance(o, int | float) and not isinstance(o, bool)])
    case, atom = rng.randrange(8), rng.randrange(len(atoms))
    if case == 0:
        atoms.positions[atom, rng.randrange(3)] = number
    elif case == 1:
        atoms.positions[atom] += np.array([0.1, -0.2, 0.3]) * rng.choice((1, 10, 1e-9))
    elif case == 2:
        atoms.numbers[atom] = rng.choice((0, 1, 6, 26, 94, 118, 119, 255, -1, 10**6))
    elif case == 3:
        atoms.cell[rng.randrange(3), rng.randrange(3)] = number
    elif case == 4:
        atoms.pbc[rng.randrange(3)] ^= True
    elif case == 5:
        atoms.info[rng.choice(("charge", "spin", "multiplicity", "total_charge"))] = rng.choice(ODD_VALUES)
    elif case == 6:
        atoms.positions[atom] = atoms.positions[0]
    elif len(atoms) > 1:
        del atoms[atom]


@pytest.mark.parametrize(
    ("examine", "count"), [(examine_checkpoint, COUNT // 3), (examine_task, COUNT), (examine_atoms, COUNT // 3)]
)
def test_changed_inputs_give_results_or_one_line_errors(
    examine: Callable[[random.Random, Path], None], count: int, tmp_path: Path
) -> None:
    run_fuzzer(examine, tmp_path, count)
