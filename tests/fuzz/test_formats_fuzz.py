"""Official files with randomly changed values, keys, types, sizes and bytes are read, or refused in one line."""

from __future__ import annotations

import bz2
import contextlib
import copy
import io
import json
import lzma
import pickle
import random
import sqlite3
import zlib
from collections.abc import Callable
from contextlib import closing, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from harness.reference.datasets.__main__ import main
from tests.fuzz.bounded import COUNT, run_fuzzer
from tests.reference.datasets.official_files import json_writers as official_json
from tests.reference.datasets.official_files import tfrecord_writers as official_tfrecord
from tests.reference.datasets.official_files import writers as official

pytestmark = pytest.mark.slow

ODD_VALUES = (
    None, True, 0, -1, 1e300, -1e17, float("nan"), float("inf"), 2**31, 10**30, "", "low", "\x1b[2J\n", [], {}, [[]],
    [0.0] * 7,
    [[1.0, 2.0]], {"__ndarray__": [[6, 3], "float64", [1.0]]}, {"__ndarray__": [[2**40], "float64", []]},
)  # fmt: skip
ODD_WORDS = (
    "energy",
    "forces",
    "dft_forces",
    "pos",
    "Z",
    "R",
    "S",
    "T",
    "F",
    "[",
    "]",
    "{",
    '"',
    "=",
    ":",
    "nan",
    "1e400",
    "-1",
    "\t",
    "\r",
    "",
    "é",
)


def damage_value(value: Any, rng: random.Random) -> Any:
    """Remove, rename or replace one item of a nested value."""
    value = copy.deepcopy(value)
    container = value
    while True:
        if isinstance(container, dict) and container:
            key: Any = rng.choice(list(container))
        elif isinstance(container, list) and container:
            key = rng.randrange(len(container))
        else:
            return rng.choice(ODD_VALUES)
        value_of_key = container[key]
        if isinstance(value_of_key, (dict, list)) and value_of_key and rng.random() < 0.7:
            container = value_of_key
            continue
        kind = rng.randrange(3)
        if kind == 0:
            del container[key]
        elif kind == 1 and isinstance(container, dict):
            container[rng.choice(ODD_WORDS)] = container.pop(key)
        else:
            container[key] = rng.choice(ODD_VALUES)
        return value


def damage_bytes(data: bytes, rng: random.Random) -> bytes:
    """Flip, cut, repeat or insert bytes."""
    result = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        position = rng.randrange(len(result) + 1)
        kind = rng.randrange(4)
        if kind == 0 and position < len(result):
            result[position] = rng.randrange(256)
        elif kind == 1:
            del result[position : position + rng.choice((1, 4, 100, 10**6))]
        elif kind == 2:
            result[position:position] = result[position : position + rng.choice((1, 8, 200))]
        else:
            result[position:position] = rng.randbytes(rng.choice((1, 4, 8)))
    return bytes(result)


def damage_text(text: str, rng: random.Random) -> str:
    """Change words and lines of a text."""
    for _ in range(rng.randint(1, 3)):
        lines = text.split("\n")
        k = rng.randrange(len(lines))
        words = lines[k].split(" ")
        words[rng.randrange(len(words))] = rng.choice(ODD_WORDS)
        lines[k : k + 1] = rng.choice(([" ".join(words)], [], [lines[k]] * 2, [lines[k] + rng.choice(ODD_WORDS)]))
        text = "\n".join(lines)
    return text


def write_text(folder: Path, rng: random.Random) -> tuple[str, Path]:
    text = damage_text("".join(official.format_extxyz_frame(k) for k in range(4)), rng).encode()
    if rng.random() < 0.3:
        (folder / "0.txt").write_text(damage_text("".join(f"random{k},frame{k},-4{k}.0\n" for k in range(4)), rng))
    is_compressed = rng.random() < 0.4
    path = folder / ("0.extxyz.xz" if is_compressed else "0.extxyz")
    path.write_bytes(damage_bytes(lzma.compress(text), rng) if is_compressed and rng.random() < 0.7 else text)
    return rng.choice(("oc2020", "omat24")), path


