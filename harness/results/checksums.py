"""Checksums of the files of a bundle, with which a changed file is found, and the line of the change in it."""

from __future__ import annotations

import hashlib
from binascii import crc_hqx
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from harness.protocol.errors import UsageError
from harness.protocol.text import pluralize

# `sha256sum --check manifest-sha256.txt` reads this file too.
MANIFEST = "manifest-sha256.txt"
# A checksum of 16 bits for each line: any change of one or two neighbouring characters of a line changes it.
LINE_CHECKSUMS = "line-checksums.txt"
CRC_START, CRC_DIGITS = 0xFFFF, 4
SHA256_DIGITS = 64


@dataclass(frozen=True)
class Checksums:
    """The checksums of files by name: SHA-256 of each, and the line checksums of each text file.

    Attributes:
        manifest_sha256: the checksum of the manifest, which stands for the whole bundle.
    """

    manifest_sha256: str
    digests: Mapping[str, str]
    lines: Mapping[str, str]

    def find_problem(self, name: str, content: bytes) -> str | None:
        """Return `NAME:LINE: ...` for a file that was changed or added, or None."""
        if name not in self.digests:
            return f"{name}: is not in {MANIFEST}"
        if hashlib.sha256(content).hexdigest() == self.digests[name]:
            return None
        if name not in self.lines:
            return f"{name}: was changed"
        return f"{name}{describe_change(self.lines[name], compute_line_checksums(content))}"

    def list_missing(self, names: Iterable[str]) -> list[str]:
        """Return `NAME: is missing` for each file of the manifest that is not among these names."""
        return [f"{name}: is missing" for name in sorted(set(self.digests) - set(names))]


def describe_change(expected: str, actual: str) -> str:
    """Describe the first line that differs, from the line checksums of a file before and after the change."""
    pairs = zip(_split(expected), _split(actual), strict=False)
    changed = [number for number, (a, b) in enumerate(pairs, 1) if a != b]
    before, after = (len(text) // CRC_DIGITS for text in (expected, actual))
    if before != after:
        first = changed[0] if changed else min(before, after) + 1
        return f":{first}: differs from here on; the file had {before} lines and has {after}"
    if not changed:
        return ": was changed; the checksums of its lines do not show where"
    others = f", and {pluralize(len(changed) - 1, 'more line')}" if len(changed) > 1 else ""
    return f":{changed[0]}: was changed{others}"


def compute_line_checksums(content: bytes) -> str:
    """Return four hexadecimal digits for each line (CRC-16-CCITT)."""
    return "".join(f"{crc_hqx(line, CRC_START):04x}" for line in content.split(b"\n"))


def is_text(content: bytes) -> bool:
    """Return whether a file is text: the start of weights or of a store contains zero bytes."""
    return b"\0" not in content[:4096]


def build_checksum_files(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return the two files with the checksums of these files; the manifest includes the file of line checksums."""
    lines = "".join(
        f"{name}\t{compute_line_checksums(files[name])}\n" for name in sorted(files) if is_text(files[name])
    )
    contents = {**files, LINE_CHECKSUMS: lines.encode()}
    manifest = "".join(f"{hashlib.sha256(contents[name]).hexdigest()}  {name}\n" for name in sorted(contents))
    return {MANIFEST: manifest.encode(), LINE_CHECKSUMS: contents[LINE_CHECKSUMS]}


def parse_checksum_files(source: str, files: Mapping[str, bytes]) -> Checksums:
    """Return the checksums in the two files; raise UsageError with file and line if they cannot be read."""
    digests, lines = {}, {}
    for number, (digest, name) in _parse_rows(source, MANIFEST, files[MANIFEST], "  "):
        if len(digest) != SHA256_DIGITS or set(digest) - set("0123456789abcdef"):
            raise UsageError(f"{source}: {MANIFEST}:{number}: expected a SHA-256 of 64 digits, got {digest[:80]!r}")
        digests[name] = digest
    for _, (name, checksums) in _parse_rows(source, LINE_CHECKSUMS, files.get(LINE_CHECKSUMS, b""), "\t"):
        lines[name] = checksums
    return Checksums(hashlib.sha256(files[MANIFEST]).hexdigest(), digests, lines)


def _parse_rows(source: str, name: str, content: bytes, separator: str) -> Iterator[tuple[int, tuple[str, str]]]:
    for number, row in enumerate(content.decode(errors="replace").splitlines(), 1):
        columns = row.split(separator, 1)
        if len(columns) < 2:
            raise UsageError(f"{source}: {name}:{number}: expected two columns, got {row[:80]!r}")
        yield number, (columns[0], columns[1])


def _split(checksums: str) -> Iterator[str]:
    return (checksums[k : k + CRC_DIGITS] for k in range(0, len(checksums), CRC_DIGITS))
