"""`harness data` with random arguments and folders, and downloads from faulty servers, end with one-line errors."""

from __future__ import annotations

import contextlib
import io
import os
import random
import shutil
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from harness.reference.datasets import fetch as downloads
from harness.reference.datasets.__main__ import main
from harness.reference.datasets.catalog import SOURCES
from harness.reference.datasets.fetch import Download, fetch
from harness.reference.errors import InputError
from tests.fuzz.bounded import run_fuzzer
from tests.reference.conftest import ignore_progress
from tests.reference.datasets.official_files.writers import write_ani1x

pytestmark = pytest.mark.slow

NAMES = [
    "a", "b\n", "\x1b[2J", "\udcff\udcfe", "-x", "--", " ", "é", "x.h5", "y.lmdb", "z.aselmdb", "s.bp", "1.extxyz",
    "q.xz", "m.json", "n.db", "t.tfrecord-00000-of-00001", "...", "long" * 60, "*", "%s{}", "0",
]  # fmt: skip
CONTENT = [b"", b"\x00", b"<html>", b"\x89HDF\r\n\x1a\n", b"\xfd7zXZ\x00", b"SQLite format 3\x00", b"{}", b"[" * 999]
OPTIONS = ["--cutoff", "--max-neighbours", "--max-force", "--seed", "--strict", "-q", "--help", "--frob", "--", "-h"]
VALUES = ["5", "-1", "nan", "inf", "1e999", "0", "", "x", "٣", "9" * 40, "\n", "3"]
SLUGS = [entry.slug for entry in SOURCES]
TIMEOUT_S = 0.5


def draw_tree(rng: random.Random, folder: Path, sample: Path) -> list[str]:
    """Create files and folders of every kind; return their names, and names of files that do not exist."""
    created = [folder]
    for _ in range(rng.randrange(8)):
        path = rng.choice([p for p in created if p.is_dir() and not p.is_symlink()]) / rng.choice(NAMES)
        if os.path.lexists(path):
            continue
        with contextlib.suppress(OSError):
            kind = rng.randrange(10)
            if kind < 3:
                path.mkdir()
            elif kind == 3:
                os.mkfifo(path)
            elif kind == 4:
                path.symlink_to(rng.choice([folder, Path("/dev/zero"), Path("/dev/full"), path, Path("..")]))
            elif kind == 5:
                shutil.copy(sample, path)
            elif kind == 6:
                socket.socket(socket.AF_UNIX).bind(str(path))
            else:
                path.write_bytes(rng.choice(CONTENT) * rng.choice([1, 1, 100]))
            created.append(path)
    return [str(p.relative_to(folder)) for p in created] + [
        "/dev/zero",
        "nowhere",
        "",
        "/dev/null/x",
        str(folder / "a"),
    ]


def draw_arguments(rng: random.Random, paths: list[str]) -> list[str]:
    """Draw a command line that is valid or nearly valid."""
    command = rng.choice(["list", "check", "check", "convert", "convert", "stats", "fetch", "", "chek"])
    arguments = [rng.choice([rng.choice(SLUGS), "ani1x", "ani1x", rng.choice(paths), rng.choice(NAMES)])]
    arguments += [rng.choice(paths) for _ in range(rng.randrange(1, 4))]
    for _ in range(rng.choice([0, 0, 1, 2])):
        position = rng.randrange(len(arguments) + 1)
        option = rng.choice(OPTIONS)
        arguments[position:position] = [option, rng.choice(VALUES)] if rng.random() < 0.7 else [option]
    required_options = {
        "convert": ["--workers", "1", "--to", rng.choice([*paths, "stores"])],
        "fetch": ["--to", rng.choice(paths)],
    }
    return [command, *required_options.get(command, []), *arguments]


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sample") / "x.h5"
    write_ani1x(path, {"g0": 2, "g1": 2, "g2": 2, "g3": 1})
    return path