def write_database(folder: Path, rng: random.Random) -> tuple[str, Path]:
    path = folder / "a.db"
    official.write_nabla(path, 3, units=rng.random() < 0.5)
    with closing(sqlite3.connect(path)) as database:
        columns = ("numbers", "positions", "cell", "pbc", "energy", "forces", "stress", "key_value_pairs", "data", "id")
        for _ in range(rng.randint(0, 3)):
            column = rng.choice(columns)
            ((value,),) = database.execute(f"SELECT {column} FROM systems WHERE id = 2").fetchall() or ((None,),)
            damaged = (
                damage_bytes(value, rng)
                if isinstance(value, bytes)
                else rng.choice((None, 2**40, -1, 0.5, "low", b"x" * 9))
            )
            with contextlib.suppress(sqlite3.Error):
                database.execute(f"UPDATE systems SET {column} = ? WHERE id = 2", (damaged,))
        for name, value in database.execute("SELECT name, value FROM information").fetchall():
            if name == "metadata" and rng.random() < 0.5:
                text = json.dumps(damage_value(json.loads(value), rng))
                database.execute("UPDATE information SET value = ? WHERE name = 'metadata'", (text,))
        database.commit()
    if rng.random() < 0.3:
        path.write_bytes(damage_bytes(path.read_bytes(), rng))
    return rng.choice(("nabla2dft", "omol25")), path


def write_rows(folder: Path, rng: random.Random) -> tuple[str, Path]:
    """Write changed entries in intact LMDB pages, because LMDB does not check its pages."""
    rows: dict[int, Any] = {k: official.make_ase_row(k) for k in (1, 2, 3)}
    for _ in range(rng.randint(1, 3)):
        row = damage_value(official.make_ase_row(2), rng)
        text = json.dumps(row).encode()
        rows[2] = rng.choice(
            (zlib.compress(text), damage_bytes(zlib.compress(text), rng), zlib.compress(damage_bytes(text, rng)))
        )
    path = folder / "a.aselmdb"
    official.write_aselmdb(path, rows)
    if rng.random() < 0.3:
        odd_value = zlib.compress(json.dumps(rng.choice(ODD_VALUES)).encode())
        official.write_lmdb(path, {rng.choice(("nextid", "deleted_ids", "metadata", "x", "007", "9" * 30)): odd_value})
    return rng.choice(("omol25", "omol25-neutral", "omat24", "oc2020")), path


def write_graphs(folder: Path, rng: random.Random) -> tuple[str, Path]:
    graphs = {str(k): official.encode_graph(k, old=rng.random() < 0.5) for k in range(3)}
    if rng.random() < 0.5:
        name = rng.choice(
            ("pos", "cell", "atomic_numbers", "y", "force", "natoms", "sid", "pbc", "charge", "energy", "raw_y")
        )
        graphs["1"] = official.encode_graph(
            1, **{name: rng.choice((*ODD_VALUES, np.zeros((5, 3)), np.zeros(2, dtype="U3"), 1j))}
        )
    if rng.random() < 0.6:
        graphs["1"] = damage_bytes(graphs["1"], rng)
    if rng.random() < 0.3:
        graphs["length"] = pickle.dumps(rng.choice(ODD_VALUES))
    official.write_lmdb(folder / "a.lmdb", graphs)
    return rng.choice(("oc2022", "odac23", "oc2020")), folder / "a.lmdb"


