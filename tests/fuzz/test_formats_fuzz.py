"""Official files with values, keys, types, sizes and bytes changed at random: read, reported or refused in one line."""

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

ODD = (
    None, True, 0, -1, 1e300, -1e17, float("nan"), float("inf"), 2**31, 10**30, "", "low", "\x1b[2J\n", [], {}, [[]],
    [0.0] * 7,
    [[1.0, 2.0]], {"__ndarray__": [[6, 3], "float64", [1.0]]}, {"__ndarray__": [[2**40], "float64", []]},
)  # fmt: skip
WORDS = (
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


def spoil(value: Any, rng: random.Random) -> Any:
    """Change one place in a nested value: drop it, rename it, double it, or put something odd there."""
    value = copy.deepcopy(value)
    place = value
    while True:
        if isinstance(place, dict) and place:
            key: Any = rng.choice(list(place))
        elif isinstance(place, list) and place:
            key = rng.randrange(len(place))
        else:
            return rng.choice(ODD)
        inner = place[key]
        if isinstance(inner, (dict, list)) and inner and rng.random() < 0.7:
            place = inner
            continue
        how = rng.randrange(3)
        if how == 0:
            del place[key]
        elif how == 1 and isinstance(place, dict):
            place[rng.choice(WORDS)] = place.pop(key)
        else:
            place[key] = rng.choice(ODD)
        return value


def spoil_bytes(data: bytes, rng: random.Random) -> bytes:
    """Flip, cut, repeat or insert bytes."""
    result = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(result) + 1)
        how = rng.randrange(4)
        if how == 0 and at < len(result):
            result[at] = rng.randrange(256)
        elif how == 1:
            del result[at : at + rng.choice((1, 4, 100, 10**6))]
        elif how == 2:
            result[at:at] = result[at : at + rng.choice((1, 8, 200))]
        else:
            result[at:at] = rng.randbytes(rng.choice((1, 4, 8)))
    return bytes(result)


def spoil_text(text: str, rng: random.Random) -> str:
    """Change words, lines and characters of a text."""
    for _ in range(rng.randint(1, 3)):
        lines = text.split("\n")
        k = rng.randrange(len(lines))
        words = lines[k].split(" ")
        words[rng.randrange(len(words))] = rng.choice(WORDS)
        lines[k : k + 1] = rng.choice(([" ".join(words)], [], [lines[k]] * 2, [lines[k] + rng.choice(WORDS)]))
        text = "\n".join(lines)
    return text


def write_text(folder: Path, rng: random.Random) -> tuple[str, Path]:
    text = spoil_text("".join(official.extxyz_frame(k) for k in range(4)), rng).encode()
    if rng.random() < 0.3:
        (folder / "0.txt").write_text(spoil_text("".join(f"random{k},frame{k},-4{k}.0\n" for k in range(4)), rng))
    packed = rng.random() < 0.4
    path = folder / ("0.extxyz.xz" if packed else "0.extxyz")
    path.write_bytes(spoil_bytes(lzma.compress(text), rng) if packed and rng.random() < 0.7 else text)
    return rng.choice(("oc2020", "omat24")), path


def write_database(folder: Path, rng: random.Random) -> tuple[str, Path]:
    path = folder / "a.db"
    official.write_nabla(path, 3, units=rng.random() < 0.5)
    with closing(sqlite3.connect(path)) as database:
        columns = ("numbers", "positions", "cell", "pbc", "energy", "forces", "stress", "key_value_pairs", "data", "id")
        for _ in range(rng.randint(0, 3)):
            column = rng.choice(columns)
            ((value,),) = database.execute(f"SELECT {column} FROM systems WHERE id = 2").fetchall() or ((None,),)
            spoiled = (
                spoil_bytes(value, rng)
                if isinstance(value, bytes)
                else rng.choice((None, 2**40, -1, 0.5, "low", b"x" * 9))
            )
            with contextlib.suppress(sqlite3.Error):
                database.execute(f"UPDATE systems SET {column} = ? WHERE id = 2", (spoiled,))
        for name, value in database.execute("SELECT name, value FROM information").fetchall():
            if name == "metadata" and rng.random() < 0.5:
                text = json.dumps(spoil(json.loads(value), rng))
                database.execute("UPDATE information SET value = ? WHERE name = 'metadata'", (text,))
        database.commit()
    if rng.random() < 0.3:
        path.write_bytes(spoil_bytes(path.read_bytes(), rng))
    return rng.choice(("nabla2dft", "omol25")), path


