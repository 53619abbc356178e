"""Downloads from a local server are resumed and checked, and failures are reported in one line."""

from __future__ import annotations

import hashlib
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from harness.reference.datasets import fetch as http_transfer
from harness.reference.datasets.catalog import SOURCES
from harness.reference.datasets.fetch import DOWNLOADS, Download, fetch, select_downloads
from harness.reference.errors import InputError
from tests.reference.conftest import ignore_progress

BODY = b"\x89HDF\r\n\x1a\n" + bytes(range(256)) * 20_000
MD5 = hashlib.md5(BODY, usedforsecurity=False).hexdigest()


class RangeServer(BaseHTTPRequestHandler):
    """A server that honours ranges for /file, ignores them for /whole, and cuts off its first answer for /breaks."""

    has_broken = False
    requested_ranges: tuple[str, ...] = ()

    def do_GET(self) -> None:
        RangeServer.requested_ranges = (*RangeServer.requested_ranges, self.headers.get("Range", ""))
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
        if self.path == "/breaks" and not RangeServer.has_broken:
            RangeServer.has_broken, stop = True, 2_500_000
        self.wfile.write(BODY[first:stop])

    def log_message(self, *_: object) -> None:
        """Print no log."""


@pytest.fixture
def server() -> Iterator[str]:
    RangeServer.has_broken, RangeServer.requested_ranges = False, ()
    with ThreadingHTTPServer(("127.0.0.1", 0), RangeServer) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()


def test_complete_file_is_not_fetched_again(server: str, tmp_path: Path) -> None:
    path = fetch(Download("x.h5", f"{server}/file", MD5), tmp_path / "new", ignore_progress)
    assert path.read_bytes() == BODY
    assert fetch(Download("x.h5", f"{server}/nowhere"), tmp_path / "new", ignore_progress) == path
    assert len(RangeServer.requested_ranges) == 1


def test_download_resumes_after_a_broken_connection(server: str, tmp_path: Path) -> None:
    download = Download("x.h5", f"{server}/breaks", MD5)
    with pytest.raises(InputError, match="after 2500000 of 5120008 bytes; the part received so far is kept"):
        fetch(download, tmp_path, ignore_progress)
    assert not (tmp_path / "x.h5").exists()
    assert fetch(download, tmp_path, ignore_progress).read_bytes() == BODY
    assert RangeServer.requested_ranges[1] == "bytes=2500000-"


def test_part_file_with_all_bytes_is_accepted(server: str, tmp_path: Path) -> None:
    (tmp_path / "x.h5.part").write_bytes(BODY)
    assert fetch(Download("x.h5", f"{server}/file", MD5), tmp_path, ignore_progress).read_bytes() == BODY


def test_restarted_transfer_replaces_the_part_file(server: str, tmp_path: Path) -> None:
    (tmp_path / "x.h5.part").write_bytes(b"old")
    assert fetch(Download("x.h5", f"{server}/whole", MD5), tmp_path, ignore_progress).read_bytes() == BODY


