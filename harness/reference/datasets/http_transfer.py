"""One file over HTTP, from where an earlier attempt stopped: a server is believed only where its answer fits."""

from __future__ import annotations

import http.client
import re
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from harness.reference.datasets.downloads import Download
from harness.reference.errors import InputError

CHUNK_BYTES = 1 << 20
TIMEOUT_S = 60.0
NUMBER = "[0-9]{1,18}"
Progress = Callable[[int, int, str], None]


def receive(download: Download, partial: Path, progress: Progress) -> None:
    """Append what is missing of a file; returns only if the server says that all of it has come.

    Raises InputError for an answer that is not the file, and what urllib raises for a broken connection.
    """
    have = partial.stat().st_size if partial.exists() else 0
    try:
        _receive_rest(download, partial, have, progress)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not have:
            raise
        total = re.fullmatch(rf"bytes \*/({NUMBER})", error.headers.get("Content-Range") or "")
        if not ((total and int(total[1]) == have) or download.size == have or (download.md5 and not total)):
            discard(partial)  # more than there is, or another file's
            _receive_rest(download, partial, 0, progress)


def discard(partial: Path) -> None:
    """Forget what has come of a file."""
    for path in (partial, _version(partial)):
        path.unlink(missing_ok=True)


def _version(partial: Path) -> Path:
    """Return the file that says which version of the file the first part is of: its ETag."""
    return partial.with_name(partial.name + ".version")


def _receive_rest(download: Download, partial: Path, have: int, progress: Progress) -> None:
    request = urllib.request.Request(download.url, headers={"Accept-Encoding": "identity"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
        _refuse_other_content(download, answer)
        if answer.status == 206:
            total = _read_total(download, answer, have)
        else:
            have, total = 0, _parse_length(answer)  # the server begins anew
        tag = answer.headers.get("ETag") or ""
        if have:
            _refuse_other_version(download, partial, tag, total)
        _refuse_unknown_end(download, answer, total)
        if total is not None and download.size not in (None, total):
            raise InputError(f"{download.url}: the server offers {total} bytes, the published file has {download.size}")
        _check_room(partial.parent, (total or 0) - have)
        _version(partial).write_text(tag, encoding="utf-8")
        _copy(download, answer, partial, have, total or download.size, progress)


def _refuse_other_version(download: Download, partial: Path, tag: str, total: int | None) -> None:
    """Raise InputError, and forget the first part, where the rest would be of another version of the file."""
    version = _version(partial)
    before = version.read_text(encoding="utf-8") if version.exists() else ""
    if (before and tag and before != tag) or (total is not None and total < partial.stat().st_size):
        discard(partial)
        raise InputError(
            f"{download.url}: the file has changed since its first part came, which was thrown away; the same command"
            " begins again"
        )


def _copy(
    download: Download,
    answer: http.client.HTTPResponse,
    partial: Path,
    have: int,
    total: int | None,
    progress: Progress,
) -> None:
    with open(partial, "ab" if have else "wb") as out:
        while chunk := answer.read1(CHUNK_BYTES):
            out.write(chunk)
            have += len(chunk)
            progress(have // CHUNK_BYTES, max(total or 0, have + 1) // CHUNK_BYTES, f"MB of {download.name}")
            if total is not None and have > total:
                raise InputError(f"{download.url}: more came than the {total} bytes of the file")
    if total is not None and have < total:
        raise ConnectionError(f"the connection ended after {have} of {total} bytes")


def _refuse_other_content(download: Download, answer: http.client.HTTPResponse) -> None:
    """Raise InputError for an answer that holds no file, whatever it calls itself."""
    if answer.status not in (200, 206):
        raise InputError(
            f"{download.url}: the server answers {answer.status} {answer.reason} in place of the file; try again later,"
            " or download it with a browser"
        )
    kind = answer.headers.get_content_type()
    if kind in ("text/html", "application/xhtml+xml"):
        raise InputError(
            f"{download.url}: the server answers with a web page (a login, a proxy, a question to humans?) in place of"
            " the file; download it with a browser"
        )
    coding = answer.headers.get("Content-Encoding", "identity").lower()
    if coding != "identity":
        raise InputError(f"{download.url}: the server sends the file in the coding {coding!r}, which was not asked for")


def _refuse_unknown_end(download: Download, answer: http.client.HTTPResponse, total: int | None) -> None:
    """Raise InputError where nothing would tell a whole file from a broken one."""
    is_chunked = "chunked" in answer.headers.get("Transfer-Encoding", "").lower()
    if total is None and not is_chunked and download.md5 is None and download.size is None:
        raise InputError(
            f"{download.url}: the server does not say how long the file is, so a broken one could not be told from a"
            " whole one; download it with a browser"
        )


def _parse_length(answer: http.client.HTTPResponse) -> int | None:
    text = answer.headers.get("Content-Length")
    return int(text) if text and re.fullmatch(NUMBER, text) else None


def _read_total(download: Download, answer: http.client.HTTPResponse, have: int) -> int | None:
    """Return the length of the whole file of which a part comes; raises InputError if it is not the part asked for."""
    text = answer.headers.get("Content-Range")
    if text is None:
        length = _parse_length(answer)
        return None if length is None else have + length
    span = re.fullmatch(rf"bytes ({NUMBER})-({NUMBER})/({NUMBER}|\*)", text.strip())
    if span is None or int(span[1]) != have:
        raise InputError(
            f"{download.url}: asked for the bytes from {have} on, the server answers with {text!r}; what has come is"
            " kept"
        )
    return int(span[2]) + 1 if span[3] == "*" else int(span[3])


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise InputError(f"{folder}: {needed / 1e9:.1f} GB to come, {free / 1e9:.1f} GB free")
