"""Damaged and forged stores are refused in one line, or read as they were written."""

from __future__ import annotations

import json
import random
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.reference.data.neighbours import NeighbourSpec
from harness.reference.datasets.__main__ import main
from harness.reference.datasets.collection import open_dataset
from harness.reference.datasets.hydragnn import inspect as isolated_process
from harness.reference.datasets.inspect import summarize_store
from harness.reference.errors import InputError
from harness.reference.storage.adios.reader import BPFile
from harness.reference.storage.open import open_samples
from harness.reference.storage.schema import Sample
from tests.fuzz.bounded import COUNT, run_fuzzer
from tests.reference.storage.examples import is_same_record, make_example_block, write
from tests.reference.storage.originals import load_shipped_frames, write_authors_store

pytestmark = pytest.mark.slow
SEAL = "harness.json"
ODD_VALUES = (
    None, True, -1, 0, 1, 2**31, 2**63, 10**30, 1e308, float("nan"), float("inf"), "", "a", "../../etc/passwd",
    "/dev/zero", "\0", "é" * 300, [], {}, [[]], {"a": 1}, "trainset/pos", "data.0", [1, 2, 3],
)  # fmt: skip


def run_quietly(arguments: list[str]) -> int:
    return main([*arguments, "-q"])


@pytest.fixture(scope="module")
def own_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("own") / "qm7x.bp", make_example_block(60))


@pytest.fixture(scope="module")
def hydragnn_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = write_authors_store(tmp_path_factory.mktemp("hydragnn") / "QM7X-v2.bp", load_shipped_frames()[np.arange(60)])
    assert run_quietly(["convert", "qm7x", str(path)]) == 0
    return path


def copy_store(path: Path, folder: Path) -> Path:
    for result in path.parent.iterdir():
        copy = shutil.copytree if result.is_dir() else shutil.copyfile
        copy(result, folder / result.name)
    return folder / path.name


def read_all(path: Path, mode: Any) -> list[Sample]:
    with open_samples(path, "trainset", mode) as samples:
        return [{k: v.copy() for k, v in record.items()} for record in samples.get(range(len(samples)))]


def mutate_mapping(rng: random.Random, value: dict[str, Any]) -> dict[str, Any]:
    """Remove, rename, add or change a key."""
    key, name = rng.choice(list(value)), rng.choice([str(x) for x in ODD_VALUES])
    other_keys = {k: v for k, v in value.items() if k != key}
    changes = [other_keys, other_keys | {name: value[key]}, value | {name: rng.choice(ODD_VALUES)}]
    return rng.choice(changes) if rng.random() < 0.5 else value | {key: mutate_json(rng, value[key])}


