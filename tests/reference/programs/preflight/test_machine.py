"""Checks of packages, devices, communication, disks, locks, stores and telemetry fail when their fault is planted."""

from __future__ import annotations

import json
import os
import platform
import resource
from collections.abc import Callable
from contextlib import nullcontext
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed as dist

from harness.protocol.programs.preflight import Measurement
from harness.reference.errors import InputError
from harness.reference.profiling import node_sampler
from harness.reference.programs.preflight.check import Outcome
from harness.reference.programs.preflight.checks import (
    adios2,
    devices,
    disk,
    distributed,
    limits,
    locks,
    packages,
    telemetry,
)
from harness.reference.storage.adios.reader import BPFile
from tests.reference.programs.preflight.contexts import make_context


def test_packages_that_are_missing_old_or_broken_are_named(tmp_path: Path) -> None:
    assert packages.find_problem("no-such-package", "1") == "no-such-package is not installed"
    version = packages.get_version("numpy")
    assert packages.find_problem("numpy", f"{version}.0.0") is None
    assert packages.find_problem("numpy", "99.0") == f"numpy {version} is older than 99.0"
    assert packages.find_problem("numpy", "1.26") is None
    assert packages.find_broken_imports(["no_such_module"]) == [
        "no_such_module cannot be imported (No module named 'no_such_module')"
    ]
    assert packages.parse_version("2.13.0+rocm7.1") == (2, 13)
    assert {"torch", "adios2", "numpy"} <= packages.list_requirements().keys()
    (tmp_path / "constraints.txt").write_text(
        '# pip freeze\nuvloop==0.22.1; platform_system == "Linux"\nnumpy==2.4.0\n'
    )
    assert packages.read_constraints(tmp_path / "constraints.txt") == {"uvloop": "0.22.1", "numpy": "2.4.0"}
    assert "mypy" not in packages.list_requirements()


def test_low_limits_are_failures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert limits.find_low_limits({"open files": 1024, "KiB of addresses": resource.RLIM_INFINITY}) == []
    assert limits.find_low_limits({"open files": 48}) == [
        "the limit is 48 open files (ulimit -n), expected at least 1,024"
    ]
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (limits.MIB if kind == resource.RLIMIT_MEMLOCK else -1, -1))
    assert limits.check(make_context(tmp_path)).finding.verdict == "ok"
    assert (
        "1,024 KiB of locked memory (ulimit -l), expected at least 65,536"
        in limits.check(make_context(tmp_path, backend="nccl")).finding.observed
    )
    monkeypatch.setattr(limits, "SHARED_MEMORY", tmp_path / "shm")
    finding = limits.check(make_context(tmp_path)).finding
    assert (finding.verdict, finding.observed) == ("failed", f"{tmp_path}/shm does not exist, expected at least 64 MiB")
    monkeypatch.setattr(limits, "get_free_mib", lambda _: 0)
    assert "shm has 0 MiB free" in limits.check(make_context(tmp_path)).finding.observed


def test_node_with_another_environment_is_a_failure(tmp_path: Path) -> None:
    context = make_context(tmp_path)
    first, same, other = (packages.check(context) for _ in range(3))
    assert packages.judge(context, {0: first, 2: same}).verdict == first.finding.verdict == "ok"
    other.versions |= {"torch": "2.0"}
    del other.versions["numpy"]
    finding = packages.judge(context, {0: first, 2: same, 4: other})
    assert finding.verdict == "failed"
    numpy, torch_version = (packages.get_version(name) for name in ("numpy", "torch"))
    assert finding.observed == (
        f"numpy is absent on the node of rank 4, and {numpy} on that of rank 0;"
        f" torch is 2.0 on the node of rank 4, and {torch_version} on that of rank 0"
    )


def test_code_of_the_harness_is_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "harness").mkdir()
    monkeypatch.setattr(packages.harness, "__file__", str(tmp_path / "harness" / "__init__.py"))
    digests = set()
    for text in ("a = 1", "a = 2"):
        (tmp_path / "harness" / "module.py").write_text(text)
        digests.add(packages.compute_digest())
    assert len(digests) == 2


def test_device_that_is_absent_or_computes_wrongly_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert devices.check(make_context(tmp_path)).finding.verdict == "ok"
    assert "torch computes on the CPU" in devices.check(make_context(tmp_path, accelerators=8)).finding.observed
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="none is visible"):
            devices.check(make_context(tmp_path, device="cuda"))
    monkeypatch.setattr(devices, "computes_product", lambda device: False)
    assert devices.check(make_context(tmp_path)).finding.verdict == "failed"


