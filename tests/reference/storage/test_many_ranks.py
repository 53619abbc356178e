"""Ranks read a store together in every mode and width, and all ranks end when one fails."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from harness.reference.storage.adios.writer import BPWriter
from tests.reference.storage.examples import make_example_block, run_ranks

BACKENDS = ["rma", "ddstore"]  # a stand-in replaces ddstore where it is not installed


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    result = tmp_path_factory.mktemp("bp") / "qm9.bp"
    with BPWriter(result, {"dataset": "qm9"}) as writer:
        writer.split("trainset").put(make_example_block(41))
        writer.split("valset").put(make_example_block(3, 1))
    return result


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_ranks_read_the_content_of_the_file(path: Path, ranks: int, backend: str) -> None:
    result = run_ranks(ranks, "ranks_read.py", "all", str(path), backend)
    assert (result.returncode, result.stderr) == (0, "")
    assert sorted(result.stdout.splitlines()) == [f"rank {k} is done" for k in range(ranks)]


@pytest.mark.parametrize("backend", BACKENDS)
def test_there_may_be_more_ranks_than_samples(path: Path, backend: str) -> None:
    result = run_ranks(4, "ranks_read.py", "few", str(path), backend)
    assert (result.returncode, result.stderr) == (0, "")


def list_leftover_shared_memory() -> set[str]:
    """Return segments of 4 MB and more that no process uses; MPICH leaves smaller segments of killed ranks."""
    result = set()
    for file in os.scandir("/dev/shm"):
        with suppress(FileNotFoundError):
            if file.stat().st_size >= 4 << 20:
                result.add(file.name)
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with suppress(OSError):
            text = maps.read_text(errors="replace")
            result -= {name for name in result if f"/dev/shm/{name}" in text}
    return result


def wait_for_readers(path: Path) -> list[int]:
    """Wait up to a minute for processes with this path as argument; return the ids of those that still run."""
    deadline = time.monotonic() + 60
    while True:
        result = [p.pid for p in psutil.process_iter(["cmdline"]) if str(path) in (p.info["cmdline"] or ())]
        if not result or time.monotonic() > deadline:
            return result
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["failing"], "rank 1: RuntimeError: no such luck (ranks_read.py:"),
        (["missing"], "none: no such BP folder"),
        (["killed", "distributed"], ""),
        (["killed", "shared"], ""),
    ],
    ids=["failing", "missing", "killed", "killed shared"],
)
def test_when_one_rank_fails_all_ranks_end_and_no_shared_memory_is_left(
    path: Path, arguments: list[str], message: str
) -> None:
    before, started = list_leftover_shared_memory(), time.monotonic()
    result = run_ranks(2, "ranks_read.py", arguments[0], str(path), *arguments[1:], timeout=120)
    assert time.monotonic() - started < 100
    assert result.returncode != 0
    assert "is done" not in result.stdout
    assert (result.stdout + result.stderr).count(message or "BAD TERMINATION") == 1
    assert "Traceback" not in result.stderr
    assert not wait_for_readers(path)
    assert not list_leftover_shared_memory() - before
