"""A disk that fills up under a campaign: told in one line, nothing lost, and carried on once there is room."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from harness.protocol.events import EventLog, read
from tests.conftest import Harness

SUITE = """\
name: small
title: Small cases
program: data_parallel
parameters:
  {precision: fp32, batch_size: 1, sets: [mptrj], epochs: 2, steps: 1,
   model: {hidden_dim: 4, num_conv_layers: 1, num_sharedlayers: 0, dim_headlayers: 4}}
matrix: {seed: [1, 2, 3]}
resources: {minutes: 5}
"""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 400 kB."""
    with mounted(tmp_path / "disk", "400k") as place:
        yield place


@contextmanager
def mounted(place: Path, size: str) -> Iterator[Path]:
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(place)], check=False)
    if done.returncode:
        pytest.skip("a small disk cannot be mounted here")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(disk: Path, leave: int) -> Path:
    room = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    (disk / "filling").write_bytes(b"x" * (room - leave))
    return disk / "filling"


@pytest.mark.parametrize("leave", [4096, 24576, 40960])
def test_a_campaign_goes_on_when_there_is_room_again(harness: Harness, tmp_path: Path, disk: Path, leave: int) -> None:
    (tmp_path / "small.yaml").write_text(SUITE)
    filling = fill(disk, leave)
    full = harness("run", "small.yaml", "--out", str(disk / "out"))
    assert full.returncode == 3, full.stderr
    assert "Traceback" not in full.stderr
    assert "No space left on device" in full.stderr or "lost" in full.stderr
    filling.unlink()
    again = harness("run", "small.yaml", "--out", str(disk / "out"), "--retry")
    assert again.returncode == 0, again.stderr
    for log in (disk / "out").glob("runs/*/small-*/events.jsonl"):
        assert [e["event"] for e in read(log)].count("start") == 1


def write_many(log: EventLog) -> None:
    for k in range(1000):
        log.write("sample", text="y" * 100, k=k)


def test_an_event_that_does_not_fit_is_an_error_and_spoils_no_other(disk: Path) -> None:
    log = EventLog(disk / "events.jsonl")
    log.write("start", case="a")
    filling = fill(disk, 0)
    with pytest.raises(OSError, match="No space left"):
        write_many(log)
    kept = [e["k"] for e in read(disk / "events.jsonl") if e["event"] == "sample"]
    filling.unlink()
    log.write("done")
    found = list(read(disk / "events.jsonl"))
    assert [e["k"] for e in found if e["event"] == "sample"] == kept == list(range(len(kept)))
    assert found[-1]["event"] == "done"


@pytest.mark.parametrize("leave", [200_000, 3_000_000])
def test_a_conversion_goes_on_when_there_is_room_again(harness: Harness, tmp_path: Path, leave: int) -> None:
    """Full while parts are read, and while the store is written."""
    with mounted(tmp_path / "disk", "24m") as disk:
        words = ("data", "convert", "alexandria", "--to", str(disk / "stores"), "--cutoff", "3", "--workers", "1")
        filling = fill(disk, leave)
        full = harness(*words)
        assert full.returncode == 3, full.stderr
        assert full.stderr.splitlines()[0].startswith("error: [Errno 28] No space left on device")
        assert "the same command carries on" in full.stderr
        assert "Traceback" not in full.stderr
        filling.unlink()
        again = harness(*words)
        assert again.returncode == 0, again.stderr
        assert "1,000 structures" in again.stdout


@pytest.mark.parametrize("leave", [200_000, 1_400_000])
def test_a_screening_goes_on_when_there_is_room_again(tmp_path: Path, leave: int) -> None:
    """Full before the first segment and after some: what is there is kept, and no candidate is taken twice."""
    asked = {
        "workload": {"kind": "prototypes", "elements": ["O", "Na", "Cl", "Fe"]}, "part": 256,
        "candidates": 4096, "keep": {"what": "all"}, "energy_only": True, "compile": False, "commit_s": 0.0,
    }  # fmt: skip
    words = [sys.executable, "-m", "harness.reference"]
    with mounted(tmp_path / "disk", "16m") as disk:
        (disk / "case.json").write_text(json.dumps({"id": "1", "program": "screening", "parameters": asked}))
        filling = fill(disk, leave)
        full = subprocess.run([*words, str(disk)], capture_output=True, text=True, check=False)
        assert full.returncode == 1, full.stderr
        assert "No space left on device" in full.stderr
        assert "Traceback" not in full.stderr
        filling.unlink()
        again = subprocess.run([*words, str(disk)], capture_output=True, text=True, check=False)
        assert again.returncode == 0, again.stderr
        (proof,) = [e for e in read(disk / "events.jsonl") if e["event"] == "proof"]
        assert proof["candidates"] == 4096
        assert proof["checksum"] == proof["expected"]
