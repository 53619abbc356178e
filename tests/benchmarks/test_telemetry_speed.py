"""A large telemetry export is imported quickly and in constant memory."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.telemetry.exports import Recording

POWER = "rocm_average_socket_power_watts"


@pytest.mark.slow
def test_large_export_is_imported_in_constant_memory(tmp_path: Path) -> None:
    """The export has 16 nodes with 8 GPUs and 15 minutes of samples; 700 MB may take a minute and 500 MB of memory."""
    metrics = [POWER, "rocm_utilization_percentage", "rocm_vram_used_percentage", "rocm_temperature_celsius"]
    values = [(float(t), 300.0 + t % 7) for t in range(900)]
    path = tmp_path / "job.jsonl"
    with path.open("w") as out:
        for node in range(16):
            export = Recording()
            for card in range(8):
                for name in [*metrics, *(f"rocm_unknown_{k}" for k in range(4))]:
                    export.add(name, f"n{node}", values, card=str(card))
                for k in range(6):
                    counter = f"MFMA_MOPS_F{16 * 2 ** (k % 3)}"
                    export.add(
                        "omnistat_hardware_counter", f"n{node}", values, card=str(card), name=counter, source=str(k)
                    )
            out.writelines(f"{text}\n" for text in export.format_lines())
    script = (
        "import sys; from harness.cli.main import main\n"
        "code = main(['collect', '--format', 'omnistat', sys.argv[1], '--out', sys.argv[2], '-q'])\n"
        # VmHWM is the peak of this process; getrusage includes the memory of the process that forked it
        "print(code, next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))\n"
    )
    started = time.monotonic()
    result = subprocess.run(
        [sys.executable, "-c", script, str(path), str(tmp_path / "out")],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    seconds, megabytes = time.monotonic() - started, path.stat().st_size / 1e6
    code, memory_kb = map(int, result.stdout.split()[-2:])
    assert code == 0
    assert memory_kb < 500e3
    assert seconds < 60 * megabytes / 700 + 20, f"{megabytes:.0f} MB in {seconds:.1f} s"
