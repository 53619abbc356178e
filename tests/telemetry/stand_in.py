"""Stands in for Omnistat's programs, which no package index has: `python stand_in.py TOOL WORDS`.

What it tells is made up (a node that draws 200 W); where it tells it, is not: a real VictoriaMetrics, which Omnistat
starts in user mode too, takes the samples in and gives them back. It understands what the harness's job scripts say.
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
MERIT = os.environ.get("OMNISTAT_FOM", f"http://localhost:{PORT}/fom")
HOME = Path(os.environ["STAND_IN_HOME"])
NODE = socket.gethostname()


def push(metric: str, value: float, /, **labels: str) -> None:
    """One sample, now."""
    content = {"metric": {"__name__": metric, "instance": NODE, **labels}, "values": [value],
               "timestamps": [round(1e3 * time.time())]}  # fmt: skip
    request = urllib.request.Request(f"{SERVER}/api/v1/import", json.dumps(content).encode())
    urllib.request.urlopen(request, timeout=5).close()


class Merits(BaseHTTPRequestHandler):
    """The endpoint for figures of merit."""

    def do_POST(self) -> None:
        """Take one in."""
        told = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        push("omnistat_fom", told["value"], name=told["name"])
        self.send_response(200)
        self.end_headers()

    def log_message(self, *words: object) -> None:
        """Say nothing."""


def collect(interval_s: float) -> None:
    """Sample until killed."""
    try:
        merits = HTTPServer(("127.0.0.1", urlparse(MERIT).port or 0), Merits)
    except OSError:  # Omnistat goes on without the endpoint too
        merits = HTTPServer(("127.0.0.1", 0), Merits)
    push("omnistat_info", 1, version="stand-in", interval_secs=str(interval_s))
    while True:
        push("rocm_average_socket_power_watts", WATTS, card="0")
        push("rocm_utilization_percentage", 50.0, card="0")
        deadline = time.monotonic() + interval_s
        while (left := deadline - time.monotonic()) > 0:
            merits.timeout = left
            merits.handle_request()


def start(words: list[str]) -> int:
    """The server and one collector."""
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
    interval = words[words.index("--interval") + 1]
    collector = subprocess.Popen([sys.executable, __file__, "collect", interval], **daemon)
    (HOME / "collector").write_text(str(collector.pid))
    return 0


def main(tool: str, words: list[str]) -> int:
    """What one of the programs does."""
    with (HOME.parent / "calls").open("a") as calls:
        calls.write(" ".join([tool, *words]) + "\n")
    match tool, words[0]:
        case "collect", _:
            collect(float(words[0]))
        case "usermode", "--start":
            return start(words)
        case "usermode", "--stopexporters":
            os.kill(int((HOME / "collector").read_text()), signal.SIGKILL)
            urllib.request.urlopen(f"{SERVER}/internal/force_flush", timeout=30).close()
        case "usermode", "--stopserver":
            os.kill(int((HOME / "server").read_text()), signal.SIGTERM)
        case "annotate", _:
            standing = time.time() if words[1] == "start" else 0.0
            push("rmsjob_annotations", standing, marker=words[3], jobid="1")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
