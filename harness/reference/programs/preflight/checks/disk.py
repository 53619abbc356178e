"""Disks: the folder of the case, which all nodes share, and the disk of the node; both return what was written."""

from __future__ import annotations

import os
import platform
import re
import tempfile
import time
from pathlib import Path

from harness.protocol.programs.preflight import Measurement
from harness.reference.programs.preflight.check import CheckContext, Outcome, make_outcome

BLOCK_BYTES = 2**20
BLOCKS = 64
MIN_FREE_GB = 5.0
NETWORK_FILE_SYSTEMS = {"nfs", "nfs4", "lustre", "gpfs", "beegfs", "ceph", "cifs", "dvs", "afs", "fuse.sshfs"}
EXPECTED = f"{BLOCKS} MiB are written, flushed and read back, in the case's folder and on the node's disk"
ADVICE = "Free space or request more quota, or name another folder with `scratch_folder` or `--out`."


class Damaged(Exception):
    """A file does not contain what was written to it."""


def check(context: CheckContext) -> Outcome:
    """Write, flush and read a file in the folder of the case and on the disk of the node."""
    scratch = Path(os.path.expandvars(context.config.scratch_folder or tempfile.gettempdir()))
    problems, measurements, observed = [], [], []
    for title, folder in (("case folder", context.folder), ("node's disk", scratch)):
        kind = find_file_system(folder)
        if folder == scratch and kind in NETWORK_FILE_SYSTEMS:
            problems.append(f"{folder} is on a network file system ({kind})")
        try:
            free_gb = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize / 1e9
            rates = write_and_read(folder / f"preflight-{platform.node()}-{os.getpid()}")
        except (OSError, Damaged) as error:
            problems.append(f"{title} {folder}: {error}")
            continue
        if free_gb < MIN_FREE_GB:
            problems.append(f"{title} {folder}: {free_gb:.1f} GB are free, less than {MIN_FREE_GB:g}")
        observed.append(f"{title} ({kind}, {free_gb:,.0f} GB free)")
        measurements += [
            Measurement(name=f"{title}: {verb}", value=rate, unit="MB/s")
            for verb, rate in zip(("write and flush", "read"), rates, strict=True)
        ]
    return make_outcome(EXPECTED, ", ".join(observed), problems, ADVICE, measurements)


def write_and_read(path: Path) -> tuple[float, float]:
    """Write a file, flush it to the disk, and read it; return the rates of both in MB/s.

    Raises:
        OSError: The file cannot be written or read.
        Damaged: The file does not contain what was written.
    """
    block = os.urandom(BLOCK_BYTES)
    try:
        started = time.perf_counter()
        with path.open("wb") as file:
            for _ in range(BLOCKS):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
            if hasattr(os, "posix_fadvise"):  # so that the file is read from the disk
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        written_s = time.perf_counter() - started
        started = time.perf_counter()
        is_intact = contains_blocks(path, block)
        read_s = time.perf_counter() - started
        if not is_intact:
            raise Damaged("the file does not contain what was written")
    finally:
        path.unlink(missing_ok=True)
    return BLOCKS * BLOCK_BYTES / written_s / 1e6, BLOCKS * BLOCK_BYTES / read_s / 1e6


def contains_blocks(path: Path, block: bytes) -> bool:
    """Read a file, and return whether it contains BLOCKS times the block and nothing else."""
    buffer = bytearray(len(block))
    with path.open("rb") as file:
        n_same = sum(file.readinto(buffer) == len(block) and buffer == block for _ in range(BLOCKS))
        return n_same == BLOCKS and not file.read(1)


def find_file_system(folder: Path, mounts: Path = Path("/proc/mounts")) -> str:
    """Return the kind of the file system of a folder, or `unknown`."""
    path, best = folder.resolve(), ("", "unknown")
    try:
        lines = mounts.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return "unknown"
    for line in lines:
        point, kind = line.split()[1:3]
        point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), point)  # such as \040 for a space
        if path.is_relative_to(point) and len(point) >= len(best[0]):
            best = (point, kind)
    return best[1]
