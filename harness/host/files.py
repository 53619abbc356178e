"""Write files atomically: a reader sees the old content or the new one, never a part of it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import orjson

from harness.protocol.errors import UsageError

JSON_OPTIONS = orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS | orjson.OPT_APPEND_NEWLINE


def make_absolute(path: Path) -> Path:
    """Return the absolute path without resolving links, since other machines may not have their targets."""
    current = os.environ.get("PWD", "")
    with suppress(OSError):
        if os.path.isabs(current) and os.path.samefile(current, "."):
            return Path(os.path.normpath(os.path.join(current, path)))
    return Path(os.path.abspath(path))


def expand_path(path: str) -> str:
    """Return a path with its environment variables and a leading ~ expanded."""
    return os.path.expanduser(os.path.expandvars(path))


def write_bytes(path: Path | str, content: bytes) -> None:
    """Write a file atomically: if the process is killed or the disk is full, the old file remains.

    The content is written to PATH.part, which is then renamed. A link at the path is replaced, not followed.
    """
    _replace(None, str(path), content)


def write_text(path: Path | str, text: str) -> None:
    """Write text as UTF-8, atomically."""
    write_bytes(path, _encode(text))


def write_json(path: Path | str, value: Any) -> None:
    """Write a value or dataclass as indented JSON, atomically."""
    write_bytes(path, orjson.dumps(value, option=JSON_OPTIONS))


def write_below(root: Path, name: str, content: str | bytes) -> None:
    """Write the file root/name atomically, where name may contain folders, without following symbolic links below root.

    Raises:
        UsageError: a folder below root is a symbolic link.
    """
    *folders, file_name = Path(name).parts
    assert ".." not in folders
    with _open_folder_below(root, folders) as descriptor:
        _replace(descriptor, file_name, _encode(content))


def remove_below(root: Path, name: str) -> None:
    """Remove the file root/name if it exists, without following symbolic links below root."""
    *folders, file_name = Path(name).parts
    with _open_folder_below(root, folders) as descriptor, suppress(FileNotFoundError):
        os.unlink(file_name, dir_fd=descriptor)


def create_folder_below(root: Path, name: str) -> None:
    """Create the folder root/name if it does not exist; raise UsageError if a folder below root is a symbolic link."""
    with _open_folder_below(root, Path(name).parts):
        pass


def append_below(root: Path, name: str, content: bytes) -> None:
    """Append to the file root/name, which is created if necessary; raise UsageError if it is a symbolic link."""
    with _open_folder_below(root, ()) as folder:
        try:
            descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o644, dir_fd=folder)
        except OSError as error:
            raise _explain_error(root / name, error) from None
        try:
            _write_all(descriptor, content, str(root / name))
        finally:
            os.close(descriptor)


@contextmanager
def _open_folder_below(root: Path, folders: Sequence[str]) -> Iterator[int]:
    """Open a folder without following symbolic links below root, and create missing folders; root may be a link."""
    root.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    path = root
    try:
        for name in folders:
            path /= name
            with suppress(FileExistsError):
                os.mkdir(name, dir_fd=descriptor)
            try:
                inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=descriptor)
            except OSError as error:
                raise _explain_error(path, error) from None
            os.close(descriptor)
            descriptor = inner
        yield descriptor
    finally:
        os.close(descriptor)


def _explain_error(path: Path, error: OSError) -> Exception:
    if path.is_symlink():
        return UsageError(f"{path}: is a symbolic link, and the harness does not write through links; remove it")
    error.filename = str(path)
    return error


def _encode(content: str | bytes) -> bytes:
    """Encode text as UTF-8, and replace the surrogates that Python puts into file names that are not UTF-8."""
    return content.encode(errors="replace") if isinstance(content, str) else content


def _replace(folder: int | None, name: str, content: bytes) -> None:
    """Write NAME.part in an open folder (None: `name` is a path), and rename it to NAME."""
    part = f"{name}.part"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    try:
        descriptor = os.open(part, flags, 0o644, dir_fd=folder)
    except FileExistsError:  # left by a killed process, or a link
        os.unlink(part, dir_fd=folder)
        descriptor = os.open(part, flags, 0o644, dir_fd=folder)
    try:
        _write_all(descriptor, content, name)
    finally:
        os.close(descriptor)
    os.replace(part, name, src_dir_fd=folder, dst_dir_fd=folder)


def _write_all(descriptor: int, content: bytes, name: str) -> None:
    try:
        written = os.write(descriptor, content)
        while written < len(content):
            written += os.write(descriptor, content[written:])
    except OSError as error:
        error.filename = name
        raise
