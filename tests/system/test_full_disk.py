"""A disk that fills up during a run causes one error line; no result is lost, and the same command continues later."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from harness.protocol.events import JsonLinesLog, read
from tests.conftest import Harness

SUITE = """\
name: small
title: Small cases
program: data_parallel
parameters:
  {precision: fp32, batch_size: 1, datasets: [mptrj], epochs: 2, steps: 1,
   model: {hidden_dim: 4, num_conv_layers: 1, num_sharedlayers: 0, dim_headlayers: 4}}
matrix: {seed: [1, 2, 3]}
resources: {walltime_minutes: 5}
"""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a disk of 1.5 MB, about twice what the campaign and its report take."""
    with mount_disk(tmp_path / "disk", "1500k") as mount_point:
        yield mount_point


@contextmanager
def mount_disk(mount_point: Path, size: str) -> Iterator[Path]:
    mount_point.mkdir()
    result = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(mount_point)], check=False)
    if result.returncode:
        pytest.skip("a small disk cannot be mounted here")
    try:
        yield mount_point
    finally:
        subprocess.run(["umount", "--lazy", str(mount_point)], check=True)


def fill(disk: Path, bytes_to_leave: int) -> Path:
    """Fill the disk with one file, except for some bytes, and return the file."""
    free_bytes = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    (disk / "filler").write_bytes(b"x" * (free_bytes - bytes_to_leave))
    return disk / "filler"


@pytest.mark.parametrize("bytes_to_leave", [4096, 24576, 40960])
@pytest.mark.slow
def test_campaign_continues_after_a_full_disk(
    harness: Harness, tmp_path: Path, disk: Path, bytes_to_leave: int
) -> None:
    (tmp_path / "small.yaml").write_text(SUITE)
    filler = fill(disk, bytes_to_leave)
    full = harness("run", "small.yaml", "--out", str(disk / "out"))
    assert full.returncode == 3, full.stderr
    assert "Traceback" not in full.stderr
    assert "No space left on device" in full.stderr or "lost" in full.stderr
    filler.unlink()
    rerun = harness("run", "small.yaml", "--out", str(disk / "out"), "--retry")
    assert rerun.returncode == 0, rerun.stderr
    logs = list((disk / "out").glob("runs/*/small-*/events.jsonl"))
    assert len(logs) == 3
    for log in logs:
        assert [e["event"] for e in read(log)].count("start") == 1


def write_many(log: JsonLinesLog) -> None:
    for k in range(1000):
        log.write("sample", text="y" * 100, k=k)


def test_event_that_does_not_fit_on_the_disk_is_an_error_and_damages_no_other_event(disk: Path) -> None:
    log = JsonLinesLog(disk / "events.jsonl")
    log.write("start", case="a")
    filler = fill(disk, 0)
    with pytest.raises(OSError, match="No space left"):
        write_many(log)
    written = [e["k"] for e in read(disk / "events.jsonl") if e["event"] == "sample"]
    filler.unlink()
    log.write("done")
    logged = list(read(disk / "events.jsonl"))
    assert [e["k"] for e in logged if e["event"] == "sample"] == written == list(range(len(written)))
    assert logged[-1]["event"] == "done"


@pytest.mark.parametrize("bytes_to_leave", [200_000, 3_000_000])
def test_conversion_continues_after_a_full_disk(harness: Harness, tmp_path: Path, bytes_to_leave: int) -> None:
    """The disk becomes full while parts are read, or while the store is written."""
    with mount_disk(tmp_path / "disk", "24m") as disk:
        argv = ("data", "convert", "alexandria", "--to", str(disk / "stores"), "--cutoff", "3", "--workers", "1")
        filler = fill(disk, bytes_to_leave)
        full = harness(*argv)
        assert full.returncode == 3, full.stderr
        assert full.stderr.splitlines()[0].startswith("error: [Errno 28] No space left on device")
        assert "run the same command to continue" in full.stderr
        assert "Traceback" not in full.stderr
        filler.unlink()
        rerun = harness(*argv)
        assert rerun.returncode == 0, rerun.stderr
        assert "1,000 structures" in rerun.stdout


@pytest.mark.parametrize(("bytes_to_leave", "attempts_verified"), [(4096, 1), (20_480, 1), (65_536, 2)])
@pytest.mark.slow
def test_screening_continues_after_a_full_disk(tmp_path: Path, bytes_to_leave: int, attempts_verified: int) -> None:
    """The disk becomes full before the first frame, among the frames or in the merge; every candidate counts once."""
    parameters = {
        "workload": {"kind": "prototypes", "elements": ["O", "Na", "Cl", "Fe"]}, "part_size": 256,
        "max_candidates": 4096, "retention": {"mode": "all"}, "energy_only": True, "compile": False,
        "write_interval_s": 0.0,
    }  # fmt: skip
    argv = [sys.executable, "-m", "harness.reference"]
    with mount_disk(tmp_path / "disk", "16m") as disk:
        (disk / "case.json").write_text(json.dumps({"id": "1", "program": "screening", "parameters": parameters}))
        filler = fill(disk, bytes_to_leave)
        full = subprocess.run([*argv, str(disk)], capture_output=True, text=True, check=False)
        assert full.returncode == 1, full.stderr
        assert "No space left on device" in full.stderr
        assert "Traceback" not in full.stderr
        filler.unlink()
        rerun = subprocess.run([*argv, str(disk)], capture_output=True, text=True, check=False)
        assert rerun.returncode == 0, rerun.stderr
        verifications = [e for e in read(disk / "events.jsonl") if e["event"] == "verification"]
        assert len(verifications) == attempts_verified
        assert verifications[-1]["candidates"] == 4096
        assert verifications[-1]["checksum"] == verifications[-1]["expected"]