def write_hdf5(folder: Path, rng: random.Random) -> tuple[str, Path]:
    dataset, path = rng.choice(
        (("ani1x", folder / "a.h5"), ("transition1x", folder / "t.h5"), ("qm7x", folder / "1.hdf5"))
    )
    if dataset == "ani1x":
        official.write_ani1x(path, {"C": 2, "D": 3})
    elif dataset == "qm7x":
        official.write_qm7x(path, {"0001": 2, "0002": 1})
    else:
        official.write_transition1x(path, {"C/rxn1": 2, "D/rxn2": 2})
    with h5py.File(path, "a") as file:
        names: list[str] = []
        file.visit(names.append)
        for name in rng.sample(names, rng.randint(0, 2)):
            if name in file:
                del file[name]
                shape = rng.choice(((), (1,), (2, 6, 3), (0,), (3, 6), (2, 6, 3, 1)))
                kind = rng.choice(("f4", "i8", "u1", "S3", "c16", "?"))
                with contextlib.suppress(ValueError):
                    file[name] = np.full(shape, 1, dtype=kind)
    if rng.random() < 0.5:
        path.write_bytes(damage_bytes(path.read_bytes(), rng))
    return dataset, path


def write_json(folder: Path, rng: random.Random) -> tuple[str, Path]:
    if rng.random() < 0.5:
        text = json.dumps(
            damage_value({"entries": [official_json.make_alexandria_entry(k) for k in range(3)]}, rng)
        ).encode()
        path = folder / "a.json.bz2"
        text = damage_bytes(text, rng) if rng.random() < 0.3 else text
        path.write_bytes(damage_bytes(bz2.compress(text), rng) if rng.random() < 0.3 else bz2.compress(text))
        return "alexandria", path
    frames = {"mp-1": {f"mp-1-{k}-0": official_json.make_mptrj_frame(k) for k in range(3)}}
    text = json.dumps(damage_value(frames, rng)).encode()
    (folder / "m.json").write_bytes(damage_bytes(text, rng) if rng.random() < 0.4 else text)
    return "mptrj", folder / "m.json"


def write_records(folder: Path, rng: random.Random) -> tuple[str, Path]:
    features = [official_tfrecord.make_qcml_features(k) for k in range(3)]
    name = rng.choice(list(features[1]))
    odd_value = ([], [1], [-1], [2**62], [0.5, 1e30], b"low", [float("nan")] * 18, [1e20] * 18, [1] * 7)
    features[1][rng.choice((name, "x"))] = rng.choice(odd_value)
    if rng.random() < 0.3:
        features[1].pop(name, None)
    records = [official_tfrecord.encode_example(f) for f in features]
    if rng.random() < 0.5:
        records[1] = damage_bytes(records[1], rng)
    data = b"".join(official_tfrecord.encode_record(record) for record in records)
    path = folder / "a.tfrecord-00000-of-00001"
    path.write_bytes(damage_bytes(data, rng) if rng.random() < 0.3 else data)
    return "qcml", path


WRITERS: dict[str, Callable[[Path, random.Random], tuple[str, Path]]] = {
    "extxyz": write_text,
    "ase db": write_database,
    "aselmdb": write_rows,
    "lmdb pickle": write_graphs,
    "h5": write_hdf5,
    "json": write_json,
    "tfrecord": write_records,
}


def check_and_convert(dataset: str, path: Path, folder: Path) -> None:
    """Check the exit codes, error lines and printed characters of both commands on a file."""
    for arguments in (
        ["check", dataset, str(path)],
        ["convert", dataset, str(path), "--to", str(folder / "s"), "--workers", "1"],
    ):
        stdout, stderr = io.StringIO(), io.StringIO()
        with redirect_stdout(stdout), redirect_stderr(stderr):
            code = main([*arguments, "-q"])
        assert code in (0, 1, 2), (code, stderr.getvalue())
        assert code != 2 or (stderr.getvalue().startswith("error: ") and stderr.getvalue().count("\n") == 1)
        assert stdout.getvalue() or code == 2
        assert "\x1b" not in stdout.getvalue() + stderr.getvalue()


@pytest.mark.parametrize("file_format", WRITERS)
def test_damaged_official_files_are_read_or_reported(tmp_path: Path, file_format: str) -> None:
    def examine(rng: random.Random, folder: Path) -> None:
        dataset, path = WRITERS[file_format](folder, rng)
        check_and_convert(dataset, path, folder)

    run_fuzzer(examine, tmp_path, count=max(1, COUNT // len(WRITERS)))
