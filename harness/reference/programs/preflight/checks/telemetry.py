"""Telemetry: samples arrive from the sampler of the ranks or from Omnistat."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urlencode
from urllib.request import ProxyHandler, build_opener

from harness.reference.profiling.node_sampler import BUFFER_S, FOLDER_VARIABLE, INTERVAL_VARIABLE
from harness.reference.programs.preflight.check import CheckContext, Outcome, make_outcome, make_unchecked
from harness.reference.programs.preflight.job_script import JOB_SCRIPT

EXPECTED = "samples of this node"
OMNISTAT_COMMENT = "# Telemetry by Omnistat"
SERVER_VARIABLE = "server"  # which the job script exports
RECENT_S = 300.0  # the age of samples at a server that count
SERVER_WAIT_S, MARGIN_S = 30.0, 5.0
ADVICE = "See `telemetry` in the system's file; without telemetry, the report only lacks the energy."
GPU_METRIC = "harness_gpu_"


def check(context: CheckContext) -> Outcome:
    """Look for samples by the collector that the job script starts."""
    uses_omnistat = starts_omnistat(context.case_folder)
    if os.environ.get(INTERVAL_VARIABLE):
        interval_s = float(os.environ[INTERVAL_VARIABLE])
        folder = Path(os.environ.get(FOLDER_VARIABLE, context.case_folder / "telemetry"))
        path = folder / f"{platform.node()}-{context.rank_info.local_rank}.jsonl"
        limit_s = BUFFER_S + 2 * interval_s + MARGIN_S
        metrics = wait_for(lambda: read_metrics(path), limit_s)
        problems = [] if metrics else [f"{path.name} has no sample after {limit_s:.0f} s"]
        if uses_omnistat:
            problems.append("Omnistat did not start, so the ranks sample their nodes themselves")
        if metrics and context.config.device == "cuda" and not any(name.startswith(GPU_METRIC) for name in metrics):
            problems.append("there are no samples of the GPU (is nvidia-ml-py installed?)")
        return make_outcome(EXPECTED, f"{len(metrics)} metrics by the sampler of the ranks", problems, ADVICE)
    if uses_omnistat and os.environ.get(SERVER_VARIABLE):
        server = os.environ[SERVER_VARIABLE]
        metrics = wait_for(lambda: query_server(server), SERVER_WAIT_S)
        problems = [] if metrics else [f"no sample reached {server} in the last {RECENT_S:.0f} s"]
        return make_outcome(EXPECTED, f"{len(metrics)} metrics by Omnistat", problems, ADVICE)
    return make_unchecked(
        EXPECTED, "the job measures no telemetry", "Submit with `-S telemetry=sampler` to measure it."
    )


def starts_omnistat(case_folder: Path) -> bool:
    """Return whether the job script starts Omnistat."""
    path = case_folder / JOB_SCRIPT
    return path.exists() and OMNISTAT_COMMENT in path.read_text(encoding="utf-8", errors="replace")


def wait_for(read: Callable[[], set[str]], limit_s: float) -> set[str]:
    """Call a function until its result is not empty, and return that; an empty set after a time limit."""
    deadline = time.monotonic() + limit_s
    while not (metrics := read()) and time.monotonic() < deadline:
        time.sleep(0.5)
    return metrics


def read_metrics(path: Path) -> set[str]:
    """Return the names of the metrics with samples in a file; none if there is no file."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return set()
    return parse_metrics(lines)


def query_server(server: str) -> set[str]:
    """Return the names of the metrics that Omnistat's server has received recently; none if it does not answer."""
    query = urlencode({"match[]": '{__name__=~"omnistat.*|rocm.*"}', "start": f"{time.time() - RECENT_S:.0f}"})
    try:
        with build_opener(ProxyHandler({})).open(f"{server}/api/v1/export?{query}", timeout=10.0) as answer:
            return parse_metrics(answer.read(1 << 22).decode("utf-8", "replace").splitlines())
    except (OSError, ValueError, HTTPException):
        return set()


def parse_metrics(lines: list[str]) -> set[str]:
    """Return the names of the metrics with values among the lines of an export."""
    names = set()
    for line in lines:
        try:
            row = json.loads(line)
            if row["values"]:
                names.add(str(row["metric"]["__name__"]))
        except (ValueError, KeyError, TypeError):
            continue
    return names
