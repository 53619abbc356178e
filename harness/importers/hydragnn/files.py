"""Folders and files of logs, each read once, within bounds of time and memory."""

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

# Beyond these, the rest of a line or of a file is not read.
LONGEST_LINE, LARGEST_FILE = 1 << 20, 2 << 30
SNIFFED = 4096
COMPRESSED = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
DAMAGED = (OSError, EOFError, lzma.LZMAError, zlib.error)


class Line(NamedTuple):
    """A line of a file; `is_whole` is false where the file or the line was cut off."""

    number: int
    text: str
    is_whole: bool = True


def list_files(place: Path) -> Iterator[Path]:
    """Yield every regular file at or below a place once, those behind links to folders last."""
    if place.is_file():
        yield place
        return
    waiting, folders, known = [str(place)], set[str](), set[str]()
    while waiting:
        linked: list[str] = []
        for top in waiting:
            for folder, names, files in os.walk(top):
                real = os.path.realpath(folder)
                names[:] = sorted(names) if real not in folders else []
                if real in folders:
                    continue
                folders.add(real)
                linked += [path for name in names if os.path.islink(path := os.path.join(folder, name))]
                for name in sorted(files, key=natural_key):
                    path = os.path.join(folder, name)
                    target = os.path.realpath(path)
                    if os.path.isfile(path) and target not in known:
                        known.add(target)
                        yield Path(path)
        waiting = linked


def natural_key(name: str) -> list[tuple[int, str]]:
    """Order job-9.out before job-10.out."""
    parts = re.split(r"([0-9]{1,18})", name)
    return [(int(part), "") if part.isascii() and part.isdigit() else (-1, part) for part in parts]


def bare_name(path: Path) -> str:
    """Return the file's name without the suffix of a compressed file."""
    return path.stem if path.suffix in COMPRESSED else path.name


def is_text(path: Path) -> bool:
    """Whether the file begins like text.

    Raises what DAMAGED names where it cannot be read.
    """
    with _open(path) as file:
        return b"\0" not in file.read(SNIFFED)


def read_lines(path: Path) -> Iterator[Line]:
    """Yield the lines of a text file; what a progress bar overwrote counts as the same line.

    Raises what DAMAGED names where the file is damaged.
    """
    number = size = 0
    with _open(path) as file:
        while size < LARGEST_FILE and (chunk := file.readline(LONGEST_LINE)):
            size += len(chunk)
            number += 1
            is_whole = chunk.endswith(b"\n")
            if not is_whole:
                size += _skip_line(file) if len(chunk) == LONGEST_LINE else 0
            *before, last = chunk.decode(errors="replace").rstrip("\r\n").split("\r")
            yield from (Line(number, text) for text in before)
            yield Line(number, last, is_whole)


def read_small(path: Path, most: int) -> bytes:
    """Return a file's content, or nothing where it is larger than `most` bytes or cannot be read."""
    with suppress(*DAMAGED), _open(path) as file:
        content = file.read(most + 1)
        return content if len(content) <= most else b""
    return b""


def _skip_line(file: IO[bytes]) -> int:
    size = 0
    while chunk := file.readline(LONGEST_LINE):
        size += len(chunk)
        if chunk.endswith(b"\n") or size > LARGEST_FILE:
            break
    return size


def _open(path: Path) -> IO[bytes]:
    opener = COMPRESSED.get(path.suffix)
    return opener(path, "rb") if opener else path.open("rb")  # type: ignore[operator]
