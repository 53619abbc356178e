"""If Omnistat does not start in a job, its ranks sample their nodes, and samples of other jobs are not used."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from harness.drills.ports import find_free_ports
from tests.conftest import require_program
from tests.execution.test_run_case import ScriptedJob, make_job
from tests.telemetry.test_job import FAKE_OMNISTAT

SYSTEM = """\
telemetry: {{collector: omnistat, interval_s: "1", omnistat: '"{tools}/omnistat-$tool"', config: "{config}"}}
"""
CONFIG = "[omnistat.collectors]\nenable_rms = True\nport = 8001\n\n[omnistat.usermode]\nport = 17\n"
WRITE_ENVIRONMENT = 'echo "sampler=${GFM_HARNESS_SAMPLER_S:-} fom_url=${GFM_HARNESS_FOM_URL:-}" > environment'


@pytest.fixture
def ports(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[int, int]:
    """Return free ports for Omnistat's server and for its endpoint of figures of merit."""
    server, fom = find_free_ports(), find_free_ports()
    monkeypatch.setenv("OMNISTAT_SERVER", f"http://127.0.0.1:{server}")
    monkeypatch.setenv("OMNISTAT_FOM", f"http://127.0.0.1:{fom}/fom")
    monkeypatch.setenv("FAKE_OMNISTAT_HOME", str(tmp_path / "server"))
    return server, fom


@pytest.fixture
def job(tmp_path: Path, ports: tuple[int, int]) -> ScriptedJob:
    """Return a job of three cases with the fake Omnistat; each case writes the telemetry variables of its ranks."""
    tools = tmp_path / "omnistat"
    tools.mkdir()
    for tool in ("usermode", "annotate", "query"):
        write_tool(tools, tool, f'exec {sys.executable} {FAKE_OMNISTAT} {tool} "$@"')
    (tmp_path / "config").write_text(CONFIG)
    job = make_job(tmp_path, "local", system=SYSTEM.format(tools=tools, config=tmp_path / "config"))
    for k in range(3):
        job.set_action(k, WRITE_ENVIRONMENT)
    return job


def write_tool(folder: Path, tool: str, line: str) -> None:
    script = folder / f"omnistat-{tool}"
    script.write_text(f"#!/bin/sh\n{line}\n")
    script.chmod(0o755)


def read_rank_environments(job: ScriptedJob) -> set[str]:
    return {(case / "environment").read_text().strip() for case in job.cases}