def test_right_sums_are_in_order(tmp_path: Path) -> None:
    assert distributed.check(make_context(tmp_path)).finding.verdict == "ok"


def test_wrong_sum_and_wrong_backend_are_failures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="backend 'nccl' needs device 'cuda'"):
        distributed.check(make_context(tmp_path, backend="nccl"))
    with monkeypatch.context() as patch:
        patch.setattr(dist, "get_backend", lambda: "mpi")
        finding = distributed.check(make_context(tmp_path)).finding
        assert "torch chose the backend mpi, not gloo" in finding.observed
    monkeypatch.setattr(dist, "all_reduce", lambda values, *_: values.add_(1e-3))
    finding = distributed.check(make_context(tmp_path)).finding
    assert finding.verdict == "failed"
    assert "the sum of 1 numbers of type torch.float32 over the ranks is wrong" in finding.observed


def test_clock_that_is_wrong_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert distributed.find_clock_differences([("a", 100.0), ("a", 101.0), ("b", 102.0)]) == []
    problems = distributed.find_clock_differences([("a", 100.0), ("b", 400.0), ("b", 400.5), ("c", 40.0)])
    assert sorted(problems) == [
        "the clock of b differs by +300 s from that of a", "the clock of c differs by -60 s from that of a",
    ]  # fmt: skip
    monkeypatch.setattr(distributed, "find_clock_differences", lambda _: problems)
    finding = distributed.check(make_context(tmp_path)).finding
    assert finding.verdict == "failed"
    assert finding.advice == distributed.CLOCK_ADVICE


def test_slow_network_is_a_failure() -> None:
    slow, fast = (Measurement(name="sum", value=v, unit="GB/s", reference=100.0) for v in (2.0, 60.0))
    assert distributed.find_slow([slow, fast]) == ["sum: 2 GB/s, less than 10% of 100"]


def test_disk_that_is_full_or_lies_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "BLOCKS", 1)
    assert disk.check(make_context(tmp_path)).finding.verdict == "ok"
    full = Path("/dev/full")
    if full.exists():
        monkeypatch.setattr(Path, "unlink", lambda path, **_: None)
        with pytest.raises(OSError, match="No space left on device"):
            disk.write_and_read(full)
    monkeypatch.undo()
    monkeypatch.setattr(disk, "BLOCKS", 1)
    assert not disk.contains_blocks(Path("/dev/null"), b"block")
    monkeypatch.setattr(os, "fsync", lambda _: next(tmp_path.glob("preflight-*")).write_bytes(b"other"))
    finding = disk.check(make_context(tmp_path, scratch_folder=str(tmp_path))).finding
    assert finding.verdict == "failed"
    assert "the file does not contain what was written" in finding.observed


def test_absent_and_remote_scratch_folders_are_failures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "BLOCKS", 1)
    observed = disk.check(make_context(tmp_path, scratch_folder=str(tmp_path / "absent"))).finding.observed
    assert "No such file or directory" in observed
    mounts = tmp_path / "mounts"
    mounts.write_text(f"/dev/sda / ext4 rw 0 0\nserver:/x {tmp_path} nfs4 rw 0 0\n")
    assert disk.find_file_system(tmp_path / "a", mounts) == "nfs4"
    assert disk.find_file_system(Path("/usr"), mounts) == "ext4"
    (tmp_path / "a b").mkdir()
    mounts.write_text(f"/dev/sda / ext4 rw 0 0\nserver:/x {tmp_path}/a\\040b lustre rw 0 0\n")
    assert disk.find_file_system(tmp_path / "a b", mounts) == "lustre"


def run_two_ranks(check: Callable[..., Outcome], folder: Path) -> dict[int, Outcome]:
    """Call a check in two processes at once."""
    with get_context("fork").Pool(2) as pool:
        results = [pool.apply_async(check, [make_context(folder, rank, 2)]) for rank in range(2)]
        return {rank: result.get(60) for rank, result in enumerate(results)}


@pytest.mark.parametrize("works", [True, False], ids=["locks", "no locks"])
def test_lost_additions_show_that_locks_do_not_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, works: bool
) -> None:
    if not works:
        monkeypatch.setattr(locks, "hold_lock", lambda path: nullcontext())
    outcomes = run_two_ranks(locks.check, tmp_path)
    finding = locks.judge(make_context(tmp_path, 0, 2), outcomes)
    assert finding.verdict == ("ok" if works else "failed")
    assert ("40 of 40 additions" in finding.observed) == works


