"""Journals of finished parts: one file for each node, to which all ranks of the node append through its first rank.

A journal is a sequence of frames with checksums. The first frame identifies the screening; every other frame contains
the parts that a rank has finished since its previous frame. A rank continues only when its frame is on the disk: if it
is killed, it loses only the parts since then.
"""

from __future__ import annotations

import os
import platform
import secrets
import struct
import threading
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from io import FileIO
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import BinaryIO

import msgspec
import numpy as np

from harness.reference.distributed.group import ProcessGroup
from harness.reference.distributed.launch import LostRank
from harness.reference.programs.screening.part_results import ForeignResults, PartEntry, remove
from harness.reference.programs.screening.scoring import Scores, concatenate_scores

FOLDER = "journals"
JOURNALS_PER_FOLDER = 1000  # limits the number of files in a folder
SUFFIX = ".parts"
FRAME = struct.Struct("<QI")  # the length of the content and its CRC-32

# Appends the content of a frame to a journal, and returns when it is on the disk.
Append = Callable[[bytes], None]


class Header(msgspec.Struct):
    """The content of the first frame of a journal.

    Attributes:
        identity: Hash of everything that results must have in common to be merged (`compute_identity`).
        columns: Names of the columns of the results.
    """

    identity: str
    columns: tuple[str, ...]


class Record(msgspec.Struct, array_like=True):
    """A part in a frame.

    Attributes:
        part: Number of the part.
        candidates: Number of its candidates.
        evaluated: Number of candidates with results.
        checksum: Checksum of all its candidates.
        index: Indices of the retained candidates (int64).
        values: Their scores (float32), row by row, with a value per column.
    """

    part: int
    candidates: int
    evaluated: int
    checksum: int
    index: bytes
    values: bytes


class Journal:
    """A journal, whose file is created when the first parts are appended.

    Args:
        folder: The folder of all journals.
        number: Number of the node in this attempt.
        header: The content of the first frame.
    """

    def __init__(self, folder: Path, number: int, header: Header) -> None:
        self._folder = folder / f"{number // JOURNALS_PER_FOLDER:03d}"
        self._number, self._header = number, header
        self._file: FileIO | None = None
        self._lock = threading.Lock()

    def append(self, content: bytes) -> None:
        """Append a frame and wait until it is on the disk; if the disk is full, raise OSError and append nothing."""
        with self._lock:
            if self._file is None:
                self._folder.mkdir(parents=True, exist_ok=True)
                # no other journal has this part, since earlier attempts did not finish it: the name is new
                first = msgspec.msgpack.decode(content, type=list[Record])[0].part
                self._file = (self._folder / f"{first:08d}-{self._number}{SUFFIX}").open("xb", buffering=0)
            size = self._file.tell()
            frames = [content] if size else [msgspec.msgpack.encode(self._header), content]
            rest = memoryview(b"".join(FRAME.pack(len(frame), zlib.crc32(frame)) + frame for frame in frames))
            try:
                while rest:
                    rest = rest[self._file.write(rest) :]
                os.fsync(self._file.fileno())
            except OSError:
                self._file.truncate(size)
                self._file.seek(size)
                raise

    def close(self) -> None:
        """Close the file, if a part has created it."""
        if self._file is not None:
            self._file.close()


def encode_parts(entries: Sequence[PartEntry], names: tuple[str, ...]) -> bytes:
    """Return the content of a frame with these parts; `names` are the columns of their results."""
    records = []
    for entry in entries:
        results = entry.results or concatenate_scores(names, [])
        counts = (entry.part, entry.candidates, entry.evaluated, entry.checksum)
        records.append(Record(*counts, results.index.tobytes(), results.values.tobytes()))
    return msgspec.msgpack.encode(records)


def _decode_parts(content: bytes, names: tuple[str, ...]) -> Iterator[PartEntry]:
    for record in msgspec.msgpack.decode(content, type=list[Record]):
        values = np.frombuffer(record.values, dtype=np.float32).reshape(-1, len(names))
        results = Scores(names, np.frombuffer(record.index, dtype=np.int64), values)
        yield PartEntry(record.part, record.candidates, record.evaluated, record.checksum, results)


def _read_frames(file: BinaryIO) -> Iterator[bytes]:
    """Yield the contents of the frames up to the first one that is incomplete or damaged."""
    size = os.fstat(file.fileno()).st_size
    while len(prefix := file.read(FRAME.size)) == FRAME.size:
        length, checksum = FRAME.unpack(prefix)
        if not 0 < length <= size - file.tell():
            return
        content = file.read(length)
        if zlib.crc32(content) != checksum:
            return
        yield content


