"""BP files that are not whole: refused in one line, where ADIOS2 itself hangs, crashes or gives nothing."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness.reference.errors import InputError
from harness.reference.store.bp import BPFile
from harness.reference.store.bp_folder import SEAL
from tests.conftest import ROOT
from tests.reference.store.examples import example_block, write


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("bp") / "qm9.bp", example_block(300))


@pytest.fixture
def damaged(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "copy.bp"))


def refused(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        BPFile(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("sealed", [True, False], ids=["sealed", "foreign"])
@pytest.mark.parametrize("name", ["data.0", "md.0", "md.idx", "mmd.0"])
@pytest.mark.parametrize("keep", [None, 0, 0.5, 0.97])
def test_missing_and_cut_off_files(damaged: Path, name: str, keep: float | None, sealed: bool) -> None:
    if not sealed:
        (damaged / SEAL).unlink()
        if name == "mmd.0" and keep is not None:
            pytest.skip("nothing but the seal tells")
    if keep is None:
        (damaged / name).unlink()
    else:
        os.truncate(damaged / name, int(keep * (damaged / name).stat().st_size))
    refused(damaged)


@pytest.mark.parametrize("name", ["md.0", "md.idx", "mmd.0"])
def test_garbled_metadata(damaged: Path, name: str) -> None:
    content = bytearray((damaged / name).read_bytes())
    content[len(content) // 2] ^= 0xFF
    (damaged / name).write_bytes(content)
    assert "is not as it was written" in refused(damaged)


def test_garbled_data_are_found_by_verify(damaged: Path) -> None:
    with open(damaged / "data.0", "r+b") as handle:
        handle.seek(100_000)
        handle.write(b"\xff" * 100)
    with BPFile(damaged) as file, pytest.raises(InputError, match=r"damaged, trainset/.* is not as it was written"):
        file.verify()


def test_what_is_no_bp_folder(tmp_path: Path) -> None:
    assert "no such BP folder" in refused(tmp_path / "none.bp")
    (tmp_path / "file.bp").write_text("hello")
    assert "not a BP folder" in refused(tmp_path / "file.bp")
    (tmp_path / "foreign.bp").mkdir()
    (tmp_path / "foreign.bp" / "notes.txt").write_text("hello")
    assert "md.idx is missing" in refused(tmp_path / "foreign.bp")
    for name in ("md.idx", "md.0", "data.0"):
        (tmp_path / "foreign.bp" / name).write_bytes(bytes(200))
    refused(tmp_path / "foreign.bp")


KILLED = """
import os, signal, sys
from pathlib import Path
from harness.reference.store.bp import BPWriter
from tests.reference.store.examples import example_block
with BPWriter(Path(sys.argv[1]), {"dataset": "a"}) as writer:
    for k in range(3):
        writer.split("trainset").put(example_block(3000, k))
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_writer_leaves_no_store(tmp_path: Path) -> None:
    words = [sys.executable, "-c", KILLED, str(tmp_path / "a.bp")]
    assert subprocess.run(words, cwd=ROOT, timeout=60, check=False).returncode == -signal.SIGKILL
    assert {p.name for p in tmp_path.iterdir()} == {"a.bp.part", "a.bp.reserve"}
    assert "half-written" in refused(tmp_path / "a.bp.part")
    (tmp_path / "a.bp.part").rename(tmp_path / "b.bp")
    assert "holds no finished step" in refused(tmp_path / "b.bp")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 4 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(place)], check=False)
    if mounted.returncode:
        pytest.skip("a small disk cannot be mounted here")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


FULL = """
import sys
from pathlib import Path
from harness.reference.store.bp import BPWriter
from tests.reference.store.examples import example_block
try:
    with BPWriter(Path(sys.argv[1]), {"dataset": "a"}) as writer:
        for k in range(int(sys.argv[2])):
            writer.split("trainset").put(example_block(1000, k))
except OSError as error:
    print(error)
"""


@pytest.mark.parametrize(("blocks", "leave"), [(9, 4 << 20), (1, 1_500_000), (1, 0)])
def test_a_full_disk_is_one_error_and_leaves_nothing(disk: Path, blocks: int, leave: int) -> None:
    """ADIOS2 alone ends the process with SIGABRT."""
    room = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    (disk / "filling").write_bytes(b"x" * max(0, room - leave))
    words = [sys.executable, "-c", FULL, str(disk / "a.bp"), str(blocks)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "No space left on device" in done.stdout
    assert [p.name for p in disk.iterdir()] == ["filling"]


@pytest.mark.parametrize(
    "change", [lambda p: (p / SEAL).write_text("{"), lambda p: (p / "md.idx").write_bytes(bytes(70))]
)
def test_damaged_seals_and_indices(damaged: Path, change: Callable[[Path], object]) -> None:
    change(damaged)
    refused(damaged)