@contextlib.contextmanager
def occupy_port(port: int, *, answers: bool) -> Iterator[None]:
    """Occupy a port with a server that answers every request with nonsense or, unless `answers`, with nothing."""

    class NonsenseHandler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>OK</html>")

        do_POST = do_GET

        def log_message(self, *arguments: object) -> None:
            """Suppress the log of requests."""

    if answers:
        server = HTTPServer(("127.0.0.1", port), NonsenseHandler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield
        server.shutdown()
        server.server_close()
    else:
        with socket.create_server(("127.0.0.1", port)):
            yield


@contextlib.contextmanager
def run_server_of_another_job(port: int, folder: Path) -> Iterator[None]:
    """Run the server of another job, with samples of that job only."""
    process = subprocess.Popen(
        ["victoria-metrics", f"-httpListenAddr=127.0.0.1:{port}", f"-storageDataPath={folder}"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        for _ in range(300):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).close()
                break
            time.sleep(0.1)
        now = round(1e3 * time.time())
        other = {"metric": {"__name__": "rmsjob_info", "instance": "other", "jobid": "99"}, "values": [1] * 100,
                 "timestamps": [now + 1000 * k for k in range(100)]}  # fmt: skip
        request = urllib.request.Request(f"http://127.0.0.1:{port}/api/v1/import", json.dumps(other).encode())
        urllib.request.urlopen(request, timeout=5).close()
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


@pytest.mark.slow
def test_job_waits_for_samples_and_the_ranks_do_not_sample(
    job: ScriptedJob, tmp_path: Path, ports: tuple[int, int]
) -> None:
    require_program("victoria-metrics")
    job.environment.pop("USER", None)
    result = job.run()
    assert (result.returncode, job.exit_codes) == (0, ["0"] * 3), result.stderr
    assert read_rank_environments(job) == {f"sampler= fom_url=http://127.0.0.1:{ports[1]}/fom"}
    assert "warning" not in result.stderr
    calls = [line.split() for line in (tmp_path / "calls").read_text().splitlines()]
    start = next(call for call in calls if call[:2] == ["usermode", "--start"])
    # the interval is in minutes, and Omnistat rejects values below 1
    assert start[start.index("--pushinterval") + 1] == "1"
    environment = json.loads((tmp_path / "server/environment").read_text())
    assert environment["USER"]
    # the folder belongs to one job only
    assert environment["OMNISTAT_VICTORIA_DATADIR"].startswith(f"{job.script.parent}/{job.script.stem}.")
    assert environment["OMNISTAT_VICTORIA_DATADIR"].endswith(f"data-{job.script.stem}")
    export = next(job.script.parent.glob("*.omnistat.jsonl")).read_text()
    assert "rocm_average_socket_power_watts" in export
    assert not Path(environment["OMNISTAT_VICTORIA_DATADIR"]).exists()


@pytest.mark.slow
def test_each_job_uses_its_own_port_for_exporters(job: ScriptedJob, tmp_path: Path) -> None:
    require_program("victoria-metrics")
    job.environment.pop("OMNISTAT_FOM", None)
    job.run()
    environment = json.loads((tmp_path / "server/environment").read_text())
    lines = Path(environment["OMNISTAT_CONFIG"]).read_text().splitlines()
    port = int(lines[1].removeprefix("port = "))
    assert lines == [
        "[omnistat.collectors]",
        f"port = {port}",
        "enable_rms = True",
        "",
        "[omnistat.usermode]",
        "port = 17",
    ]
    assert 20_000 <= port < 31_000
    assert read_rank_environments(job) == {f"sampler= fom_url=http://localhost:{port}/fom"}


@pytest.mark.parametrize("fault", ["nothing listens", "nonsense", "silence", "no start"])
@pytest.mark.slow
def test_ranks_sample_if_no_sample_of_the_job_arrives(
    job: ScriptedJob, tmp_path: Path, ports: tuple[int, int], fault: str
) -> None:
    """Omnistat prints SUCCESS even if a port is taken or the name of a node is unknown, so that nothing arrives."""
    line = (
        "false"
        if fault == "no start"
        else 'echo "$*" >> "$FAKE_OMNISTAT_HOME.calls"; echo "User mode data collectors: SUCCESS"'
    )
    write_tool(tmp_path / "omnistat", "usermode", line)
    other_program = contextlib.nullcontext()
    if fault in ("nonsense", "silence"):
        other_program = occupy_port(ports[0], answers=fault == "nonsense")
    with other_program:
        result = job.run()
    assert (result.returncode, job.exit_codes) == (0, ["0"] * 3), result.stderr
    assert read_rank_environments(job) == {"sampler=1 fom_url="}
    reason = "Omnistat did not start" if fault == "no start" else "Omnistat started, but no sample of this job reached"
    assert f"warning: {reason}" in result.stderr
    assert "the ranks sample their nodes themselves" in result.stderr
    assert not list(job.script.parent.glob("*.omnistat.jsonl*"))
    if fault == "nonsense":
        # --stopserver would stop the server of the other program
        assert "--stopserver" not in (tmp_path / "server.calls").read_text()


@pytest.mark.slow
def test_samples_of_another_job_on_the_same_server_do_not_count(
    job: ScriptedJob, tmp_path: Path, ports: tuple[int, int]
) -> None:
    require_program("victoria-metrics")
    write_tool(tmp_path / "omnistat", "usermode", "echo SUCCESS")
    with run_server_of_another_job(ports[0], tmp_path / "data"):
        result = job.run()
    assert read_rank_environments(job) == {"sampler=1 fom_url="}
    assert "no sample of this job reached" in result.stderr


def test_occupied_server_port_is_reported_before_omnistat_starts(job: ScriptedJob, tmp_path: Path) -> None:
    job.environment.pop("OMNISTAT_SERVER", None)
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # another program already uses this port
            stack.enter_context(occupy_port(9090, answers=True))
        result = job.run()
    assert read_rank_environments(job) == {"sampler=1 fom_url="}
    assert "where Omnistat starts its server, is taken by another program" in result.stderr
    assert not (tmp_path / "calls").exists()


@pytest.mark.slow
def test_no_figures_of_merit_are_posted_to_an_occupied_port(job: ScriptedJob, ports: tuple[int, int]) -> None:
    require_program("victoria-metrics")
    with occupy_port(ports[1], answers=True):
        result = job.run()
    assert {line.partition(" ")[2] for line in read_rank_environments(job)} == {"fom_url="}
    assert "no figures of merit are posted" in result.stderr
