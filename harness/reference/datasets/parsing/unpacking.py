"""Detection of the kind of a file by its first bytes, and decompression in bounded memory."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from harness.reference.datasets.parsing.structure_builder import InvalidStructure
from harness.reference.errors import InputError, get_first_line

HEAD_BYTES = 512
MAX_DICTIONARY_BYTES = 256 << 20  # dictionary of an xz file; `xz -9` needs 65 MB
CHUNK = 1 << 20
XZ, GZIP, BZIP2 = "xz", "gzip", "bzip2"
MAGIC = (
    (b"\xfd7zXZ\x00", XZ),
    (b"\x1f\x8b", GZIP),
    (b"BZh", BZIP2),
    (b"PK\x03\x04", "zip"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"7z\xbc\xaf\x27\x1c", "7z"),
    (b"Rar!", "rar"),
)
UNPACK_COMMANDS = {
    XZ: "xz -dc",
    GZIP: "gzip -dc",
    BZIP2: "bzip2 -dc",
    "zstd": "zstd -dc",
    "zip": "unzip",
    "7z": "7z x",
    "rar": "unrar x",
}
GIT_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
WEB_PAGE_STARTS = (b"<!doctype html", b"<html", b"<head", b"<?xml", b"<error")
DECODING_ERRORS = (OSError, EOFError, lzma.LZMAError, zlib.error, UnicodeDecodeError)


def detect_compression(head: bytes) -> str:
    """Return the name of the compression of a file by its first bytes, or ""."""
    return next((name for magic, name in MAGIC if head.startswith(magic)), "")


def reject_other_kinds(path: Path, head: bytes, accepted: Collection[str] = ()) -> None:
    """Raise InputError for a file that is empty, a Git LFS pointer, a web page, or compressed.

    Args:
        path: The file.
        head: Its first HEAD_BYTES.
        accepted: The compressions (and "tar") that the reader can unpack.
    """
    if not head:
        raise InputError(f"{path}: the file is empty; the download did not finish, fetch it again")
    if head.startswith(GIT_LFS_POINTER):
        raise InputError(f"{path}: a Git LFS pointer instead of the file; run `git lfs pull` in its repository")
    if head.removeprefix(b"\xef\xbb\xbf").lstrip().lower().startswith(WEB_PAGE_STARTS):
        raise InputError(
            f"{path}: a web page (HTML or XML), not the data; sign in or accept the terms, and fetch it again"
        )
    kind = detect_compression(head)
    if kind and kind not in accepted:
        raise InputError(
            f"{path}: packed with {kind}, where a plain file is expected; unpack it first (`{UNPACK_COMMANDS[kind]}`)"
        )
    if head[257:262] == b"ustar" and "tar" not in accepted:
        raise InputError(f"{path}: a tar archive; unpack it first (`tar -xf`) and pass the folder")


class XZFile(io.RawIOBase):
    """The content of an xz file, with a decoder of at most MAX_DICTIONARY_BYTES."""

    def __init__(self, packed: BinaryIO) -> None:
        super().__init__()
        self._packed = packed
        self._decoder = self._make_decoder()
        self._ended = False

    @staticmethod
    def _make_decoder() -> lzma.LZMADecompressor:
        return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MAX_DICTIONARY_BYTES)

    def readable(self) -> bool:
        """Return True: the file can be read."""
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        """Fill the buffer with the next piece of content, and return its length; 0 at the end."""
        content = self._read_next(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def _read_next(self, size: int) -> bytes:
        while not self._ended:
            if self._decoder.eof:
                rest = (self._decoder.unused_data or self._packed.read(CHUNK)).lstrip(b"\x00")
                if not rest:
                    self._ended = True
                    break
                self._decoder = self._make_decoder()
                content = self._decoder.decompress(rest, size)
            else:
                chunk = self._packed.read(CHUNK) if self._decoder.needs_input else b""
                if not chunk and self._decoder.needs_input:
                    raise EOFError("the compressed data end too early")
                content = self._decoder.decompress(chunk, size)
            if content:
                return content
        return b""


def unpack_stream(packed: BinaryIO, kind: str) -> BinaryIO:
    """Return a stream of the decompressed content of an open file."""
    if kind == XZ:
        return io.BufferedReader(XZFile(packed), CHUNK)
    if kind == GZIP:
        return gzip.GzipFile(fileobj=packed)  # type: ignore[return-value]
    return bz2.BZ2File(packed) if kind == BZIP2 else packed  # type: ignore[return-value]


@contextmanager
def open_unpacked(path: Path, accepted: Collection[str] = (XZ, GZIP, BZIP2)) -> Iterator[BinaryIO]:
    """Open the decompressed content of a file, whatever its name; errors while it is read become InputError too."""
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
            reject_other_kinds(path, head, accepted)
            file.seek(0)
            with unpack_stream(file, detect_compression(head)) as plain:
                yield plain
    except DECODING_ERRORS as error:
        if isinstance(error, OSError) and error.strerror:
            raise InputError(f"{path}: cannot be read ({error.strerror})") from None
        raise InputError(f"{path}: truncated, or not the text that its name says ({get_first_line(error)})") from None


def inflate(data: bytes | memoryview, limit: int) -> bytes:
    """Decompress a zlib record; raises InvalidStructure if it is damaged or larger than the limit."""
    decoder = zlib.decompressobj()
    try:
        result = decoder.decompress(data, limit)
    except zlib.error as error:
        raise InvalidStructure("corrupt", f"not compressed JSON ({get_first_line(error)})") from None
    if decoder.unconsumed_tail or (len(result) == limit and not decoder.eof):
        raise InvalidStructure("too large", f"expands to more than {limit >> 20} MB")
    if not decoder.eof:
        raise InvalidStructure("corrupt", "not compressed JSON (truncated)")
    return result
