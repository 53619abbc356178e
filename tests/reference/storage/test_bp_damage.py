"""Damaged BP files are refused in one line, where ADIOS2 itself hangs, crashes or returns nothing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.reference.errors import InputError
from harness.reference.storage.adios.integrity import SEAL
from harness.reference.storage.adios.reader import BPFile
from harness.reference.storage.open import ReadMode, open_samples
from harness.reference.storage.schema import Sample
from tests.conftest import ROOT
from tests.reference.storage.examples import is_same_record, make_example_block, write


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("bp") / "qm9.bp", make_example_block(300))


@pytest.fixture
def damaged(intact: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(intact, tmp_path / "copy.bp"))


def get_refusal_message(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        BPFile(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("sealed", [True, False], ids=["sealed", "foreign"])
@pytest.mark.parametrize("name", ["data.0", "md.0", "md.idx", "mmd.0"])
@pytest.mark.parametrize("keep", [None, 0, 0.5, 0.97])
def test_missing_and_truncated_files_are_reported(damaged: Path, name: str, keep: float | None, sealed: bool) -> None:
    if not sealed:
        (damaged / SEAL).unlink()
        if name == "mmd.0" and keep is not None:
            pytest.skip("only the seal shows this damage")
    if keep is None:
        (damaged / name).unlink()
    else:
        os.truncate(damaged / name, int(keep * (damaged / name).stat().st_size))
    get_refusal_message(damaged)


@pytest.mark.parametrize("name", ["md.0", "md.idx", "mmd.0"])
def test_corrupted_metadata_is_rejected(damaged: Path, name: str) -> None:
    content = bytearray((damaged / name).read_bytes())
    content[len(content) // 2] ^= 0xFF
    (damaged / name).write_bytes(content)
    assert "is not as it was written" in get_refusal_message(damaged)


def overwrite(path: Path, offset: int, content: bytes) -> None:
    with open(path, "r+b") as handle:
        handle.seek(offset)
        handle.write(content)


DAMAGE = r"damaged, trainset/\w+.* is not as it was written in block \d+ \(rows \d+..\d+\)"


def read_all(mode: ReadMode, path: Path) -> list[Sample]:
    with open_samples(path, "trainset", mode) as samples:
        return [{k: v.copy() for k, v in record.items()} for record in samples.get(range(len(samples)))]


def test_damaged_data_are_found_by_verify(damaged: Path) -> None:
    overwrite(damaged / "data.0", 100_000, b"\xff" * 100)
    with BPFile(damaged) as file, pytest.raises(InputError, match=DAMAGE):
        file.verify()


@pytest.mark.parametrize("mode", ["on_demand", "preload", "shared", "distributed"])
def test_damaged_data_are_refused_when_training_reads_them(damaged: Path, mode: ReadMode) -> None:
    overwrite(damaged / "data.0", 100_000, b"\xff" * 100)
    with pytest.raises(InputError, match=DAMAGE):
        read_all(mode, damaged)


def test_samples_outside_a_damaged_block_are_read(damaged: Path, intact: Path) -> None:
    """Damage affects only the samples of its block."""
    with BPFile(intact) as file:
        expected = file.read_sample("trainset", 0, ["pos"])
    data = (damaged / "data.0").read_bytes()
    last = data.rindex(read_all("preload", intact)[-1]["pos"].tobytes())
    overwrite(damaged / "data.0", last, bytes([data[last] ^ 1]))
    with BPFile(damaged) as file:
        assert np.array_equal(file.read_sample("trainset", 0, ["pos"])["pos"], expected["pos"])
        for _ in range(2):
            with pytest.raises(InputError, match=r"trainset/pos is not as it was written"):
                file.read_sample("trainset", 299, ["pos"])


def test_any_flipped_bit_is_found_or_harmless(intact: Path, tmp_path: Path) -> None:
    expected = read_all("preload", intact)
    rng = np.random.default_rng(5)
    files = sorted(intact.iterdir())
    n_refused = {file.name: 0 for file in files}
    for number in range(120):
        file = files[number % len(files)]
        copy = Path(shutil.copytree(intact, tmp_path / f"{number}.bp"))
        offset = int(rng.integers(file.stat().st_size))
        overwrite(copy / file.name, offset, bytes([file.read_bytes()[offset] ^ 1 << int(rng.integers(8))]))
        try:
            assert all(map(is_same_record, read_all(("on_demand", "preload", "shared")[number % 3], copy), expected))
        except InputError:
            n_refused[file.name] += 1
        shutil.rmtree(copy)
    assert all(n_refused[name] for name in ("data.0", "md.0", "md.idx", "mmd.0", "harness.json", "harness.crc32"))


def test_a_store_without_its_seal_is_refused(damaged: Path) -> None:
    (damaged / SEAL).unlink()
    assert "harness.json is missing" in get_refusal_message(damaged)


def rewrite_seal(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the content of a seal and update its checksum."""
    content = json.loads((path / SEAL).read_text())["content"]
    change(content)
    checksum = zlib.crc32(json.dumps(content, sort_keys=True).encode())
    (path / SEAL).write_text(json.dumps({"content": content, "crc32": checksum}))