def test_folder_that_nodes_do_not_share_is_named(tmp_path: Path) -> None:
    context = make_context(tmp_path, 0, 2)
    outcomes = run_two_ranks(locks.check, tmp_path)
    path = locks.get_number_path(context)
    path.write_text("20")
    locks.get_mark_path(path, 1).unlink()
    finding = locks.judge(context, outcomes)
    assert finding.verdict == "failed"
    assert "files of ranks 1 do not appear in" in finding.observed
    assert finding.advice == locks.SHARE_ADVICE


def test_lock_that_can_be_taken_twice_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert locks.check(make_context(tmp_path)).finding.verdict == "ok"
    monkeypatch.setattr(locks, "hold_lock", lambda path: nullcontext())
    assert locks.check(make_context(tmp_path)).finding.verdict == "failed"


def test_store_that_returns_its_data_is_ok(tmp_path: Path) -> None:
    finding = adios2.check(make_context(tmp_path)).finding
    assert finding.verdict == "ok", finding.observed


def test_store_that_lies_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = BPFile.columns

    def shift_by_one(file: BPFile, split: str, first: int, stop: int, keys: Any = None) -> Any:
        if (first, stop) == (0, adios2.STRUCTURES):
            first, stop = 1, adios2.STRUCTURES
        return read(file, split, first, stop, keys)

    monkeypatch.setattr(BPFile, "columns", shift_by_one)
    observed = adios2.check(make_context(tmp_path)).finding.observed
    assert "the structures that are read at once differ" in observed


def test_reader_that_does_not_verify_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BPFile, "_verifier", lambda file, array: None)
    observed = adios2.check(make_context(tmp_path)).finding.observed
    assert "an inverted byte of the store is not detected" in observed


@pytest.fixture
def sampled_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the telemetry folder of a job whose ranks sample every 0.05 s."""
    folder = tmp_path / "telemetry"
    monkeypatch.setenv(node_sampler.INTERVAL_VARIABLE, "0.05")
    monkeypatch.setenv(node_sampler.FOLDER_VARIABLE, str(folder))
    monkeypatch.setattr(telemetry, "BUFFER_S", -4.0)
    return folder


def test_number_of_an_earlier_run_is_not_counted(tmp_path: Path) -> None:
    (tmp_path / "number-1").write_text("7")
    outcomes = run_two_ranks(locks.check, tmp_path)
    assert locks.judge(make_context(tmp_path, 0, 2), outcomes).verdict == "ok"


def test_telemetry_that_is_absent_is_a_failure(tmp_path: Path, sampled_folder: Path) -> None:
    finding = telemetry.check(make_context(tmp_path)).finding
    assert finding.verdict == "failed"
    assert "has no sample" in finding.observed


def test_telemetry_that_arrives_is_ok(tmp_path: Path, sampled_folder: Path) -> None:
    sampled_folder.mkdir()
    row = {"metric": {"__name__": "omnistat_host_mem_total_bytes"}, "values": [1.0], "timestamps": [1]}
    (sampled_folder / f"{platform.node()}-0.jsonl").write_text(json.dumps(row) + "\n")
    assert telemetry.check(make_context(tmp_path)).finding.verdict == "ok"
    (tmp_path / "job.sh").write_text("# Telemetry by Omnistat, whose output is in $telemetry.log.\n")
    assert "Omnistat did not start" in telemetry.check(make_context(tmp_path)).finding.observed


def test_telemetry_server_without_samples_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "job.sh").write_text("# Telemetry by Omnistat, whose output is in $telemetry.log.\n")
    monkeypatch.delenv(node_sampler.INTERVAL_VARIABLE, raising=False)
    monkeypatch.setenv(telemetry.SERVER_VARIABLE, "http://127.0.0.1:9")
    monkeypatch.setattr(telemetry, "wait_for", lambda read, limit_s: read())
    assert "no sample reached http://127.0.0.1:9" in telemetry.check(make_context(tmp_path)).finding.observed


def test_job_without_telemetry_is_not_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(node_sampler.INTERVAL_VARIABLE, raising=False)
    assert telemetry.check(make_context(tmp_path)).finding.verdict == "not checked"
