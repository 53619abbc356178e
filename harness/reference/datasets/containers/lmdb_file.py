"""Read transactions and keys of LMDB files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import lmdb

from harness.reference.datasets.parsing.paths import open_file
from harness.reference.errors import InputError, get_first_line

PAGE_HEAD = 24  # bytes of the first meta page up to the end of its magic number
MAX_DIGITS = 15  # maximum number of digits of a numeric key
MAGIC = b"\xde\xc0\xef\xbe"
_OPEN: dict[tuple[int, Path], tuple[lmdb.Environment, int]] = {}
DATA_FILE = "data.mdb"  # the data file of a database that is a folder


@contextmanager
def open_transaction(path: Path) -> Iterator[lmdb.Transaction]:
    """Yield a read transaction on a single-file database; raises InputError for other or truncated files."""
    with open_file(path) as file:
        head = file.read(PAGE_HEAD)
    if MAGIC not in head:
        raise InputError(f"{path}: not an LMDB file")
    try:
        with _share_environment(path) as environment, environment.begin(buffers=True) as transaction:
            yield transaction
    except lmdb.Error as error:
        raise InputError(f"{path}: cannot be read as LMDB ({get_first_line(error)})") from None


@contextmanager
def _share_environment(path: Path) -> Iterator[lmdb.Environment]:
    """Yield the environment of a file; LMDB allows one per process, so chunks that are read concurrently share it."""
    key = (os.getpid(), path)
    environment, readers = _OPEN.get(key) or (_open_environment(path), 0)
    _OPEN[key] = environment, readers + 1
    try:
        yield environment
    finally:
        environment, readers = _OPEN.pop(key)
        if readers > 1:
            _OPEN[key] = environment, readers - 1
        else:
            environment.close()


def _open_environment(path: Path) -> lmdb.Environment:
    environment = lmdb.open(str(path), subdir=False, readonly=True, lock=False, readahead=False, meminit=False)
    try:
        _check_complete(path, environment)
    except InputError:
        environment.close()
        raise
    return environment


def _check_complete(path: Path, environment: lmdb.Environment) -> None:
    """Raise InputError if the file is truncated; reading past the end of its memory map would kill the process."""
    needed = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
    size = path.stat().st_size
    if size < needed:
        raise InputError(f"{path}: truncated ({size} bytes of at least {needed})")


def is_ase_database(path: Path) -> bool:
    """Return whether an LMDB file contains ASE rows; raises InputError if it is not an LMDB file."""
    with open_transaction(path) as transaction:
        return transaction.get(b"nextid") is not None


def list_keys(transaction: lmdb.Transaction) -> tuple[list[int], list[str]]:
    """Return the keys that are whole numbers, sorted, and all others."""
    numbers, others = [], []
    for key in transaction.cursor().iternext(keys=True, values=False):
        text = bytes(key).decode("utf-8", "replace")
        if text.isdecimal() and str(int(text)) == text and len(text) <= MAX_DIGITS:
            numbers.append(int(text))
        else:
            others.append(text)
    return sorted(numbers), others


def list_first_keys(transaction: lmdb.Transaction, limit: int = 9) -> list[str]:
    """Return at most `limit` keys, the first ones of the file, as text."""
    keys = []
    for key in transaction.cursor().iternext(keys=True, values=False):
        keys.append(bytes(key).decode("ascii", "replace"))
        if len(keys) == limit:
            break
    return keys
