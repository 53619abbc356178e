"""Download official files that have a public address; a download resumes after a broken connection."""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import shutil
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from harness.reference.datasets.catalog import OPEN_CATALYST
from harness.reference.datasets.parsing.base import ProgressCallback
from harness.reference.errors import InputError

MAGIC = {".xz": b"\xfd7zXZ\x00", ".h5": b"\x89HDF\r\n\x1a\n", ".gz": b"\x1f\x8b", ".tar": b"ustar"}
MAGIC_AT = {".tar": 257}
_QM7X = "https://zenodo.org/records/4288677/files/"
_QM7X_MD5 = (
    "b50c6a5d0a4493c274368cf22285503e", "4418a813daf5e0d44aa5a26544249ee6", "f7b5aac39a745f11436047c12d1eb24e",
    "26819601705ef8c14080fa7fc69decd4", "85ac444596b87812aaa9e48d203d0b70", "787fc4a9036af0e67c034a30ad854c07",
    "5ecce00a188410d06b747cb683d8d347", "c893ae88b8f5c32541c3f024fc1daa45",
)  # fmt: skip
CHUNK_BYTES = 1 << 20
TIMEOUT_S = 60.0
NUMBER = "[0-9]{1,18}"


def select_downloads(slug: str, names: list[str]) -> list[Download]:
    """Return the downloads of a dataset by their names; raises InputError, with the known names, for an unknown one."""
    known = {d.name: d for d in DOWNLOADS[slug]}
    for name in names:
        if name not in known:
            raise InputError(f"{slug}: no file {name!r} to fetch; the files are {', '.join(known)}")
    return [known[name] for name in names]


