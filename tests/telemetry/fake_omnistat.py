"""A fake of Omnistat's programs, which package indexes do not have: `python fake_omnistat.py TOOL ARGUMENTS`.

The samples are made up (a node that draws 200 W), but the server is a real VictoriaMetrics, as Omnistat starts it in
user mode. The fake accepts the commands that the harness's job scripts use.
"""

from __future__ import annotations

import configparser
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from urllib.parse import urlparse

WATTS = 200.0
CONFIG = configparser.ConfigParser()
CONFIG.read(os.environ.get("OMNISTAT_CONFIG", ""))
PORT = CONFIG.getint("omnistat.collectors", "port", fallback=8001)
SERVER = os.environ.get("OMNISTAT_SERVER", "http://localhost:9090")
FOM_URL = os.environ.get("OMNISTAT_FOM", f"http://localhost:{PORT}/fom")
HOME = Path(os.environ["FAKE_OMNISTAT_HOME"])
NODE = socket.gethostname()


def push(metric: str, value: float, /, **labels: str) -> None:
    """Send one sample with the current time to the server."""
    content = {"metric": {"__name__": metric, "instance": NODE, **labels}, "values": [value],
               "timestamps": [round(1e3 * time.time())]}  # fmt: skip
    request = urllib.request.Request(f"{SERVER}/api/v1/import", json.dumps(content).encode())
    urllib.request.urlopen(request, timeout=5).close()


class FomHandler(BaseHTTPRequestHandler):
    """The endpoint for figures of merit."""

    def do_POST(self) -> None:
        """Forward a figure of merit."""
        content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        push("omnistat_fom", content["value"], name=content["name"])
        self.send_response(200)
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        """Suppress the log of requests."""


def collect(interval_s: float) -> None:
    """Send samples until killed."""
    try:
        fom_server = HTTPServer(("127.0.0.1", urlparse(FOM_URL).port or 0), FomHandler)
    except OSError:  # Omnistat continues without the endpoint too
        fom_server = HTTPServer(("127.0.0.1", 0), FomHandler)
    push("omnistat_info", 1, version="fake", interval_secs=str(interval_s))
    while True:
        push("rocm_average_socket_power_watts", WATTS, card="0")
        push("rocm_utilization_percentage", 50.0, card="0")
        deadline = time.monotonic() + interval_s
        while (remaining := deadline - time.monotonic()) > 0:
            fom_server.timeout = remaining
            fom_server.handle_request()


def start(arguments: list[str]) -> int:
    """Start the server and one collector."""
    HOME.mkdir(parents=True, exist_ok=True)
    (HOME / "environment").write_text(json.dumps(dict(os.environ)))
    data = Path(os.environ.get("OMNISTAT_VICTORIA_DATADIR", HOME / "data"))
    data.mkdir(parents=True, exist_ok=True)
    address = urlparse(SERVER).netloc
    log = (HOME / "log").open("ab")
    daemon = {"stdout": log, "stderr": log, "stdin": subprocess.DEVNULL, "start_new_session": True}
    server = subprocess.Popen(["victoria-metrics", f"-httpListenAddr={address}", f"-storageDataPath={data}"], **daemon)
    (HOME / "server").write_text(str(server.pid))
    for _ in range(600):
        try:
            urllib.request.urlopen(f"{SERVER}/health", timeout=1).close()
            break
        except OSError:
            time.sleep(0.1)
    else:
        return 1
    interval = arguments[arguments.index("--interval") + 1]
    collector = subprocess.Popen([sys.executable, __file__, "collect", interval], **daemon)
    (HOME / "collector").write_text(str(collector.pid))
    return 0


def main(tool: str, arguments: list[str]) -> int:
    """Run the fake of one program of Omnistat."""
    with (HOME.parent / "calls").open("a") as calls:
        calls.write(" ".join([tool, *arguments]) + "\n")
    match tool, arguments[0]:
        case "collect", _:
            collect(float(arguments[0]))
        case "usermode", "--start":
            return start(arguments)
        case "usermode", "--stopexporters":
            os.kill(int((HOME / "collector").read_text()), signal.SIGKILL)
            urllib.request.urlopen(f"{SERVER}/internal/force_flush", timeout=30).close()
        case "usermode", "--stopserver":
            os.kill(int((HOME / "server").read_text()), signal.SIGTERM)
        case "annotate", _:
            value = time.time() if arguments[1] == "start" else 0.0
            push("rmsjob_annotations", value, marker=arguments[3], jobid="1")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
