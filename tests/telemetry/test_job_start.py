"""Jobs whose Omnistat starts badly: the ranks sample themselves, and nobody else's samples are taken for the job's."""

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

from tests.conftest import needs
from tests.execution.test_run_case import Made, make
from tests.support.cluster import free_ports
from tests.telemetry.test_job import STAND_IN

SYSTEM = """\
telemetry: {{collector: omnistat, interval_s: "1", omnistat: '"{tools}/omnistat-$tool"', config: "{config}"}}
"""
CONFIG = "[omnistat.collectors]\nenable_rms = True\nport = 8001\n\n[omnistat.usermode]\nport = 17\n"
TELLS = 'echo "sampler=${GFM_HARNESS_SAMPLER_S:-} merits=${GFM_HARNESS_FOM_URL:-}" > told'


@pytest.fixture
def ports(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[int, int]:
    """Of the server and of figures of merit, free both."""
    server, merits = free_ports(), free_ports()
    monkeypatch.setenv("OMNISTAT_SERVER", f"http://127.0.0.1:{server}")
    monkeypatch.setenv("OMNISTAT_FOM", f"http://127.0.0.1:{merits}/fom")
    monkeypatch.setenv("STAND_IN_HOME", str(tmp_path / "server"))
    return server, merits


@pytest.fixture
def job(tmp_path: Path, ports: tuple[int, int]) -> Made:
    """Three cases under Omnistat's stand-ins; each leaves what its ranks were told about telemetry."""
    tools = tmp_path / "omnistat"
    tools.mkdir()
    for tool in ("usermode", "annotate", "query"):
        write_tool(tools, tool, f'exec {sys.executable} {STAND_IN} {tool} "$@"')
    (tmp_path / "config").write_text(CONFIG)
    made = make(tmp_path, "local", system=SYSTEM.format(tools=tools, config=tmp_path / "config"))
    for k in range(3):
        made.does(k, TELLS)
    return made


def write_tool(folder: Path, tool: str, line: str) -> None:
    script = folder / f"omnistat-{tool}"
    script.write_text(f"#!/bin/sh\n{line}\n")
    script.chmod(0o755)


def told(job: Made) -> set[str]:
    return {(case / "told").read_text().strip() for case in job.cases}


@contextlib.contextmanager
def listener(port: int, *, answers: bool) -> Iterator[None]:
    """Another program at a port: one that answers every request with nonsense, or one that is silent."""

    class Nonsense(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>OK</html>")

        do_POST = do_GET

        def log_message(self, *words: object) -> None:
            """Say nothing."""

    if answers:
        server = HTTPServer(("127.0.0.1", port), Nonsense)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield
        server.shutdown()
        server.server_close()
    else:
        with socket.create_server(("127.0.0.1", port)):
            yield


@contextlib.contextmanager
def database(port: int, folder: Path) -> Iterator[None]:
    """A server of somebody else, with samples of somebody else that go on arriving."""
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


def test_samples_that_arrive_are_waited_for_and_the_ranks_do_not_sample(
    job: Made, tmp_path: Path, ports: tuple[int, int]
) -> None:
    needs("victoria-metrics")
    job.environment.pop("USER", None)
    done = job.run()
    assert (done.returncode, job.ends) == (0, ["0"] * 3), done.stderr
    assert told(job) == {f"sampler= merits=http://127.0.0.1:{ports[1]}/fom"}
    assert "warning" not in done.stderr
    calls = [line.split() for line in (tmp_path / "calls").read_text().splitlines()]
    start = next(call for call in calls if call[:2] == ["usermode", "--start"])
    # In minutes; the tool refuses less than one.
    assert start[start.index("--pushinterval") + 1] == "1"
    seen = json.loads((tmp_path / "server/environment").read_text())
    assert seen["USER"]
    # Two jobs share no folder.
    assert seen["OMNISTAT_VICTORIA_DATADIR"].startswith(f"{job.script.parent}/{job.script.stem}.")
    assert seen["OMNISTAT_VICTORIA_DATADIR"].endswith(f"data-{job.script.stem}")
    export = next(job.script.parent.glob("*.omnistat.jsonl")).read_text()
    assert "rocm_average_socket_power_watts" in export
    assert not Path(seen["OMNISTAT_VICTORIA_DATADIR"]).exists()


def test_the_exporters_have_a_port_of_their_own(job: Made, tmp_path: Path) -> None:
    needs("victoria-metrics")
    job.environment.pop("OMNISTAT_FOM", None)
    job.run()
    seen = json.loads((tmp_path / "server/environment").read_text())
    lines = Path(seen["OMNISTAT_CONFIG"]).read_text().splitlines()
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
    assert told(job) == {f"sampler= merits=http://localhost:{port}/fom"}


@pytest.mark.parametrize("fault", ["nothing listens", "nonsense", "silence", "no start"])
def test_the_ranks_sample_where_no_sample_of_the_job_arrives(
    job: Made, tmp_path: Path, ports: tuple[int, int], fault: str
) -> None:
    """As where a port is taken, or a node's name is not known: the tool says SUCCESS all the same."""
    line = (
        "false"
        if fault == "no start"
        else 'echo "$*" >> "$STAND_IN_HOME.calls"; echo "User mode data collectors: SUCCESS"'
    )
    write_tool(tmp_path / "omnistat", "usermode", line)
    held = contextlib.nullcontext()
    if fault in ("nonsense", "silence"):
        held = listener(ports[0], answers=fault == "nonsense")
    with held:
        done = job.run()
    assert (done.returncode, job.ends) == (0, ["0"] * 3), done.stderr
    assert told(job) == {"sampler=1 merits="}
    why = "Omnistat did not start" if fault == "no start" else "Omnistat started, but no sample of this job reached"
    assert f"warning: {why}" in done.stderr
    assert "the ranks sample their nodes themselves" in done.stderr
    assert not list(job.script.parent.glob("*.omnistat.jsonl*"))
    if fault == "nonsense":
        # It would stop the other's server.
        assert "--stopserver" not in (tmp_path / "server.calls").read_text()


@pytest.mark.slow
def test_samples_of_another_job_on_the_same_server_are_not_taken_for_this_job_s(
    job: Made, tmp_path: Path, ports: tuple[int, int]
) -> None:
    needs("victoria-metrics")
    write_tool(tmp_path / "omnistat", "usermode", "echo SUCCESS")
    with database(ports[0], tmp_path / "data"):
        done = job.run()
    assert told(job) == {"sampler=1 merits="}
    assert "no sample of this job reached" in done.stderr


def test_a_server_s_port_that_is_taken_is_told_before_omnistat_starts(job: Made, tmp_path: Path) -> None:
    job.environment.pop("OMNISTAT_SERVER", None)
    with contextlib.suppress(OSError), listener(9090, answers=True):
        done = job.run()
        assert told(job) == {"sampler=1 merits="}
        assert "where Omnistat starts its server, is taken by another program" in done.stderr
        assert not (tmp_path / "calls").exists()


def test_a_port_of_figures_of_merit_that_is_taken_gets_none(job: Made, ports: tuple[int, int]) -> None:
    needs("victoria-metrics")
    with listener(ports[1], answers=True):
        done = job.run()
    assert {line.partition(" ")[2] for line in told(job)} == {"merits="}
    assert "no figures of merit are posted" in done.stderr
