"""Official files that can be had by address alone, downloaded so that a broken connection costs nothing."""

from __future__ import annotations

import hashlib
import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from harness.reference.datasets.downloads import DOWNLOADS, Download
from harness.reference.datasets.http_transfer import discard, receive
from harness.reference.errors import InputError

MAGIC = {".xz": b"\xfd7zXZ\x00", ".h5": b"\x89HDF\r\n\x1a\n", ".gz": b"\x1f\x8b", ".tar": b"ustar"}
MAGIC_AT = {".tar": 257}
Progress = Callable[[int, int, str], None]


def chosen(slug: str, names: list[str]) -> list[Download]:
    """The downloads of those names; raises InputError with the names there are."""
    known = {d.name: d for d in DOWNLOADS[slug]}
    for name in names:
        if name not in known:
            raise InputError(f"{slug}: no file {name!r} to fetch; there are {', '.join(known)}")
    return [known[name] for name in names]


def fetch(download: Download, folder: Path, progress: Progress) -> Path:
    """Download a file into the folder, from where an earlier attempt stopped; raises InputError if that fails.

    The file bears its name only when it is whole, of its kind and, where a digest is known, has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / download.name
    if path.is_file():
        if fault := _find_fault(download, path, is_new=False):
            raise InputError(f"{path}: this file {fault}; remove it, and the same command downloads it")
        return path
    partial = folder / (download.name + ".part")
    try:
        receive(download, partial, progress)
    except urllib.error.HTTPError as error:
        raise InputError(f"{download.url}: the server answers {error.code} {_one_line(error.reason)}") from None
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
        reason = _one_line(getattr(error, "reason", error)) or type(error).__name__
        raise InputError(f"{download.url}: {reason}; what has come is kept, the same command carries on") from None
    if fault := _find_fault(download, partial, is_new=True):
        discard(partial)
        raise InputError(f"{download.url}: what came {fault}; it was thrown away")
    os.replace(partial, path)
    discard(partial)
    return path


def _one_line(reason: object) -> str:
    return " ".join(str(reason).split())[:200]


def _find_fault(download: Download, path: Path, *, is_new: bool) -> str:
    """Say what is wrong with a whole file, or nothing; the digest is that of new files alone, because it takes long."""
    size, kind = path.stat().st_size, Path(download.name).suffix
    if not size:
        return "holds no byte"
    if download.size is not None and size != download.size:
        return f"has {size} bytes, the published one {download.size}"
    with open(path, "rb") as handle:
        start = handle.read(512)
        if is_new and download.md5 is not None:
            handle.seek(0)
            digest = hashlib.file_digest(handle, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
            return "" if digest == download.md5 else f"does not have the md5 {download.md5}"
    if kind in MAGIC and not start[MAGIC_AT.get(kind, 0) :].startswith(MAGIC[kind]):
        return f"is no {kind} file{' but a web page' if start.lstrip()[:1] == b'<' else ''}"
    return ""