def write_rows(folder: Path, rng: random.Random) -> tuple[str, Path]:
    """Write entries that are changed; pages stay as they are, because LMDB trusts them."""
    rows: dict[int, Any] = {k: official.ase_row(k) for k in (1, 2, 3)}
    for _ in range(rng.randint(1, 3)):
        row = spoil(official.ase_row(2), rng)
        text = json.dumps(row).encode()
        rows[2] = rng.choice(
            (zlib.compress(text), spoil_bytes(zlib.compress(text), rng), zlib.compress(spoil_bytes(text, rng)))
        )
    path = folder / "a.aselmdb"
    official.write_aselmdb(path, rows)
    if rng.random() < 0.3:
        odd = zlib.compress(json.dumps(rng.choice(ODD)).encode())
        official.write_lmdb(path, {rng.choice(("nextid", "deleted_ids", "metadata", "x", "007", "9" * 30)): odd})
    return rng.choice(("omol25", "omol25-neutral", "omat24", "oc2020")), path


def write_graphs(folder: Path, rng: random.Random) -> tuple[str, Path]:
    graphs = {str(k): official.graph_bytes(k, old=rng.random() < 0.5) for k in range(3)}
    if rng.random() < 0.5:
        name = rng.choice(
            ("pos", "cell", "atomic_numbers", "y", "force", "natoms", "sid", "pbc", "charge", "energy", "raw_y")
        )
        graphs["1"] = official.graph_bytes(
            1, **{name: rng.choice((*ODD, np.zeros((5, 3)), np.zeros(2, dtype="U3"), 1j))}
        )
    if rng.random() < 0.6:
        graphs["1"] = spoil_bytes(graphs["1"], rng)
    if rng.random() < 0.3:
        graphs["length"] = pickle.dumps(rng.choice(ODD))
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
        path.write_bytes(spoil_bytes(path.read_bytes(), rng))
    return dataset, path


def write_json(folder: Path, rng: random.Random) -> tuple[str, Path]:
    if rng.random() < 0.5:
        text = json.dumps(spoil({"entries": [official_json.alexandria_entry(k) for k in range(3)]}, rng)).encode()
        path = folder / "a.json.bz2"
        text = spoil_bytes(text, rng) if rng.random() < 0.3 else text
        path.write_bytes(spoil_bytes(bz2.compress(text), rng) if rng.random() < 0.3 else bz2.compress(text))
        return "alexandria", path
    frames = {"mp-1": {f"mp-1-{k}-0": official_json.mptrj_frame(k) for k in range(3)}}
    text = json.dumps(spoil(frames, rng)).encode()
    (folder / "m.json").write_bytes(spoil_bytes(text, rng) if rng.random() < 0.4 else text)
    return "mptrj", folder / "m.json"


def write_records(folder: Path, rng: random.Random) -> tuple[str, Path]:
    features = [official_tfrecord.qcml_features(k) for k in range(3)]
    name = rng.choice(list(features[1]))
    odd = ([], [1], [-1], [2**62], [0.5, 1e30], b"low", [float("nan")] * 18, [1e20] * 18, [1] * 7)
    features[1][rng.choice((name, "x"))] = rng.choice(odd)
    if rng.random() < 0.3:
        features[1].pop(name, None)
    records = [official_tfrecord.example_bytes(f) for f in features]
    if rng.random() < 0.5:
        records[1] = spoil_bytes(records[1], rng)
    data = b"".join(official_tfrecord.frame_record(record) for record in records)
    path = folder / "a.tfrecord-00000-of-00001"
    path.write_bytes(spoil_bytes(data, rng) if rng.random() < 0.3 else data)
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
    """Run both commands on a file: an exit code that is documented, words without escape sequences, no traceback."""
    for words in (
        ["check", dataset, str(path)],
        ["convert", dataset, str(path), "--to", str(folder / "s"), "--workers", "1"],
    ):
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            code = main([*words, "-q"])
        assert code in (0, 1, 2), (code, err.getvalue())
        assert code != 2 or (err.getvalue().startswith("error: ") and err.getvalue().count("\n") == 1)
        assert out.getvalue() or code == 2
        assert "\x1b" not in out.getvalue() + err.getvalue()


@pytest.mark.parametrize("family", WRITERS)
def test_damaged_official_files_are_read_or_reported(tmp_path: Path, family: str) -> None:
    def examine(rng: random.Random, folder: Path) -> None:
        dataset, path = WRITERS[family](folder, rng)
        check_and_convert(dataset, path, folder)

    run_fuzzer(examine, tmp_path, count=max(1, COUNT // len(WRITERS)))