def mutate_json(rng: random.Random, value: Any) -> Any:
    """Change a value somewhere in nested JSON."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        return mutate_mapping(rng, value)
    if isinstance(value, list) and value and rng.random() < 0.5:
        k = rng.randrange(len(value))
        return [*value[:k], mutate_json(rng, value[k]), *value[k + 1 :]]
    if isinstance(value, int | float) and rng.random() < 0.3:
        return value + rng.choice([-1, 1, 0.5, 1e-9])
    return rng.choice(ODD_VALUES)


def mutate_bytes(rng: random.Random, content: bytes) -> bytes:
    """Flip, remove, repeat or overwrite a part of the bytes."""
    if not content:
        return bytes(rng.randrange(100))
    position, length = rng.randrange(len(content)), rng.choice([1, 2, 8, 64, 1000])
    part = content[position : position + length]
    change: Callable[[], bytes] = rng.choice(
        [
            lambda: bytes([part[0] ^ 1 << rng.randrange(8)]) + part[1:],
            lambda: b"",
            lambda: part + part,
            lambda: rng.randbytes(len(part)),
            lambda: bytes(len(part)),
            lambda: b"\xff" * len(part),
        ]
    )
    return content[:position] + change() + content[position + length :]


def mutate_seal(rng: random.Random, seal: Path) -> bool:
    """Change a seal; return whether it has the checksum of its new content."""
    action = rng.randrange(10)
    if action == 0:
        seal.write_bytes(rng.choice([b"", b"[" * 10**5, b"9" * 10**5, b'{"a":' * 10**4, rng.randbytes(500), b"null"]))
        return False
    if action < 3:
        seal.write_bytes(mutate_bytes(rng, seal.read_bytes()))
        return False
    content = json.loads(seal.read_text())["content"]
    for _ in range(rng.choice([1, 1, 2, 5])):
        content = mutate_json(rng, content)
    try:
        checksum = zlib.crc32(json.dumps(content, sort_keys=True).encode())
    except TypeError:
        checksum = 0
    seal.write_text(json.dumps({"content": content, "crc32": checksum}))
    return True


def attempt(call: Callable[[], object]) -> bool:
    """Call the function and return whether it succeeded; an InputError must have a message of one line."""
    try:
        call()
    except InputError as error:
        message = str(error)
    else:
        return True
    assert "\n" not in message
    assert len(message) < 2000
    return False


def test_damaged_seals_are_rejected(own_store: Path, hydragnn_store: Path, tmp_path: Path) -> None:
    expected = {path: read_all(path, "preload") for path in (own_store, hydragnn_store)}
    neighbour_spec = NeighbourSpec(5.0, 20)

    def examine(rng: random.Random, folder: Path) -> None:
        origin = rng.choice([own_store, hydragnn_store])
        path = copy_store(origin, folder)
        has_valid_checksum = mutate_seal(
            rng, path / SEAL if origin == own_store else path.with_name(f"{path.name}.{SEAL}")
        )

        def check_content() -> None:
            result = read_all(path, rng.choice(["on_demand", "preload"]))
            assert all(map(is_same_record, result, expected[origin]))

        attempt(check_content)
        attempt(lambda: summarize_store(path))
        opened: list[Any] = []
        if (
            attempt(lambda: opened.append(open_dataset(path, neighbour_spec, "on_demand")))
            and origin == hydragnn_store
            and not has_valid_checksum
        ):
            assert len(opened[0].samples) == len(expected[origin])

    run_fuzzer(examine, tmp_path)


def test_damaged_files_of_sealed_stores_are_rejected(own_store: Path, hydragnn_store: Path, tmp_path: Path) -> None:
    expected = {path: read_all(path, "preload") for path in (own_store, hydragnn_store)}

    def examine(rng: random.Random, folder: Path) -> None:
        origin = rng.choice([own_store, hydragnn_store])
        path = copy_store(origin, folder)
        files = sorted(f for f in folder.rglob("*") if f.is_file())
        for _ in range(rng.choice([1, 1, 3])):
            file = rng.choice([f for f in files if f.exists()])
            if rng.random() < 0.05:
                file.unlink()
                file.symlink_to(rng.choice(["/dev/zero", "/etc/passwd", "nowhere", str(path)]))
                break
            file.write_bytes(mutate_bytes(rng, file.read_bytes()))

        def check_content() -> None:
            assert all(map(is_same_record, read_all(path, rng.choice(["on_demand", "preload"])), expected[origin]))

        attempt(check_content)

    run_fuzzer(examine, tmp_path, min(COUNT, 500))


def test_damaged_files_of_unsealed_stores_are_rejected(
    hydragnn_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ADIOS2 crashes or hangs on some of these files, and the command must report this."""
    monkeypatch.setattr(isolated_process, "MAX_READ_S", 3)

    def examine(rng: random.Random, folder: Path) -> None:
        path = Path(shutil.copytree(hydragnn_store, folder / hydragnn_store.name))
        file = path / rng.choice(["md.0", "md.idx", "mmd.0", "data.0"])
        file.write_bytes(mutate_bytes(rng, file.read_bytes()))
        assert main(["check", str(path), "-q"]) in (0, 1, 2)
        assert main(["convert", "qm7x", str(path), "-q"]) in (0, 2)
        if path.with_name(f"{path.name}.{SEAL}").exists():
            with BPFile(path) as store:
                attempt(store.verify)

    run_fuzzer(examine, tmp_path, min(COUNT, 200))
