"""Downloads from a real server on this machine: resumed, checked, and told in one line when they fail."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from harness.reference.datasets.fetch import DOWNLOADS, Download, chosen, fetch
from harness.reference.datasets.sources import SOURCES
from harness.reference.errors import InputError

BODY = bytes(range(256)) * 20_000
MD5 = hashlib.md5(BODY, usedforsecurity=False).hexdigest()


class Server(BaseHTTPRequestHandler):
    """/file in full or from a byte on; /breaks ends in the middle of the first answer; /whole knows no ranges."""

    broken = False
    asked: tuple[str, ...] = ()

    def do_GET(self) -> None:
        Server.asked = (*Server.asked, self.headers.get("Range", ""))
        if self.path == "/nowhere":
            self.send_error(404)
            return
        span = self.headers.get("Range")
        first = int(span.removeprefix("bytes=").removesuffix("-")) if span and self.path != "/whole" else 0
        if first >= len(BODY):
            self.send_error(416)
            return
        self.send_response(206 if first else 200)
        self.send_header("Content-Length", str(len(BODY) - first))
        self.end_headers()
        stop = len(BODY)
        if self.path == "/breaks" and not Server.broken:
            Server.broken, stop = True, 2_500_000
        self.wfile.write(BODY[first:stop])

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[str]:
    Server.broken, Server.asked = False, ()
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()


def silent(done: int, total: int, what: str) -> None:
    """No progress."""


def test_a_file_comes_whole_and_is_not_fetched_again(server: str, tmp_path: Path) -> None:
    path = fetch(Download("x.h5", f"{server}/file", MD5), tmp_path / "new", silent)
    assert path.read_bytes() == BODY
    assert fetch(Download("x.h5", f"{server}/nowhere"), tmp_path / "new", silent) == path
    assert len(Server.asked) == 1


def test_a_broken_connection_loses_nothing(server: str, tmp_path: Path) -> None:
    download = Download("x.h5", f"{server}/breaks", MD5)
    with pytest.raises(InputError, match="after 2500000 of 5120000 bytes; what has come is kept"):
        fetch(download, tmp_path, silent)
    assert not (tmp_path / "x.h5").exists()
    assert fetch(download, tmp_path, silent).read_bytes() == BODY
    assert Server.asked[1] == "bytes=2500000-"


def test_what_had_come_whole_before_the_end_is_taken(server: str, tmp_path: Path) -> None:
    (tmp_path / "x.h5.part").write_bytes(BODY)
    assert fetch(Download("x.h5", f"{server}/file", MD5), tmp_path, silent).read_bytes() == BODY


def test_a_server_that_begins_anew_is_believed(server: str, tmp_path: Path) -> None:
    (tmp_path / "x.h5.part").write_bytes(b"old")
    assert fetch(Download("x.h5", f"{server}/whole", MD5), tmp_path, silent).read_bytes() == BODY


def test_other_bytes_are_thrown_away(server: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not have the md5 0"):
        fetch(Download("x.h5", f"{server}/file", "0" * 32), tmp_path, silent)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", ["/nowhere", None])
def test_no_answer_is_one_line(server: str, tmp_path: Path, path: str | None) -> None:
    url = f"{server}{path}" if path else "http://127.0.0.1:9/x"
    with pytest.raises(InputError, match=r"404 Not Found|refused") as told:
        fetch(Download("x.h5", url), tmp_path, silent)
    assert "\n" not in str(told.value)


def test_every_download_belongs_to_a_dataset_and_has_a_public_address() -> None:
    assert set(DOWNLOADS) <= {s.slug for s in SOURCES}
    assert all(d.url.startswith("https://") for found in DOWNLOADS.values() for d in found)
    with pytest.raises(InputError, match=r"no file 'x' to fetch; there are 1000.xz"):
        chosen("qm7x", ["x"])
