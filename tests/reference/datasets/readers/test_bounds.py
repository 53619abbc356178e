"""Impossible values and small files that decompress to large ones are refused within bounded memory."""

from __future__ import annotations

import bz2
import lzma
import multiprocessing
import pickle
import resource
import struct
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from harness.reference.data.structure_table import RejectedStructure, StructureTable
from harness.reference.datasets.__main__ import main
from harness.reference.datasets.catalog import find_source
from harness.reference.datasets.parsing import base
from harness.reference.datasets.parsing.unit_checks import check_structures
from harness.reference.datasets.readers.registry import FORMATS
from harness.reference.errors import InputError
from tests.reference.datasets.official_files import writers as official
from tests.reference.datasets.readers.test_checks import make_crystals, make_molecules, replace_value

GIB = 1 << 30


@pytest.mark.parametrize("value", [1e7, -1e17, 1e300, -1e300])
@pytest.mark.parametrize("atom", [12, 17, 35])
def test_positions_beyond_physical_bounds_are_rejected(value: float, atom: int) -> None:
    frames = replace_value(make_molecules(), "positions", (atom, 1), value)
    accepted, faults = check_structures(frames, source=find_source("ani1x"))
    assert len(accepted) == 5
    assert [(f.where, f.kind) for f in faults] == [(f"m{atom // 6}", "out of bounds")]
    assert faults[0].reason == f"atom {atom % 6} is farther than 1e+06 angstrom from the origin"


@pytest.mark.parametrize(
    ("column", "index", "value", "kind"),
    [
        ("cell", (1, 0, 0), 1e9, "out of bounds"),
        ("cell", (1, 2, 1), -1e300, "out of bounds"),
        ("cell", 1, np.eye(3) * 0.5, "crowded"),
        ("cell", 1, [[1e5, 0, 0], [1e5, 0.01, 0], [0, 0, 100]], "crowded"),
        ("stress", (1, 0, 0), 1e6, "out of bounds"),
        ("forces", (3, 0), 1e200, "out of bounds"),
    ],
)
def test_cells_and_labels_beyond_physical_bounds_are_rejected(
    column: str, index: object, value: object, kind: str
) -> None:
    accepted, faults = check_structures(
        replace_value(make_crystals(), column, index, value), source=find_source("mptrj")
    )
    assert accepted.ids.tolist() == ["salt"]
    assert [(f.where, f.kind) for f in faults] == [("other", kind)]


