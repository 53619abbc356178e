"""Extended XYZ of the Open Catalyst datasets: OC20's <n>.extxyz.xz with <n>.txt.xz, and archives of extxyz files."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO, NamedTuple

from harness.reference.data.structure_table import RejectedStructure, StructureTable
from harness.reference.datasets.parsing.base import MAX_STRUCTURE_BYTES, DatasetFormat, FileChunk
from harness.reference.datasets.parsing.constants import format_formula
from harness.reference.datasets.parsing.paths import is_system_file, list_files, open_file
from harness.reference.datasets.parsing.structure_builder import (
    InvalidStructure,
    StructureRow,
    build_each,
    build_row,
    describe_missing_key,
    tabulate_rows,
)
from harness.reference.datasets.parsing.unpacking import (
    BZIP2,
    DECODING_ERRORS,
    GZIP,
    HEAD_BYTES,
    XZ,
    detect_compression,
    open_unpacked,
    unpack_stream,
)
from harness.reference.datasets.readers.extxyz import MAX_LINE, FrameText, iter_frames, parse_frame
from harness.reference.errors import InputError, get_first_line

PLAIN = (".extxyz", ".xyz")
MEMBERS = (*PLAIN, *(f"{name}{packed}" for name in PLAIN for packed in (".xz", ".gz", ".bz2")))
ARCHIVES = (".tar.gz", ".tgz")
ENDINGS = (*MEMBERS, *ARCHIVES)
SYSTEM_KEYS = ("sid", "system_id", "_name", "name")
CHARGE_KEYS, SPIN_KEYS = ("charge", "total_charge"), ("spin", "multiplicity", "spin_multiplicity")


class System(NamedTuple):
    """A line of OC20's text files: the names of a system and of its frame."""

    name: str
    frame: str


def list_chunks(paths: Sequence[Path]) -> list[FileChunk]:
    """Return one chunk for each file (5,000 frames in OC20) or archive; a decompressed copy of a file is preferred."""
    chunks = [FileChunk(path, label) for path, label in list_files(paths, ENDINGS, "extended XYZ files")]
    next(_iter_samples(chunks[0]), None)
    return chunks


def read_chunk(part: FileChunk) -> Iterator[StructureTable | RejectedStructure]:
    """Yield frames in the order of the file, with the energies of the frames themselves: DFT totals.

    OC20's text file names the system of each frame, which becomes its group; its reference energy, which turns totals
    into adsorption energies, is one number per system, which the fit of reference energies accounts for.
    """
    yield from tabulate_rows(build_each(_iter_samples(part), _build_row))


def _iter_samples(part: FileChunk) -> Iterator[tuple[str, Any]]:
    if part.path.name.endswith(ARCHIVES):
        yield from _iter_archive(part)
        return
    with _open_text(part.path) as file:
        yield from _iter_file(file, str(part.path), part.key, _find_text_file(part.path))


class _Bounded(io.RawIOBase):
    """A file whose headers cannot request more than the size of a structure."""

    def __init__(self, plain: BinaryIO) -> None:
        super().__init__()
        self._plain = plain

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._plain.seek(offset, whence)

    def tell(self) -> int:
        return self._plain.tell()

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MAX_STRUCTURE_BYTES:
            raise tarfile.ReadError(f"a header of more than {MAX_STRUCTURE_BYTES >> 20} MB")
        return self._plain.read(size)


def _iter_archive(part: FileChunk) -> Iterator[tuple[str, Any]]:
    try:
        with (
            open_file(part.path, accepted=(GZIP, "tar")) as packed,
            unpack_stream(packed, detect_compression(packed.peek(HEAD_BYTES))) as plain,  # type: ignore[attr-defined]
            tarfile.open(fileobj=_Bounded(plain), mode="r:") as archive,
        ):
            for member in archive:
                name = member.name.removeprefix("./")
                is_data = member.isfile() and name.endswith(MEMBERS) and not is_system_file(Path(name).name)
                content = archive.extractfile(member) if is_data else None
                if content is not None:
                    yield from _iter_member(content, f"{part.path}:{member.name}", f"{part.key}/{name}")
    except (*DECODING_ERRORS, tarfile.TarError) as error:
        raise InputError(f"{part.path}: truncated or not a compressed archive ({get_first_line(error)})") from None


def _iter_member(content: Any, where: str, label: str) -> Iterator[tuple[str, Any]]:
    head = io.BufferedReader(content, 1 << 16)
    with unpack_stream(head, detect_compression(head.peek(HEAD_BYTES))) as plain:
        yield from _iter_file(io.TextIOWrapper(plain, encoding="utf-8"), where, label, None)


@contextmanager
def _open_text(path: Path) -> Iterator[IO[str]]:
    with open_unpacked(path, (XZ, GZIP, BZIP2)) as plain:
        yield io.TextIOWrapper(plain, encoding="utf-8")


def _find_text_file(path: Path) -> Path | None:
    """Return OC20's text file of a trajectory, if there is one."""
    stem = next(
        (path.name.removesuffix(e) for e in sorted(MEMBERS, key=len, reverse=True) if path.name.endswith(e)), ""
    )
    return next((p for e in ("", ".xz", ".gz", ".bz2") if (p := path.with_name(f"{stem}.txt{e}")).is_file()), None)


def _iter_systems(path: Path) -> Iterator[System]:
    """Yield the systems of OC20's text file, line by line."""
    with _open_text(path) as file:
        k = 0
        while line := file.readline(MAX_LINE):
            k += 1
            words = line.strip().split(",")
            if len(words) != 3:
                raise InputError(f"{path}, line {k}: {line.strip()[:40]!r}, expected system,frame,reference energy")
            yield System(words[0], words[1])


def _iter_file(file: IO[str], where: str, label: str, text_file: Path | None) -> Iterator[tuple[str, Any]]:
    count = 0
    systems = None if text_file is None else _iter_systems(text_file)
    for count, text in enumerate(iter_frames(file, where), start=1):
        system = None if systems is None else next(systems, None)
        if systems is not None and system is None:
            raise InputError(f"{where}: frame {count}, but its text file has {count - 1} lines")
        yield f"{label}/{count - 1}", (text, system)
    more = 0 if systems is None else sum(1 for _ in systems)
    if more:
        raise InputError(f"{where}: truncated, {count} frames where its text file has {count + more} lines")
    if not count:
        raise InputError(f"{where}: holds no frames")


def _build_row(where: str, sample: tuple[FrameText, System | None]) -> StructureRow:
    text, system = sample
    columns = parse_frame(text)
    if "energy" not in text.keys:
        raise InvalidStructure("unlabelled", describe_missing_key("energy", columns["names"]))
    named = next((str(text.keys[key]) for key in SYSTEM_KEYS if key in text.keys), None)
    return build_row(
        where if system is None else f"{where}/{system.name}/{system.frame}",
        system.name if system is not None else named or format_formula(columns["numbers"]),
        **columns,
        energy=text.keys["energy"],
        charge=next((text.keys[key] for key in CHARGE_KEYS if key in text.keys), None),
        multiplicity=next((text.keys[key] for key in SPIN_KEYS if key in text.keys), None),
    )


FORMAT = DatasetFormat(
    "s2ef_text", "<n>.extxyz.xz with <n>.txt.xz, *.extxyz, or *.tar.gz of them", list_chunks, read_chunk
)
