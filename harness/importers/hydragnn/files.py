"""List and read log files, each file once, within limits of the length of a line and of a file."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import re
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, NamedTuple

# The readers skip the rest of a longer line or a larger file.
MAX_LINE_BYTES, MAX_FILE_BYTES = 1 << 20, 2 << 30
SNIFFED_BYTES = 4096
OPENERS = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
READ_ERRORS = (OSError, EOFError, lzma.LZMAError, zlib.error)


class Line(NamedTuple):
    """A line of a file; `is_whole` is false if the file or the line is truncated."""

    number: int
    text: str
    is_whole: bool = True


def list_files(path: Path) -> Iterator[Path]:
    """Yield the file, or every regular file below the folder once; files behind links to folders come last."""
    if path.is_file():
        yield path
        return
    roots, folders, targets = [str(path)], set[str](), set[str]()
    while roots:
        linked: list[str] = []
        for root in roots:
            for folder, subfolders, files in os.walk(root):
                real = os.path.realpath(folder)
                subfolders[:] = sorted(subfolders) if real not in folders else []
                if real in folders:
                    continue
                folders.add(real)
                linked += [link for name in subfolders if os.path.islink(link := os.path.join(folder, name))]
                for name in sorted(files, key=natural_key):
                    file = os.path.join(folder, name)
                    target = os.path.realpath(file)
                    if os.path.isfile(file) and target not in targets:
                        targets.add(target)
                        yield Path(file)
        roots = linked


def natural_key(name: str) -> list[tuple[int, str]]:
    """Return a key that sorts job-9.out before job-10.out."""
    parts = re.split(r"([0-9]{1,18})", name)
    return [(int(part), "") if part.isascii() and part.isdigit() else (-1, part) for part in parts]


def strip_compression_suffix(path: Path) -> str:
    """Return the file's name without a suffix such as .gz."""
    return path.stem if path.suffix in OPENERS else path.name


def is_text(path: Path) -> bool:
    """Return whether the file begins like text; raise one of READ_ERRORS if it cannot be read."""
    with _open(path) as file:
        return b"\0" not in file.read(SNIFFED_BYTES)


def read_lines(path: Path) -> Iterator[Line]:
    """Yield the lines of a text file; the parts of a line that a progress bar overwrote have the same number.

    Raises:
        READ_ERRORS: the file is damaged.
    """
    number = size = 0
    with _open(path) as file:
        while size < MAX_FILE_BYTES and (chunk := file.readline(MAX_LINE_BYTES)):
            size += len(chunk)
            number += 1
            is_whole = chunk.endswith(b"\n")
            if not is_whole:
                size += _skip_line(file) if len(chunk) == MAX_LINE_BYTES else 0
            *before, last = chunk.decode(errors="replace").rstrip("\r\n").split("\r")
            yield from (Line(number, text) for text in before)
            yield Line(number, last, is_whole)


def read_small(path: Path, max_bytes: int) -> bytes:
    """Return a file's content; empty if the file is larger than `max_bytes` or cannot be read."""
    with suppress(*READ_ERRORS), _open(path) as file:
        content = file.read(max_bytes + 1)
        return content if len(content) <= max_bytes else b""
    return b""


def _skip_line(file: IO[bytes]) -> int:
    size = 0
    while chunk := file.readline(MAX_LINE_BYTES):
        size += len(chunk)
        if chunk.endswith(b"\n") or size > MAX_FILE_BYTES:
            break
    return size


def _open(path: Path) -> IO[bytes]:
    opener = OPENERS.get(path.suffix)
    return opener(path, "rb") if opener else path.open("rb")  # type: ignore[operator]
