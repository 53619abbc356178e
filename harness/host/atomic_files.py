"""Small files that are never seen half-written."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import orjson

from harness.protocol.errors import UsageError

INDENTED = orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS | orjson.OPT_APPEND_NEWLINE


def absolute(path: Path) -> Path:
    """Return the path from the root as the user names it: other machines may not have what its links lead to."""
    here = os.environ.get("PWD", "")
    with suppress(OSError):
        if os.path.isabs(here) and os.path.samefile(here, "."):
            return Path(os.path.normpath(os.path.join(here, path)))
    return Path(os.path.abspath(path))


def write_bytes(path: Path | str, content: bytes) -> None:
    """Write beside, then rename into place: a kill or a full disk leaves the old file or none.

    A link in the place of the file is replaced, not followed.
    """
    _write_into(None, str(path), content)


def write_below(root: Path, name: str, content: str | bytes) -> None:
    """Write root/name like write_bytes, but through no link below root; raises UsageError where one is in the way."""
    *folders, last = Path(name).parts
    assert ".." not in folders
    with _folder_below(root, folders) as handle:
        _write_into(handle, last, _encode(content))


def remove_below(root: Path, name: str) -> None:
    """Remove root/name if it is there, through no link below root."""
    *folders, last = Path(name).parts
    with _folder_below(root, folders) as handle, suppress(FileNotFoundError):
        os.unlink(last, dir_fd=handle)


def make_folder_below(root: Path, name: str) -> None:
    """Make the folder root/name if it is not there; raises UsageError where it, or a folder above it, is a link."""
    with _folder_below(root, Path(name).parts):
        pass


def append_below(root: Path, name: str, content: bytes) -> None:
    """Append to the file root/name; raises UsageError where it is a link."""
    with _folder_below(root, ()) as folder:
        try:
            handle = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o644, dir_fd=folder)
        except OSError as error:
            raise _in_the_way(root / name, error) from None
        try:
            _write_all(handle, content, str(root / name))
        finally:
            os.close(handle)


@contextmanager
def _folder_below(root: Path, folders: Sequence[str]) -> Iterator[int]:
    """An open folder, made where it is not there, that was reached through no link; root may be one."""
    root.mkdir(parents=True, exist_ok=True)
    handle = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    place = root
    try:
        for name in folders:
            place /= name
            with suppress(FileExistsError):
                os.mkdir(name, dir_fd=handle)
            try:
                inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=handle)
            except OSError as error:
                raise _in_the_way(place, error) from None
            os.close(handle)
            handle = inner
        yield handle
    finally:
        os.close(handle)


def _in_the_way(path: Path, error: OSError) -> Exception:
    if path.is_symlink():
        return UsageError(f"{path}: a symbolic link, and nothing is written through one: remove it or move it away")
    error.filename = str(path)
    return error


def _encode(content: str | bytes) -> bytes:
    """The text as UTF-8; names of files that are not UTF-8 hold what cannot be written."""
    return content.encode(errors="replace") if isinstance(content, str) else content


def _write_into(folder: int | None, name: str, content: bytes) -> None:
    part = f"{name}.part"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    try:
        handle = os.open(part, flags, 0o644, dir_fd=folder)
    except FileExistsError:  # a kill left it, or it is a link
        os.unlink(part, dir_fd=folder)
        handle = os.open(part, flags, 0o644, dir_fd=folder)
    try:
        _write_all(handle, content, name)
    finally:
        os.close(handle)
    os.replace(part, name, src_dir_fd=folder, dst_dir_fd=folder)


def _write_all(handle: int, content: bytes, name: str) -> None:
    try:
        written = os.write(handle, content)
        while written < len(content):
            written += os.write(handle, content[written:])
    except OSError as error:
        error.filename = name
        raise


def write_text(path: Path | str, text: str) -> None:
    """The text as UTF-8, atomically."""
    write_bytes(path, _encode(text))


def write_json(path: Path | str, value: Any) -> None:
    """The value, or dataclass, as indented JSON, atomically."""
    write_bytes(path, orjson.dumps(value, option=INDENTED))