@pytest.mark.parametrize("name", ["/dev/zero", "../outside", "a/../../outside", "", ".", "..", "link", "\0"])
@pytest.mark.parametrize("table", ["bytes", "crc32"])
def test_a_seal_names_only_files_in_its_folder(damaged: Path, name: str, table: str) -> None:
    (damaged.parent / "outside").write_bytes(b"1234")
    (damaged / "link").symlink_to("/dev/zero")
    rewrite_seal(damaged, lambda content: content[table].update({name: 4}))
    get_refusal_message(damaged)


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c["bytes"].update({"md.0": -1}),
        lambda c: c["bytes"].update({"md.0": 10**40}),
        lambda c: c["bytes"].update({"md.0": "many"}),
        lambda c: c["bytes"].pop("md.0"),
        lambda c: c.update(bytes=[1, 2]),
        lambda c: c.update(arrays={}),
        lambda c: c["arrays"].update({"trainset/none": 1}),
        lambda c: c["arrays"].update({"trainset/pos": True}),
        lambda c: c["arrays"].pop("trainset/pos"),
        lambda c: c.update(facts=3),
        lambda c: c.pop("facts"),
    ],
)
def test_seal_with_invalid_content_is_refused_in_one_line(
    damaged: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    rewrite_seal(damaged, change)
    get_refusal_message(damaged)


@pytest.mark.parametrize(
    "text", ["", "{", "[" * 100_000, "1" * 100_000, '{"content": 1, "crc32": 2}', "null", "NaN", '"\\ud800"', "\xff"]
)
def test_malformed_seal_is_rejected_in_one_line(damaged: Path, text: str) -> None:
    (damaged / SEAL).write_text(text, encoding="latin-1")
    assert "harness.json: damaged" in get_refusal_message(damaged)


def test_seal_of_an_older_version_is_recognized(damaged: Path) -> None:
    (damaged / SEAL).write_text('{"bytes": {}, "crc32": {}}')
    assert "written by an older version" in get_refusal_message(damaged)


def test_other_folders_are_rejected(tmp_path: Path) -> None:
    assert "no such BP folder" in get_refusal_message(tmp_path / "none.bp")
    (tmp_path / "file.bp").write_text("hello")
    assert "not a BP folder" in get_refusal_message(tmp_path / "file.bp")
    (tmp_path / "foreign.bp").mkdir()
    (tmp_path / "foreign.bp" / "notes.txt").write_text("hello")
    assert "md.idx is missing" in get_refusal_message(tmp_path / "foreign.bp")
    for name in ("md.idx", "md.0", "data.0"):
        (tmp_path / "foreign.bp" / name).write_bytes(bytes(200))
    get_refusal_message(tmp_path / "foreign.bp")


KILLED_WRITER = """
import os, signal, sys
from pathlib import Path
from harness.reference.storage.adios.writer import BPWriter
from tests.reference.storage.examples import make_example_block
with BPWriter(Path(sys.argv[1]), {"dataset": "a"}) as writer:
    for k in range(3):
        writer.split("trainset").put(make_example_block(3000, k))
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_writer_leaves_no_store(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED_WRITER, str(tmp_path / "a.bp")]
    assert subprocess.run(command, cwd=ROOT, timeout=60, check=False).returncode == -signal.SIGKILL
    assert {p.name for p in tmp_path.iterdir()} == {"a.bp.part", "a.bp.reserve"}
    assert "incomplete" in get_refusal_message(tmp_path / "a.bp.part")
    (tmp_path / "a.bp.part").rename(tmp_path / "b.bp")
    assert "has no finished step" in get_refusal_message(tmp_path / "b.bp")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of 4 MB, or skip the test."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(folder)], check=False)
    if mounted.returncode:
        pytest.skip("a small disk cannot be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


FULL_DISK_WRITER = """
import sys
from pathlib import Path
from harness.reference.storage.adios.writer import BPWriter
from tests.reference.storage.examples import make_example_block
try:
    with BPWriter(Path(sys.argv[1]), {"dataset": "a"}) as writer:
        for k in range(int(sys.argv[2])):
            writer.split("trainset").put(make_example_block(1000, k))
except OSError as error:
    print(error)
"""


@pytest.mark.parametrize(("blocks", "leave"), [(9, 4 << 20), (1, 1_500_000), (1, 0)])
def test_full_disk_raises_one_error_and_leaves_no_store(disk: Path, blocks: int, leave: int) -> None:
    """ADIOS2 itself would end the process with SIGABRT."""
    free_bytes = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    (disk / "filling").write_bytes(b"x" * max(0, free_bytes - leave))
    command = [sys.executable, "-c", FULL_DISK_WRITER, str(disk / "a.bp"), str(blocks)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    assert "No space left on device" in result.stdout
    assert [p.name for p in disk.iterdir()] == ["filling"]


@pytest.mark.parametrize(
    "change", [lambda p: (p / SEAL).write_text("{"), lambda p: (p / "md.idx").write_bytes(bytes(70))]
)
def test_damaged_seals_and_indices_are_rejected(damaged: Path, change: Callable[[Path], object]) -> None:
    change(damaged)
    get_refusal_message(damaged)
