"""Every dataset is read from every container in which it may be published, and mixed containers are refused."""

from __future__ import annotations

import bz2
import gzip
import lzma
import pickle
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.db import connect

from harness.reference.data.structure_table import StructureTable
from harness.reference.datasets.catalog import SOURCES, find_source
from harness.reference.datasets.conversion.convert import detect_source_format
from harness.reference.datasets.readers import s2ef
from harness.reference.errors import InputError
from tests.reference.datasets.official_files import writers as official
from tests.reference.datasets.official_files.writers import METHANOL, make_conformations, read_all_files


def write_database(path: Path) -> None:
    with connect(path) as database:
        for k in range(3):
            positions, _, forces = make_conformations(1, k)
            atoms = Atoms(METHANOL, positions[0], cell=np.diag([12.0, 12, 30]), pbc=True)
            atoms.calc = SinglePointCalculator(atoms, energy=-45.0 - k, forces=forces[0], stress=np.arange(6.0))
            database.write(atoms, charge=-1)


def read_dataset(dataset: str, path: Path) -> StructureTable:
    frames, faults = read_all_files(detect_source_format(find_source(dataset), [path]), path)
    assert not faults
    return frames


@pytest.mark.parametrize("dataset", [s.slug for s in SOURCES])
def test_every_dataset_is_read_from_every_container(tmp_path: Path, dataset: str) -> None:
    text = "".join(official.format_extxyz_frame(k) for k in range(3)).encode()
    rows = {k + 1: official.make_ase_row(k, energy=-45.0 - k) for k in range(3)}
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "0.extxyz").write_bytes(text)
    for ending, pack in (("xz", lzma.compress), ("gz", gzip.compress), ("bz2", bz2.compress)):
        (tmp_path / ending).mkdir()
        (tmp_path / ending / f"0.extxyz.{ending}").write_bytes(pack(text))
    official.write_aselmdb(tmp_path / "rows" / "a.aselmdb", rows)
    official.write_aselmdb(tmp_path / "rows-lmdb" / "a.lmdb", rows)
    official.write_lmdb(tmp_path / "graphs" / "a.lmdb", {str(k): official.encode_graph(k) for k in range(3)})
    (tmp_path / "db").mkdir()
    write_database(tmp_path / "db" / "a.db")
    for kind in ("text", "xz", "gz", "bz2", "rows", "rows-lmdb", "graphs", "db"):
        frames = read_dataset(dataset, tmp_path / kind)
        assert frames.energy.tolist() == [-45.0, -46.0, -47.0], kind
        assert frames.forces is not None
        assert np.allclose(frames.forces[:6], make_conformations(1, 0)[2][0], atol=1e-6)


def test_stress_and_charge_of_ase_rows_are_read(tmp_path: Path) -> None:
    write_database(tmp_path / "a.db")
    frames = read_dataset("omat24", tmp_path / "a.db")
    assert frames.stress is not None
    assert frames.stress[0].tolist() == [[0, 5, 4], [5, 1, 3], [4, 3, 2]]
    assert frames.charge.tolist() == [-1] * 3


def test_mixed_containers_are_rejected(tmp_path: Path) -> None:
    (tmp_path / "0.extxyz").write_text(official.format_extxyz_frame(0))
    official.write_aselmdb(tmp_path / "a.aselmdb", {1: official.make_ase_row(1)})
    with pytest.raises(InputError, match=r"hold LMDB files of ASE rows \(a\.aselmdb\) and extended XYZ \(0\.extxyz\)"):
        detect_source_format(find_source("oc2020"), [tmp_path])


def encode_newer_graph(k: int, **changes: Any) -> bytes:
    """Return a graph like those of newer preprocessing, with energy, forces, charge, spin and pbc."""
    graph = pickle.loads(official.encode_graph(k))
    graph.energy, graph.forces = torch.tensor([graph.y]), graph.force
    graph.pbc, graph.charge, graph.spin = torch.tensor([[True, True, False]]), torch.tensor([-1]), torch.tensor([2])
    del graph.y, graph.force
    for name, value in changes.items():
        graph[name] = value
    return pickle.dumps(graph, protocol=-1)


def test_newer_keys_in_a_database_folder_are_read(tmp_path: Path) -> None:
    folder = tmp_path / "train" / "data.lmdb"
    folder.mkdir(parents=True)
    with lmdb.open(str(folder), map_size=1 << 24) as environment, environment.begin(write=True) as transaction:
        for k in range(3):
            transaction.put(b"%d" % k, encode_newer_graph(k))
        transaction.put(b"length", pickle.dumps(3))
    for path in (tmp_path, tmp_path / "train", folder, folder / "data.mdb"):
        frames = read_dataset("oc2022", path)
        assert frames.energy.tolist() == [-45.0, -46.0, -47.0]
        assert frames.periodic.tolist() == [[True, True, False]] * 3
        assert frames.charge.tolist() == [-1] * 3
        assert frames.multiplicity.tolist() == [2] * 3
        assert frames.forces is not None
        assert np.allclose(frames.forces[6:12], make_conformations(1, 1)[2][0], atol=1e-6)


def test_total_energy_is_used_if_a_graph_has_several_energies(tmp_path: Path) -> None:
    official.write_lmdb(
        tmp_path / "a.lmdb",
        {"0": encode_newer_graph(0, y=-0.4), "1": encode_newer_graph(1, raw_y=torch.tensor([-44.0]), y=-0.4)},
    )
    assert read_all_files(s2ef.LMDB_FORMAT, tmp_path)[0].energy.tolist() == [-45.0, -44.0]


def test_relaxed_energies_are_not_read_as_totals(tmp_path: Path) -> None:
    official.write_lmdb(tmp_path / "a.lmdb", {"0": official.encode_graph(0, y=None, y_relaxed=-0.4, y_init=6.2)})
    items = [item for part in s2ef.list_lmdb_chunks([tmp_path]) for item in s2ef.read_lmdb_chunk(part)]
    assert [(item.kind, item.reason[:16]) for item in items] == [("unlabelled", "an IS2RE graph: ")]  # type: ignore[union-attr]