def read_parts(path: Path, identity: str) -> Iterator[PartEntry]:
    """Yield the parts in a journal with their results, up to the first frame that is incomplete or damaged.

    Raises:
        ForeignResults: The journal belongs to another screening.
    """
    with path.open("rb") as file:
        yield from _read_parts(file, path, identity)


def _read_parts(file: BinaryIO, path: Path, identity: str) -> Iterator[PartEntry]:
    frames = _read_frames(file)
    first = next(frames, None)
    if first is None:
        return
    header = msgspec.msgpack.decode(first, type=Header)
    if header.identity != identity:
        raise ForeignResults(f"{path}: results of another screening (other candidates, model or columns)")
    for content in frames:
        yield from _decode_parts(content, header.columns)


def list_journals(folder: Path) -> list[Path]:
    """Return the paths of all journals."""
    return sorted(folder.glob(f"*/*{SUFFIX}"))


def scan(paths: Iterable[Path], identity: str) -> tuple[dict[int, int], list[str]]:
    """Return the number of candidates of each finished part in journals, and a message for each damaged journal.

    Journals whose parts are all in earlier ones, or that have none, are deleted; the others are cut after the last part
    that can be read.

    Raises:
        ForeignResults: A journal belongs to another screening; it is not changed.
    """
    parts: dict[int, int] = {}
    messages = []
    for path in paths:
        with path.open("r+b") as file:
            size, readable, n_known = os.fstat(file.fileno()).st_size, 0, len(parts)
            for entry in _read_parts(file, path, identity):
                parts[entry.part] = entry.candidates
                readable = file.tell()
            if readable < size:
                messages.append(f"{path.name}: damaged or incomplete after {readable} of {size} bytes")
                file.truncate(readable)
        if len(parts) == n_known:
            remove([path])
    return parts, messages


@contextmanager
def open_journal(folder: Path, world: ProcessGroup, header: Header) -> Iterator[Append]:
    """Yield a function that appends the content of a frame to the journal of this node; collective.

    The first rank of each node opens the journal; the other ranks of the node send their frames to it.

    All ranks must have appended their last frame before any rank leaves the context.

    Args:
        folder: The folder of all journals.
        world: The ranks.
        header: The content of the first frame.
    """
    hosts = world.gather(platform.node())
    numbers = {host: number for number, host in enumerate(dict.fromkeys(hosts))}
    first = {host: rank for rank, host in reversed(list(enumerate(hosts)))}
    sizes = Counter(hosts)
    assignments = [(numbers[host], first[host] == rank, sizes[host]) for rank, host in enumerate(hosts)]
    number, is_first, size = world.scatter(assignments)
    key = world.broadcast_object(secrets.token_bytes(32))
    with ExitStack() as stack:
        listener = None
        if is_first and size > 1:
            listener = stack.enter_context(Listener(("127.0.0.1", 0), backlog=size, authkey=key))
        addresses = world.gather(None if listener is None else listener.address)
        address = world.scatter([addresses[first[host]] for host in hosts])
        if not is_first:
            assert address is not None
            yield _make_remote_append(stack.enter_context(Client(address, authkey=key)))
            return
        journal = Journal(folder, number, header)
        stack.callback(journal.close)
        if listener is not None:
            threading.Thread(target=_accept, args=(listener, size - 1, journal.append), daemon=True).start()
        yield journal.append


def _accept(listener: Listener, count: int, append: Append) -> None:
    """Accept `count` other ranks of the node, and serve each of them in a thread of its own."""
    accepted = 0
    while accepted < count:
        try:
            connection = listener.accept()
        except (AuthenticationError, EOFError, ConnectionError):  # not a rank, such as a scan of ports
            continue
        accepted += 1
        threading.Thread(target=_serve, args=(connection, append), daemon=True).start()


def _serve(connection: Connection, append: Append) -> None:
    """Append the frames of another rank, and answer each with an empty message or with the text of the error."""
    with connection, suppress(EOFError, ConnectionError):
        while True:
            content = connection.recv_bytes()
            try:
                append(content)
            except OSError as error:
                connection.send_bytes(str(error).encode())
            else:
                connection.send_bytes(b"")


def _make_remote_append(connection: Connection) -> Append:
    """Return a function that appends a frame through the first rank of the node; it raises LostRank if that ended."""

    def append(content: bytes) -> None:
        try:
            connection.send_bytes(content)
            error = connection.recv_bytes()
        except (EOFError, ConnectionError) as lost:
            raise LostRank("the first rank of this node, which writes the journal, has ended") from lost
        if error:
            raise OSError(error.decode())

    return append
