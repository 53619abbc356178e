"""Official files that can be had by address alone, downloaded so that a broken connection costs nothing."""

from __future__ import annotations

import hashlib
import os
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from harness.reference.errors import InputError

CHUNK_BYTES = 1 << 20
TIMEOUT_S = 60.0
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Download:
    """A file and its address; md5: what its authors say of it, or None."""

    name: str
    url: str
    md5: str | None = None


_OPEN_CATALYST = "https://dl.fbaipublicfiles.com/opencatalystproject/data/"
_QM7X = "https://zenodo.org/records/4288677/files/"

# Addresses that need no account; of all others `Source.fetch` says what to do.
DOWNLOADS: dict[str, tuple[Download, ...]] = {
    "ani1x": (Download("ani1x-release.h5", "https://springernature.figshare.com/ndownloader/files/18112775"),),
    "oc2020": tuple(
        Download(f"s2ef_{name}.tar", f"{_OPEN_CATALYST}s2ef_{name}.tar")
        for name in ("train_200K", "train_2M", "train_20M", "train_all")
    ),
    "oc2022": (
        Download(
            "s2ef_total_train_val_test_lmdbs.tar.gz",
            "https://dl.fbaipublicfiles.com/opencatalystproject/data/oc22/s2ef_total_train_val_test_lmdbs.tar.gz",
            md5="ebea523c6f8d61248a37b4dd660b11e6",
        ),
    ),
    "qm7x": tuple(Download(f"{k}000.xz", f"{_QM7X}{k}000.xz") for k in range(1, 9)),
}


def chosen(slug: str, names: list[str]) -> list[Download]:
    """The downloads of those names; raises InputError with the names there are."""
    known = {d.name: d for d in DOWNLOADS[slug]}
    for name in names:
        if name not in known:
            raise InputError(f"{slug}: no file {name!r} to fetch; there are {', '.join(known)}")
    return [known[name] for name in names]


def fetch(download: Download, folder: Path, progress: Progress) -> Path:
    """Download a file into the folder, from where an earlier attempt stopped; raises InputError if that fails.

    The file bears its name only when it is whole and, where a digest is known, has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / download.name
    if path.exists():
        return path
    partial = folder / (download.name + ".part")
    try:
        _continue(download, partial, progress)
    except urllib.error.HTTPError as error:
        raise InputError(f"{download.url}: the server answers {error.code} {error.reason}") from None
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", error)
        raise InputError(f"{download.url}: {reason}; what has come is kept, the same command carries on") from None
    if download.md5 is not None and _md5(partial) != download.md5:
        partial.unlink()
        raise InputError(f"{download.url}: what came does not have the md5 {download.md5}; it was thrown away")
    os.replace(partial, path)
    return path


def _continue(download: Download, partial: Path, progress: Progress) -> None:
    """Append what is missing of a file."""
    have = partial.stat().st_size if partial.exists() else 0
    request = urllib.request.Request(download.url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        answer = urllib.request.urlopen(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # nothing is missing
            return
        raise
    with answer:
        if have and answer.status != 206:  # the server begins anew
            have = 0
        expected = have + int(answer.headers.get("Content-Length") or 0)
        _room(partial.parent, expected - have)
        with open(partial, "ab" if have else "wb") as out:
            while chunk := answer.read(CHUNK_BYTES):
                out.write(chunk)
                have += len(chunk)
                progress(have // CHUNK_BYTES, expected // CHUNK_BYTES, f"MB of {download.name}")
    if have < expected:
        raise ConnectionError(f"the connection ended after {have} of {expected} bytes")


def _room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise InputError(f"{folder}: {needed / 1e9:.1f} GB to come, {free / 1e9:.1f} GB free")


def _md5(path: Path) -> str:
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
