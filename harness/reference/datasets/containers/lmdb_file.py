"""Opening an LMDB file to read it, and its keys."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import lmdb

from harness.reference.datasets.parsing.paths import opened
from harness.reference.datasets.parsing.structure_builder import one_line
from harness.reference.errors import InputError

PAGE_HEAD = 24  # bytes before the magic number of the first meta page, with 8-byte words: 16 and the word itself
LONGEST_NUMBER = 16  # digits of a key
MAGIC = b"\xde\xc0\xef\xbe"
_OPEN: dict[tuple[int, Path], tuple[lmdb.Environment, int]] = {}


@contextmanager
def reading(path: Path) -> Iterator[lmdb.Transaction]:
    """A read transaction on a single-file database; raises InputError for what is not one or is cut short."""
    with opened(path) as file:
        head = file.read(PAGE_HEAD)
    if MAGIC not in head:
        raise InputError(f"{path}: not an LMDB file")
    try:
        with _shared(path) as environment, environment.begin(buffers=True) as transaction:
            yield transaction
    except lmdb.Error as error:
        raise InputError(f"{path}: cannot be read as LMDB ({one_line(error)})") from None


@contextmanager
def _shared(path: Path) -> Iterator[lmdb.Environment]:
    """The environment of a file, of which LMDB allows one in a process: parts that are read side by side share it."""
    key = (os.getpid(), path)
    environment, readers = _OPEN.get(key) or (_environment(path), 0)
    _OPEN[key] = environment, readers + 1
    try:
        yield environment
    finally:
        environment, readers = _OPEN.pop(key)
        if readers > 1:
            _OPEN[key] = environment, readers - 1
        else:
            environment.close()


def _environment(path: Path) -> lmdb.Environment:
    environment = lmdb.open(str(path), subdir=False, readonly=True, lock=False, readahead=False, meminit=False)
    try:
        _complete(path, environment)
    except InputError:
        environment.close()
        raise
    return environment


def _complete(path: Path, environment: lmdb.Environment) -> None:
    """Reading past the end of a truncated memory map would kill the process, so that is looked at first."""
    needed = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
    size = path.stat().st_size
    if size < needed:
        raise InputError(f"{path}: truncated ({size} bytes of at least {needed})")


DATA_FILE = "data.mdb"  # of a database that has a folder of its own


def is_ase_database(path: Path) -> bool:
    """Whether an LMDB file holds ASE rows; raises InputError for what is not LMDB."""
    with reading(path) as transaction:
        return transaction.get(b"nextid") is not None


def numbered_keys(transaction: lmdb.Transaction) -> tuple[list[int], list[str]]:
    """All keys that are whole numbers, sorted, and all others."""
    numbers, others = [], []
    for key in transaction.cursor().iternext(keys=True, values=False):
        text = bytes(key).decode("utf-8", "replace")
        if text.isdecimal() and str(int(text)) == text and len(text) < LONGEST_NUMBER:
            numbers.append(int(text))
        else:
            others.append(text)
    return sorted(numbers), others


def keys_there(transaction: lmdb.Transaction, limit: int = 9) -> list[str]:
    """The first keys, as text."""
    found = []
    for key in transaction.cursor().iternext(keys=True, values=False):
        found.append(bytes(key).decode("ascii", "replace"))
        if len(found) == limit:
            break
    return found
