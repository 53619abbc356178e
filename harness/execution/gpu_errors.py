"""GPU hardware errors in the output of programs, and the nodes on which they occurred."""

from __future__ import annotations

import re
import time
from pathlib import Path

from harness.execution.schedulers.base import JOBS_FOLDER
from harness.protocol.text import sanitize_line

# Lines of the drivers' kernel messages and of the runtime libraries, as one pattern for both `re` and `grep -E`. Errors
# that a program can cause by itself, such as an illegal memory access (Xid 13 and 31), are not among them.
GPU_ERRORS = "|".join(
    (
        # NVIDIA: double-bit errors, halts, failed remapping, links, lost GPUs, contained and uncontained errors, GSP
        # (https://docs.nvidia.com/deploy/xid-errors)
        r"NVRM: Xid [(][^)]*[)]: (48|6[124]|74|79|9[45]|110|119|12[013]|14[03-9]|150)($|[^0-9])",
        r"fallen off the bus",
        r"uncorrectable (ECC|NVLink) error",
        # AMD: the reports of its RAS feature, and resets
        r"amdgpu.*([1-9][0-9]* (new )?uncorrectable hardware errors|RAS poison|GPU reset begin)",
        r"HW Exception by GPU node",
        # Intel: resets by its drivers i915 and xe, and the error that programs get
        r"i915 .*(GPU HANG|Resetting chip)",
        r"xe .*(declared device .* as wedged|GT[0-9]+: reset (started|failed))",
        r"(UR|ZE)_RESULT_ERROR_DEVICE_LOST",
    )
)
# Job scripts append lines `NODE MESSAGE` to this file in the folder of jobs. The nodes are not used until the file has
# not changed for a day.
FAULTY_NODES_FILE = "faulty_nodes"
EXCLUSION_S = 24 * 3600  # an integer, since bash compares it
TAIL_BYTES = 1 << 16  # of stderr, in which errors are searched


def find_gpu_error(stderr: Path) -> str:
    """Return the first GPU error at the end of a case's stderr, or an empty string."""
    try:
        with stderr.open("rb") as handle:
            handle.seek(max(0, stderr.stat().st_size - TAIL_BYTES))
            lines = handle.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    return next((sanitize_line(line.strip()) for line in lines if re.search(GPU_ERRORS, line)), "")


def read_faulty_nodes(campaign: Path) -> list[str]:
    """Return the names of the nodes that jobs of the campaign must not use."""
    path = campaign / JOBS_FOLDER / FAULTY_NODES_FILE
    try:
        if time.time() - path.stat().st_mtime > EXCLUSION_S:
            return []
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    return list(dict.fromkeys(name for line in lines if re.fullmatch(r"[\w.-]+", name := line.split(" ")[0])))