def test_file_with_wrong_digest_is_discarded(server: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not have the md5 0"):
        fetch(Download("x.h5", f"{server}/file", "0" * 32), tmp_path, ignore_progress)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", ["/nowhere", None])
def test_connection_errors_are_reported_in_one_line(server: str, tmp_path: Path, path: str | None) -> None:
    url = f"{server}{path}" if path else "http://127.0.0.1:9/x"
    with pytest.raises(InputError, match=r"404 Not Found|refused") as message:
        fetch(Download("x.h5", url), tmp_path, ignore_progress)
    assert "\n" not in str(message.value)


XZ = b"\xfd7zXZ\x00" + BODY
WEB_PAGE = b"<!DOCTYPE html><html><body>Are you a robot?</body></html>"


class ScriptedServer(BaseHTTPRequestHandler):
    """A server that answers each request with the bytes that a test prescribes."""

    answers: tuple[bytes, ...] = ()
    requested_ranges: tuple[str | None, ...] = ()

    def do_GET(self) -> None:
        answer, ScriptedServer.answers = (
            ScriptedServer.answers[0],
            ScriptedServer.answers[1:] or ScriptedServer.answers[:1],
        )
        ScriptedServer.requested_ranges = (*ScriptedServer.requested_ranges, self.headers.get("Range"))
        with suppress(OSError):  # the client may hang up early
            self.wfile.write(answer)
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Print no log."""


@pytest.fixture
def scripted_server() -> Iterator[str]:
    ScriptedServer.answers, ScriptedServer.requested_ranges = (), ()
    with ThreadingHTTPServer(("127.0.0.1", 0), ScriptedServer) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}/x.xz"
        http.shutdown()


def make_answer(status: str, body: bytes = b"", length: int | None = None, **headers: str) -> bytes:
    message = {"Content-Length": str(len(body) if length is None else length)} if length != -1 else {}
    message |= {name.replace("_", "-"): value for name, value in headers.items()}
    return (
        f"HTTP/1.1 {status}\r\n{''.join(f'{k}: {v}' + chr(13) + chr(10) for k, v in message.items())}\r\n".encode()
        + body
    )


def make_chunked_answer(*chunks: bytes, is_complete: bool = True) -> bytes:
    body = b"".join(f"{len(c):x}\r\n".encode() + c + b"\r\n" for c in chunks) + b"0\r\n\r\n" * is_complete
    return make_answer("200 OK", body if is_complete else body[:-7], -1, Transfer_Encoding="chunked")


WRONG_ANSWERS = {
    "a firewall that defers": (make_answer("202 Accepted"), "answers 202 Accepted instead of the file"),
    "no content": (make_answer("204 No Content"), "answers 204 No Content instead of the file"),
    "a login page": (
        make_answer("200 OK", WEB_PAGE, Content_Type="text/html; charset=utf-8"),
        "answers with a web page",
    ),
    "a page that calls itself a file": (
        make_answer("200 OK", WEB_PAGE),
        "is not a .xz file but a web page; it was deleted",
    ),
    "another file": (make_answer("200 OK", BODY), "is not a .xz file; it was deleted"),
    "nothing at all": (make_answer("200 OK"), "is empty; it was deleted"),
    "less than announced": (
        make_answer("200 OK", XZ, len(XZ) + 1),
        "the connection ended after 5120014 of 5120015 bytes",
    ),
    "chunks that break off": (make_chunked_answer(XZ, is_complete=False), "IncompleteRead"),
    "chunks without a size": (
        make_answer("200 OK", b"zz\r\nabc", -1, Transfer_Encoding="chunked"),
        "the part received so far is kept",
    ),
    "an unannounced length": (make_answer("200 OK", XZ, -1), "does not announce the length of the file"),
    "compressed again": (make_answer("200 OK", XZ, Content_Encoding="gzip"), "with the content encoding 'gzip'"),
    "a redirection loop": (make_answer("302 Found", b"", Location="/x.xz"), "answers 302"),
    "a redirection to a local file": (make_answer("302 Found", b"", Location="file:///etc/passwd"), "answers 302"),
    "a redirection of impossible length": (
        make_answer("302 Found", b"", 10**18, Location="/x.xz"),
        "announces an answer of impossible length",
    ),
    "no HTTP": (b"SSH-2.0-OpenSSH_9.6\r\n", "the part received so far is kept"),
    "an empty answer": (b"", "the part received so far is kept"),
    "an unavailable service": (make_answer("503 Service Unavailable"), "answers 503 Service Unavailable"),
    "part of a file": (
        make_answer("206 Partial Content", XZ, Content_Range="bytes 7-9/99"),
        "asked for the bytes from 0 on",
    ),
}


@pytest.mark.parametrize(("answer", "message"), WRONG_ANSWERS.values(), ids=WRONG_ANSWERS)
def test_wrong_content_never_gets_the_final_file_name(
    scripted_server: str, tmp_path: Path, answer: bytes, message: str
) -> None:
    ScriptedServer.answers = (answer,)
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        fetch(Download("x.xz", scripted_server), tmp_path, ignore_progress)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "x.xz").exists()


@pytest.mark.parametrize("first", list(WRONG_ANSWERS))
def test_fetch_recovers_after_errors(scripted_server: str, tmp_path: Path, first: str) -> None:
    ScriptedServer.answers = (WRONG_ANSWERS[first][0],)
    with pytest.raises(InputError):
        fetch(Download("x.xz", scripted_server), tmp_path, ignore_progress)
    ScriptedServer.answers = (make_chunked_answer(XZ[:100], XZ[100:]),)
    assert fetch(Download("x.xz", scripted_server), tmp_path, ignore_progress).read_bytes() == XZ
    assert [path.name for path in tmp_path.iterdir()] == ["x.xz"]


def make_remaining_answer(first: int, body: bytes = XZ, **headers: str) -> bytes:
    """Return the answer to a request for the bytes that start at `first`."""
    span = f"bytes {first}-{len(body) - 1}/{len(body)}"
    return make_answer("206 Partial Content", body[first:], **{"Content_Range": span, **headers})


def make_truncated_answer(**headers: str) -> bytes:
    return make_answer("200 OK", XZ[:1000], len(XZ), **headers)


def test_parts_of_a_changed_file_are_not_mixed(scripted_server: str, tmp_path: Path) -> None:
    other = XZ[:6] + bytes(len(XZ) - 6)
    ScriptedServer.answers = (
        make_truncated_answer(ETag='"1"'),
        make_remaining_answer(1000, other, ETag='"2"'),
        make_answer("200 OK", other, ETag='"2"'),
    )
    for message in ("after 1000 of", "the file has changed on the server, so its first part was deleted"):
        with pytest.raises(InputError, match=message):
            fetch(Download("x.xz", scripted_server), tmp_path, ignore_progress)
    assert fetch(Download("x.xz", scripted_server), tmp_path, ignore_progress).read_bytes() == other


@pytest.mark.parametrize("span", ["bytes 0-5120007/5120014", "bytes 999-5120013/5120014", "bytes */5120014", "x"])
def test_unrequested_range_is_not_appended(scripted_server: str, tmp_path: Path, span: str) -> None:
    ScriptedServer.answers = (
        make_truncated_answer(),
        make_remaining_answer(1000, Content_Range=span),
        make_remaining_answer(1000),
    )
    for message in ("after 1000 of", "asked for the bytes from 1000 on"):
        with pytest.raises(InputError, match=message):
            fetch(Download("x.xz", scripted_server), tmp_path, ignore_progress)
    assert fetch(Download("x.xz", scripted_server), tmp_path, ignore_progress).read_bytes() == XZ
    assert ScriptedServer.requested_ranges == (None, "bytes=1000-", "bytes=1000-")


def test_oversized_partial_file_is_fetched_again(scripted_server: str, tmp_path: Path) -> None:
    (tmp_path / "x.xz.part").write_bytes(XZ + b"more")
    ScriptedServer.answers = (
        make_answer("416 Range Not Satisfiable", Content_Range=f"bytes */{len(XZ)}"),
        make_answer("200 OK", XZ),
    )
    assert fetch(Download("x.xz", scripted_server), tmp_path, ignore_progress).read_bytes() == XZ


def test_wrong_size_is_rejected_before_download(scripted_server: str, tmp_path: Path) -> None:
    ScriptedServer.answers = (make_answer("200 OK", XZ),)
    with pytest.raises(InputError, match="offers 5120014 bytes, the published file has 7"):
        fetch(Download("x.xz", scripted_server, size=7), tmp_path, ignore_progress)


@pytest.mark.parametrize("content", [b"", WEB_PAGE])
def test_existing_wrong_file_is_reported(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.xz").write_bytes(content)
    with pytest.raises(InputError, match=r"x\.xz: this file .*; remove it and run the same command again"):
        fetch(Download("x.xz", "http://127.0.0.1:9/x"), tmp_path, ignore_progress)


def test_silent_server_times_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_transfer, "TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/x.xz"
        with pytest.raises(InputError, match="timed out; the part received so far is kept"):
            fetch(Download("x.xz", url), tmp_path, ignore_progress)


def test_full_disk_is_reported_before_download(scripted_server: str, tmp_path: Path) -> None:
    ScriptedServer.answers = (make_answer("200 OK", XZ, 10**17),)
    with pytest.raises(InputError, match=r"100000000.0 GB needed, [0-9.]+ GB free"):
        fetch(Download("x.xz", scripted_server), tmp_path, ignore_progress)


def test_every_download_belongs_to_a_dataset_and_has_a_public_address() -> None:
    assert set(DOWNLOADS) <= {s.slug for s in SOURCES}
    assert all(d.url.startswith("https://") for result in DOWNLOADS.values() for d in result)
    with pytest.raises(InputError, match=r"no file 'x' to fetch; the files are 1000.xz"):
        select_downloads("qm7x", ["x"])