def test_data_command_handles_random_arguments(tmp_path: Path, sample: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unreachable = {
        slug: tuple(replace(d, url="http://127.0.0.1:9/x") for d in downloads_of_dataset)
        for slug, downloads_of_dataset in downloads.DOWNLOADS.items()
    }
    monkeypatch.setattr(downloads, "DOWNLOADS", unreachable)

    def examine(rng: random.Random, folder: Path) -> None:
        os.chdir(folder)
        arguments = draw_arguments(rng, draw_tree(rng, folder, sample))
        stdout, error = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(error):
            try:
                code = main(arguments)
            except SystemExit as system_exit:  # --help
                code = system_exit.code
        output = stdout.getvalue() + error.getvalue()
        assert code in (0, 1, 2), (arguments, code)
        assert all(line.isprintable() for line in output.splitlines()), (arguments, output)
        assert "Traceback" not in output, (arguments, output)
        if code == 2:
            assert error.getvalue().startswith("error: "), (arguments, output)
            assert error.getvalue().count("\n") == 1, (arguments, output)

    run_fuzzer(examine, tmp_path)


BODY = b"\xfd7zXZ\x00" + bytes(range(256)) * 40


def draw_answer(rng: random.Random, request: bytes) -> bytes:
    """Draw the answer of a correct server, with random changes."""
    range_start = request.partition(b"Range: bytes=")[2].partition(b"-")[0]
    first_byte = int(range_start) if range_start.isdigit() and rng.random() < 0.8 else 0
    body = (
        BODY[first_byte:]
        if rng.random() < 0.8
        else rng.choice([b"", b"<html>", BODY[first_byte : first_byte + 99], BODY + BODY])
    )
    headers = {"Content-Length": str(len(body)), "ETag": '"1"'}
    status = "206 Partial Content" if first_byte else "200 OK"
    if first_byte:
        headers["Content-Range"] = f"bytes {first_byte}-{len(BODY) - 1}/{len(BODY)}"
    if first_byte >= len(BODY):
        status, headers["Content-Range"], body = "416 Range Not Satisfiable", f"bytes */{len(BODY)}", b""
    changes = {
        "Content-Length": ["-1", "x", "0", str(10**18), str(len(body) + 9), "9" * 5000],
        "Content-Range": ["", "bytes 0-1/2", "x", f"bytes {first_byte}-9/*", "bytes 1-0/0"],
        "Transfer-Encoding": ["chunked"],
        "Content-Encoding": ["gzip", ""],
        "Content-Type": ["text/html", "\x1b[2J", "x/y; charset=\xff"],
        "Location": ["/", "file:///etc/passwd", "http://127.0.0.1:9/", "//", "x" * 9000],
        "ETag": ["", '"2"', "\xff"],
    }
    for _ in range(rng.choice([0, 1, 1, 2, 3])):
        name = rng.choice(list(changes))
        headers[name] = rng.choice(changes[name])
    if rng.random() < 0.2:
        status = rng.choice(
            ["202 Accepted", "204 No", "206 P", "302 Found", "403 \x1b[2J", "503", "0 x", "99999 x", ""]
        )
    message = "".join(f"{name}: {value}\r\n" for name, value in headers.items() if rng.random() < 0.95)
    answer = f"HTTP/1.1 {status}\r\n{message}\r\n".encode("latin-1") + body
    if headers.get("Transfer-Encoding"):
        answer = (
            answer[: len(answer) - len(body)]
            + b"%x\r\n%s\r\n" % (len(body), body)
            + rng.choice([b"0\r\n\r\n", b"", b"zz"])
        )
    if rng.random() < 0.2:
        answer = answer[: rng.randrange(len(answer))]
    if rng.random() < 0.1:
        position = rng.randrange(len(answer))
        answer = answer[:position] + rng.randbytes(rng.randrange(9)) + answer[position:]
    return answer


@contextlib.contextmanager
def run_server(rng: random.Random) -> Iterator[str]:
    """Run a server that sends random answers, until the block ends."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with connection, contextlib.suppress(OSError):
                        connection.settimeout(TIMEOUT_S)
                        connection.sendall(draw_answer(rng, connection.recv(1 << 16)))

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/x.xz"
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_fetch_handles_faulty_servers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "TIMEOUT_S", TIMEOUT_S)

    def examine(rng: random.Random, folder: Path) -> None:
        with run_server(rng) as url:
            download = Download("x.xz", url, size=rng.choice([None, len(BODY)]))
            for _ in range(3):
                try:
                    path = fetch(download, folder, ignore_progress)
                except InputError as error:
                    message = str(error)
                else:
                    assert path.read_bytes()[:6] == BODY[:6]
                    assert download.size is None or path.stat().st_size == len(BODY)
                    return
                assert message.isprintable()
                assert not (folder / "x.xz").exists()

    run_fuzzer(examine, tmp_path)
