"""A run on 9,400 nodes (75,200 ranks) is collected and reported in linear time and bounded memory."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.support.large_run import make_large_run

SMALL, LARGE = 940, 9400
MAX_EXPONENT = 1.2  # of the CPU time in the number of nodes
MAX_SECONDS, MAX_KB = 120.0, 2e6
SCRIPT = """
import json, sys, time
from harness.execution.case_files import read_last_progress, read_result
from harness.experiments.scaling.metrics import build_tables
from harness.results.runs import load_run_folder
from harness.telemetry.collect import collect_usage
from pathlib import Path
folder, seconds = sys.argv[1], {}
def run(name, work):
    start = time.process_time()
    work()
    seconds[name] = time.process_time() - start
run("status", lambda: read_last_progress(Path(folder)))
run("collect", lambda: read_result(Path(folder)))
run("report", lambda: build_tables([load_run_folder(folder)]))
run("telemetry", lambda: collect_usage([load_run_folder(folder)]))
# VmHWM is the peak of this process; getrusage includes the memory of the process that forked it
peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps([seconds, int(peak)]))
"""


@pytest.mark.slow
def test_run_on_9400_nodes_is_reported_in_linear_time(tmp_path: Path) -> None:
    results = []
    for nodes in (SMALL, LARGE):
        folder = make_large_run(tmp_path / str(nodes), nodes)
        result = subprocess.run(
            [sys.executable, "-c", SCRIPT, str(folder)], cwd=ROOT, capture_output=True, text=True, check=True
        )
        results.append(json.loads(result.stdout))
        print(nodes, results[-1])
    (small, _), (large, peak_kb) = results
    assert sum(large.values()) < MAX_SECONDS
    assert peak_kb < MAX_KB
    exponent = math.log(sum(large.values()) / sum(small.values())) / math.log(LARGE / SMALL)
    assert exponent < MAX_EXPONENT