def fetch(download: Download, folder: Path, progress: ProgressCallback) -> Path:
    """Download a file into the folder, or continue an earlier attempt; raises InputError if that fails.

    The file gets its final name only after its length, its file type and, if known, its MD5 have been checked.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / download.name
    if path.is_file():
        if fault := _describe_fault(download, path, is_new=False):
            raise InputError(f"{path}: this file {fault}; remove it and run the same command again")
        return path
    partial = folder / (download.name + ".part")
    try:
        receive(download, partial, progress)
    except urllib.error.HTTPError as error:
        raise InputError(f"{download.url}: the server answers {error.code} {_to_short_line(error.reason)}") from None
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
        reason = _to_short_line(getattr(error, "reason", error)) or type(error).__name__
        raise InputError(
            f"{download.url}: {reason}; the part received so far is kept, run the same command again to continue"
        ) from None
    if fault := _describe_fault(download, partial, is_new=True):
        discard_partial(partial)
        raise InputError(f"{download.url}: the downloaded file {fault}; it was deleted")
    os.replace(partial, path)
    discard_partial(partial)
    return path


def _to_short_line(reason: object) -> str:
    return " ".join(str(reason).split())[:200]


def _describe_fault(download: Download, path: Path, *, is_new: bool) -> str:
    """Return what is wrong with a complete file, as the end of a sentence, or ""; only new files are hashed (slow)."""
    size, kind = path.stat().st_size, Path(download.name).suffix
    if not size:
        return "is empty"
    if download.size is not None and size != download.size:
        return f"has {size} bytes, the published one {download.size}"
    with open(path, "rb") as handle:
        start = handle.read(512)
        if is_new and download.md5 is not None:
            handle.seek(0)
            digest = hashlib.file_digest(handle, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
            return "" if digest == download.md5 else f"does not have the md5 {download.md5}"
    if kind in MAGIC and not start[MAGIC_AT.get(kind, 0) :].startswith(MAGIC[kind]):
        return f"is not a {kind} file{' but a web page' if start.lstrip()[:1] == b'<' else ''}"
    return ""


@dataclass(frozen=True)
class Download:
    """A file to download.

    Attributes:
        name: The name of the file.
        url: Its address.
        md5: The published MD5 digest, or None.
        size: The published size in bytes, or None.
    """

    name: str
    url: str
    md5: str | None = None
    size: int | None = None


# Addresses that need no account; `DatasetSource.fetch` explains how to get all other files.
DOWNLOADS: dict[str, tuple[Download, ...]] = {
    "ani1x": (
        Download(
            "ani1x-release.h5",
            "https://springernature.figshare.com/ndownloader/files/18112775",
            md5="98090dd6679106da861f52bed825ffb7",
            size=5_590_846_027,
        ),
    ),
    "oc2020": tuple(
        Download(f"s2ef_{name}.tar", f"{OPEN_CATALYST}s2ef_{name}.tar")
        for name in ("train_200K", "train_2M", "train_20M", "train_all")
    ),
    "oc2022": (
        Download(
            "s2ef_total_train_val_test_lmdbs.tar.gz",
            "https://dl.fbaipublicfiles.com/opencatalystproject/data/oc22/s2ef_total_train_val_test_lmdbs.tar.gz",
            md5="ebea523c6f8d61248a37b4dd660b11e6",
        ),
    ),
    "qm7x": tuple(Download(f"{k}000.xz", f"{_QM7X}{k}000.xz", md5) for k, md5 in enumerate(_QM7X_MD5, start=1)),
}


def receive(download: Download, partial: Path, progress: ProgressCallback) -> None:
    """Append the rest of a file to a partial download; return only if the server confirms that the file is complete.

    Raises InputError if the answer is not the file, and an error of urllib if the connection breaks.
    """
    offset = partial.stat().st_size if partial.exists() else 0
    try:
        _receive_rest(download, partial, offset, progress)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not offset:
            raise
        total = re.fullmatch(rf"bytes \*/({NUMBER})", error.headers.get("Content-Range") or "")
        if not ((total and int(total[1]) == offset) or download.size == offset or (download.md5 and not total)):
            discard_partial(partial)  # too long, or part of another file
            _receive_rest(download, partial, 0, progress)


def discard_partial(partial: Path) -> None:
    """Delete a partial download and the record of its version."""
    for path in (partial, _build_version_path(partial)):
        path.unlink(missing_ok=True)


def _build_version_path(partial: Path) -> Path:
    """Return the path of the file with the ETag of a partial download, which identifies its version."""
    return partial.with_name(partial.name + ".version")


def _receive_rest(download: Download, partial: Path, offset: int, progress: ProgressCallback) -> None:
    request = urllib.request.Request(download.url, headers={"Accept-Encoding": "identity"})
    if offset:
        request.add_header("Range", f"bytes={offset}-")
    try:
        opened = urllib.request.urlopen(request, timeout=TIMEOUT_S)
    except (MemoryError, OverflowError) as error:  # of urllib, which reads the whole body of a redirection
        raise InputError(f"{download.url}: the server announces an answer of impossible length") from error
    with opened as response:
        _reject_other_content(download, response)
        if response.status == 206:
            total = _read_total(download, response, offset)
        else:
            offset, total = 0, _parse_length(response)  # the server starts over
        tag = response.headers.get("ETag") or ""
        if offset:
            _reject_other_version(download, partial, tag, total)
        _reject_unknown_end(download, response, total)
        if total is not None and download.size not in (None, total):
            raise InputError(f"{download.url}: the server offers {total} bytes, the published file has {download.size}")
        _check_room(partial.parent, (total or 0) - offset)
        _build_version_path(partial).write_text(tag, encoding="utf-8")
        _copy(download, response, partial, offset=offset, total=total or download.size, progress=progress)


def _reject_other_version(download: Download, partial: Path, tag: str, total: int | None) -> None:
    """Delete the partial download and raise InputError if the server has another version of the file."""
    version = _build_version_path(partial)
    before = version.read_text(encoding="utf-8") if version.exists() else ""
    if (before and tag and before != tag) or (total is not None and total < partial.stat().st_size):
        discard_partial(partial)
        raise InputError(
            f"{download.url}: the file has changed on the server, so its first part was deleted; the same command"
            " begins again"
        )


def _copy(
    download: Download,
    response: http.client.HTTPResponse,
    partial: Path,
    *,
    offset: int,
    total: int | None,
    progress: ProgressCallback,
) -> None:
    with open(partial, "ab" if offset else "wb") as out:
        while chunk := response.read1(CHUNK_BYTES):
            out.write(chunk)
            offset += len(chunk)
            progress(offset // CHUNK_BYTES, max(total or 0, offset + 1) // CHUNK_BYTES, f"MB of {download.name}")
            if total is not None and offset > total:
                raise InputError(f"{download.url}: received more than the {total} bytes of the file")
    if total is not None and offset < total:
        raise ConnectionError(f"the connection ended after {offset} of {total} bytes")


def _reject_other_content(download: Download, response: http.client.HTTPResponse) -> None:
    """Raise InputError for an answer that is not a file."""
    if response.status not in (200, 206):
        raise InputError(
            f"{download.url}: the server answers {response.status} {response.reason} instead of the file; try again"
            " later, or download it with a browser"
        )
    kind = response.headers.get_content_type()
    if kind in ("text/html", "application/xhtml+xml"):
        raise InputError(
            f"{download.url}: the server answers with a web page (a login page, a proxy, a CAPTCHA?) instead of"
            " the file; download it with a browser"
        )
    coding = response.headers.get("Content-Encoding", "identity").lower()
    if coding != "identity":
        raise InputError(
            f"{download.url}: the server sends the file with the content encoding {coding!r}, which was not requested"
        )


def _reject_unknown_end(download: Download, response: http.client.HTTPResponse, total: int | None) -> None:
    """Raise InputError if the response has neither a length nor a checksum by which a truncated file is recognized."""
    is_chunked = "chunked" in response.headers.get("Transfer-Encoding", "").lower()
    if total is None and not is_chunked and download.md5 is None and download.size is None:
        raise InputError(
            f"{download.url}: the server does not announce the length of the file, so a truncated one could not be"
            " recognized; download it with a browser"
        )


def _parse_length(response: http.client.HTTPResponse) -> int | None:
    text = response.headers.get("Content-Length")
    return int(text) if text and re.fullmatch(NUMBER, text) else None


def _read_total(download: Download, response: http.client.HTTPResponse, offset: int) -> int | None:
    """Return the length of the whole file, from a partial response.

    Raises InputError if the response is not the requested part.
    """
    text = response.headers.get("Content-Range")
    if text is None:
        length = _parse_length(response)
        return None if length is None else offset + length
    span = re.fullmatch(rf"bytes ({NUMBER})-({NUMBER})/({NUMBER}|\*)", text.strip())
    if span is None or int(span[1]) != offset:
        raise InputError(
            f"{download.url}: asked for the bytes from {offset} on, the server answers with {text!r}; the part"
            " received so far is kept"
        )
    return int(span[2]) + 1 if span[3] == "*" else int(span[3])


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise InputError(f"{folder}: not enough disk space: {needed / 1e9:.1f} GB needed, {free / 1e9:.1f} GB free")