def test_impossible_positions_in_files_are_counted_by_check_and_convert(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frames = [official.format_extxyz_frame(k).replace("pbc=", f"sid=s{k} pbc=") for k in range(60)]
    for k, value in ((3, "1e17"), (7, "-1e17"), (9, "nan"), (11, "1e300")):
        lines = frames[k].splitlines()
        fields = lines[-1].split()
        lines[-1] = " ".join([fields[0], value, *fields[2:]])
        frames[k] = "\n".join(lines) + "\n"
    (tmp_path / "0.extxyz").write_text("".join(frames))
    assert main(["check", "oc2020", str(tmp_path), "-q"]) == 1
    assert "oc2020: 56 structures can be used; 3 out of bounds, 1 not finite" in capsys.readouterr().out
    arguments = [
        "convert",
        "oc2020",
        str(tmp_path),
        "--to",
        str(tmp_path / "s"),
        "--cutoff",
        "5",
        "--workers",
        "1",
        "-q",
    ]
    assert main(arguments) == 0
    output = capsys.readouterr().out
    assert "56 structures (" in output
    assert "3 out of bounds" in output


def pack_repeated(pack: Callable[[bytes], bytes], unit: bytes, total: int) -> bytes:
    """Return a stream of many members that decompresses to `total` bytes."""
    piece = pack(unit * ((8 << 20) // len(unit)))
    return piece * (total // (8 << 20))


def deflate_repeated(head: bytes, piece: bytes, count: int, wbits: int) -> bytes:
    """Return an unterminated deflate stream of `head` and `count` times `piece`."""
    deflate = zlib.compressobj(1, zlib.DEFLATED, wbits)
    first = deflate.compress(head) + deflate.flush(zlib.Z_FULL_FLUSH)
    return first + (deflate.compress(piece) + deflate.flush(zlib.Z_FULL_FLUSH)) * count


def write_huge_tar_header(path: Path) -> None:
    """Write a tar archive with an extended header of 8 GiB, of which 4 GiB are in the file."""
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, 8 * GIB - 512
    path.write_bytes(deflate_repeated(header.tobuf(tarfile.USTAR_FORMAT), bytes(16 << 20), 256, 31))


def write_large_row(path: Path) -> None:
    """Write three ASE rows, of which one decompresses to 2 GiB."""
    value = deflate_repeated(b'{"numbers": [', b"1," * (8 << 20), 128, 15)
    official.write_aselmdb(path, {1: official.make_ase_row(1), 2: value, 3: official.make_ase_row(3)})


def write_long_put(path: Path) -> None:
    """Write a graph and a pickle that stores at a huge index of the memo."""
    official.write_lmdb(path, {"0": official.encode_graph(0), "1": b"\x80\x02]r" + struct.pack("<I", 1 << 28) + b"."})


def write_shared_lists(path: Path) -> None:
    """Write graphs with nested lists that are shared, so that few bytes expand to 10**14 numbers."""
    nested: object = [1.0] * 100
    for _ in range(6):
        nested = [nested] * 100
    official.write_lmdb(path, {"0": official.encode_graph(0, pos=nested), "1": official.encode_graph(1, y=nested)})


def write_copies(path: Path) -> None:
    """Write a graph and a pickle that copies a large list many times."""
    large = pickle.dumps(list(range(20_000)), protocol=4)[2:-1]  # without the opcodes of protocol and end
    body = b"\x80\x04" + large + b"\x94\x30]" + b"cbuiltins\nset\nh\x00\x85Ra" * 20_000 + b"."
    official.write_lmdb(path, {"0": official.encode_graph(0), "1": body})


def write_claimed_bytes(path: Path) -> None:
    """Write a graph and a pickle that claims to contain 1 TiB of bytes."""
    bomb = b"\x80\x04\x8e" + struct.pack("<Q", 1 << 40) + b"."
    official.write_lmdb(path, {"0": official.encode_graph(0), "1": bomb})


def write_empty_datasets(path: Path) -> None:
    """Write HDF5 datasets with 10**9 conformations that are not stored, and a valid group."""
    with h5py.File(path, "w") as file:
        group = file.create_group("C1H4O1")
        group["atomic_numbers"] = official.METHANOL
        for name, shape in (
            ("coordinates", (10**9, 6, 3)),
            ("wb97x_dz.energy", (10**9,)),
            ("wb97x_dz.forces", (10**9, 6, 3)),
        ):
            group.create_dataset(name, shape, "f8", chunks=(1000, *shape[1:]))
    with h5py.File(path, "a") as file:
        valid_group = file.create_group("C2")
        valid_group["atomic_numbers"] = official.METHANOL
        valid_group["coordinates"] = np.zeros((1, 6, 3))
        valid_group["wb97x_dz.energy"] = np.zeros(1)
        valid_group["wb97x_dz.forces"] = np.zeros((1, 6, 3))


def write_many_atoms(path: Path) -> None:
    """Write HDF5 datasets with 10**9 atoms that are not stored."""
    with h5py.File(path, "w") as file:
        group = file.create_group("X")
        group.create_dataset("atomic_numbers", (10**9,), "u1", chunks=(1 << 20,), compression="gzip")
        group.create_dataset("coordinates", (4, 10**9, 3), "f8", chunks=(1, 1 << 20, 3), compression="gzip")
        for name, shape in (("wb97x_dz.energy", (4,)), ("wb97x_dz.forces", (4, 10**9, 3))):
            group.create_dataset(name, shape, "f8", chunks=True)


FRAME = b'1\nLattice="9 0 0 0 9 0 0 0 9" Properties=species:S:1:pos:R:3 energy=-3\nCu 0 0 0\n'
LARGE = b"99999\nProperties=species:S:1:pos:R:3 energy=-300000\n" + b"Cu 0 0 0\n" * 99_999
ENTRY = b'{"entries": [['
BOMBS: dict[str, tuple[str, str, Callable[[Path], object]]] = {
    "a line without end": (
        "s2ef_text",
        "0.extxyz.xz",
        lambda p: p.write_bytes(pack_repeated(lzma.compress, b"1", 6 * GIB)),
    ),
    "large frames": ("s2ef_text", "1.extxyz.xz", lambda p: p.write_bytes(lzma.compress(LARGE) * 20)),
    "a header without end": (
        "s2ef_text",
        "0.extxyz.bz2",
        lambda p: p.write_bytes(bz2.compress(b"1\n") + pack_repeated(bz2.compress, b"a", 4 * GIB)),
    ),
    "text file": (
        "s2ef_text",
        "2.extxyz",
        lambda p: (
            p.write_bytes(FRAME),
            p.with_name("2.txt.xz").write_bytes(pack_repeated(lzma.compress, b"x", 6 * GIB)),
        ),
    ),
    "tar header": ("s2ef_text", "a.tar.gz", write_huge_tar_header),
    "row": ("aselmdb", "a.aselmdb", write_large_row),
    "memo index": ("s2ef_lmdb", "a.lmdb", write_long_put),
    "shared lists": ("s2ef_lmdb", "b.lmdb", write_shared_lists),
    "copies": ("s2ef_lmdb", "c.lmdb", write_copies),
    "claimed bytes": ("s2ef_lmdb", "d.lmdb", write_claimed_bytes),
    "json entry": ("alexandria", "a.json.bz2", lambda p: p.write_bytes(pack_repeated(bz2.compress, ENTRY, 2 * GIB))),
    "empty datasets": ("ani1x", "a.h5", write_empty_datasets),
    "atoms": ("ani1x", "b.h5", write_many_atoms),
}


def read_within_bounds(name: str, path: Path) -> None:
    """Read a file and exit with 0 if memory stays within bounds and the fault is reported."""
    limit = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 + GIB
    output = []
    try:
        for part in FORMATS[name].list_chunks([path]):
            for item in FORMATS[name].read_chunk(part):
                if isinstance(item, RejectedStructure):
                    output.append(item.reason)
                else:
                    assert len(item.numbers) <= base.TABLE_ATOMS + base.MAX_ATOMS
    except InputError as error:
        output.append(str(error))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(path.name, peak - limit + GIB >> 20, "MiB", output[:2])
    raise SystemExit(0 if peak < limit and (output or "1.extxyz" in path.name) else 1)


@pytest.mark.slow
@pytest.mark.parametrize("bomb", BOMBS)
def test_small_files_do_not_exhaust_memory(tmp_path: Path, bomb: str) -> None:
    name, file, write = BOMBS[bomb]
    write(tmp_path / file)
    assert (tmp_path / file).stat().st_size < 24 << 20
    process = multiprocessing.get_context("fork").Process(target=read_within_bounds, args=(name, tmp_path / file))
    process.start()
    process.join()
    assert process.exitcode == 0


def test_tables_are_limited_by_atoms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.reference.datasets.parsing import structure_builder

    monkeypatch.setattr(structure_builder, "TABLE_ATOMS", 12)
    for name, path in (("s2ef_text", tmp_path / "a.extxyz"), ("ani1x", tmp_path / "a.h5")):
        if name == "ani1x":
            official.write_ani1x(path, {f"C{k}": 1 for k in range(6)})
        else:
            path.write_text("".join(official.format_extxyz_frame(k) for k in range(6)))
        (part,) = FORMATS[name].list_chunks([path])
        assert [len(item) for item in FORMATS[name].read_chunk(part) if isinstance(item, StructureTable)] == [2, 2, 2]


def test_frames_with_no_or_too_many_atoms_are_rejected(tmp_path: Path) -> None:
    (tmp_path / "a.extxyz").write_text("100001\n\n")
    with pytest.raises(InputError, match=r"line 1: '100001' is not a number of atoms \(0 \.\. 100000\)"):
        FORMATS["s2ef_text"].list_chunks([tmp_path])


def test_oversized_pickle_is_one_rejection(tmp_path: Path) -> None:
    for write in (write_long_put, write_claimed_bytes, write_shared_lists):
        path = tmp_path / f"{write.__name__}.lmdb"
        write(path)
        (part,) = FORMATS["s2ef_lmdb"].list_chunks([path])
        items = list(FORMATS["s2ef_lmdb"].read_chunk(part))
        structures = sum(len(item) for item in items if isinstance(item, StructureTable))
        assert structures + sum(item.count for item in items if isinstance(item, RejectedStructure)) == 2
        assert any(isinstance(item, RejectedStructure) for item in items)


def test_crystals_of_sensible_size_pass() -> None:
    frames = make_crystals()
    assert len(check_structures(replace(frames, cell=frames.cell * 0.6), source=None)[0]) == 2
