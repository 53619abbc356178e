"""Errors of GPUs are recognized in the output of programs, and errors that programs cause themselves are not."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from harness.execution.gpu_errors import GPU_ERRORS, find_gpu_error, read_faulty_nodes

ERRORS = (
    "3: NVRM: Xid (PCI:0000:44:00): 79, GPU has fallen off the bus.",
    "[74785.1] NVRM: Xid (PCI:0000:02:00): 48, pid=1, DBE (double bit error)",
    "NVRM: Xid (PCI:0000:02:00): 95",
    "NVRM: fallen off the bus and is not responding to commands.",
    "RuntimeError: CUDA error: uncorrectable ECC error encountered",
    "amdgpu 0000:c1:00.0: amdgpu: 1 uncorrectable hardware errors detected in umc block",
    "amdgpu 0000:c3:00.0: amdgpu: GPU reset begin!",
    "HW Exception by GPU node-4 (Agent handle: 0x2) reason :GPU Hang",
    "i915 0000:00:02.0: [drm] Resetting chip for stopped heartbeat on rcs0",
    "xe 0000:00:02.0: [drm] *ERROR* CRITICAL: Xe has declared device 0000:00:02.0 as wedged.",
    "UR error: UR_RESULT_ERROR_DEVICE_LOST",
)
OTHERS = (
    "NVRM: Xid (PCI:0000:02:00): 13, Graphics Engine Exception",
    "NVRM: Xid (PCI:0000:02:00): 31, MMU Fault",
    "NVRM: Xid (PCI:0000:02:00): 480",
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB",
    "RuntimeError: CUDA error: an illegal memory access was encountered",
    "amdgpu 0000:c1:00.0: amdgpu: 0 uncorrectable hardware errors detected in umc block",
    "error: no shipped set 'nowhere'",
)


@pytest.mark.parametrize("line", [*ERRORS, *OTHERS])
def test_harness_and_job_script_recognize_the_same_lines(line: str, tmp_path: Path) -> None:
    stderr = tmp_path / "stderr"
    stderr.write_text(f"one line\n{line}\nerror: the last line\n")
    grep = subprocess.run(
        ["grep", "-aEm", "1", "-e", GPU_ERRORS, str(stderr)], capture_output=True, text=True, check=False
    )
    expected = line if line in ERRORS else ""
    assert find_gpu_error(stderr) == grep.stdout.strip() == expected


def test_file_without_text_is_no_error(tmp_path: Path) -> None:
    assert find_gpu_error(tmp_path / "absent") == ""
    (tmp_path / "stderr").write_bytes(b"\xff\xfe\x00")
    assert find_gpu_error(tmp_path / "stderr") == ""


def test_faulty_nodes_are_excluded_for_a_day(tmp_path: Path) -> None:
    assert read_faulty_nodes(tmp_path) == []
    (tmp_path / "jobs").mkdir()
    file = tmp_path / "jobs" / "faulty_nodes"
    file.write_text("n2 NVRM: Xid\nn3 Xid\nn2 again\n--nodes=$(x)\n")
    assert read_faulty_nodes(tmp_path) == ["n2", "n3"]
    os.utime(file, (0, time.time() - 90_000))
    assert read_faulty_nodes(tmp_path) == []
