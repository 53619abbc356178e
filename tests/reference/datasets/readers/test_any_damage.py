"""Every reader reports files of other formats and damaged files in one clear line, never with a traceback."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from harness.reference.data.structure_table import RejectedStructure, StructureTable
from harness.reference.datasets.readers.registry import FORMATS
from harness.reference.errors import InputError
from tests.reference.datasets.official_files import json_writers as official_json
from tests.reference.datasets.official_files import tfrecord_writers as official_tfrecord
from tests.reference.datasets.official_files import writers as official


def write_shard(path: Path) -> None:
    records = [official_tfrecord.encode_example(official_tfrecord.make_qcml_features(k)) for k in range(3)]
    path.write_bytes(b"".join(official_tfrecord.encode_record(record) for record in records))


WRITERS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "alexandria": ("a.json.bz2", lambda p: official_json.write_alexandria(p, 3)),
    "ani1x": ("a.h5", lambda p: official.write_ani1x(p, {"CH4": 4, "C2": 2})),
    "asedb": ("a.db", lambda p: official.write_nabla(p, 4)),
    "aselmdb": ("a.aselmdb", lambda p: official.write_aselmdb(p, {k: official.make_ase_row(k) for k in (1, 2, 3)})),
    "mptrj": ("a.json", lambda p: official_json.write_mptrj(p, {"mp-1": 2, "mp-2": 1})),
    "qcml": ("a.tfrecord-00000-of-00001", write_shard),
    "qm7x": ("a.hdf5", lambda p: official.write_qm7x(p, {"0001": 3})),
    "s2ef_lmdb": ("a.lmdb", lambda p: official.write_lmdb(p, {str(k): official.encode_graph(k) for k in range(3)})),
    "s2ef_text": (
        "a.extxyz",
        lambda p: p.write_text("".join(official.format_extxyz_frame(k) for k in range(3))) and None,
    ),
    "transition1x": ("a.h5", lambda p: official.write_transition1x(p, {"C/rxn1": 3, "N/rxn2": 2})),
}
MEMORY_MAPPED = ("aselmdb", "s2ef_lmdb")  # LMDB does not check its pages, so flipped bytes go unnoticed


def write_example(folder: Path, name: str) -> Path:
    ending, write = WRITERS[name]
    folder.mkdir(exist_ok=True)
    write(folder / ending)
    return folder / ending


def read_messages(reader: str, path: Path) -> list[str]:
    """Return the messages of a reader about a file; fail if it raises anything but InputError."""
    messages, structures = [], 0
    try:
        for part in FORMATS[reader].list_chunks([path]):
            for item in FORMATS[reader].read_chunk(part):
                if isinstance(item, StructureTable):
                    structures += len(item)
                else:
                    assert isinstance(item, RejectedStructure)
                    assert item.where
                    assert item.kind
                    messages.append(item.reason)
    except InputError as error:
        message = str(error)
        messages.append(message if path.name in message else "")
    assert all(text and "\n" not in text for text in messages)
    assert structures < 10
    return messages


@pytest.mark.parametrize("reader", WRITERS)
def test_files_of_other_formats_are_rejected(tmp_path: Path, reader: str) -> None:
    for other in WRITERS:
        messages = read_messages(reader, write_example(tmp_path / other, other))
        assert bool(messages) == (other != reader), f"{reader} given {other}: {messages}"


@pytest.mark.parametrize("name", WRITERS)
def test_file_deleted_before_reading_is_reported(tmp_path: Path, name: str) -> None:
    path = write_example(tmp_path / "gone", name)
    parts = FORMATS[name].list_chunks([path])
    path.unlink()
    for part in parts:
        with pytest.raises(InputError, match=re.escape(path.name)):
            list(FORMATS[name].read_chunk(part))


@pytest.mark.parametrize("name", WRITERS)
def test_truncated_and_altered_files_are_reported(tmp_path: Path, name: str) -> None:
    rng = np.random.default_rng(7)
    path = write_example(tmp_path / "whole", name)
    intact = path.read_bytes()
    for _ in range(20):
        path.write_bytes(intact[: rng.integers(0, len(intact) - 2)])
        read_messages(name, path)
    for _ in range(0 if name in MEMORY_MAPPED else 20):
        damaged = bytearray(intact)
        for position in rng.integers(0, len(intact), rng.integers(1, 20)).tolist():
            damaged[position] = int(rng.integers(256))
        path.write_bytes(bytes(damaged))
        read_messages(name, path)
