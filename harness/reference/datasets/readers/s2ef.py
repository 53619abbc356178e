"""Readers of the S2EF ("structure to energy and forces") files of the Open Catalyst datasets.

OC20 is extended XYZ with text files; OC22 and ODAC23 are LMDB files of pickled graphs.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO, NamedTuple

import lmdb
import numpy as np

from harness.reference.data.structure_table import RejectedStructure, StructureTable
from harness.reference.datasets.containers.lmdb_file import DATA_FILE, list_first_keys, list_keys, open_transaction
from harness.reference.datasets.containers.safe_pickle import load_graph, load_pickle
from harness.reference.datasets.parsing.base import MAX_STRUCTURE_BYTES, DatasetFormat, FileChunk
from harness.reference.datasets.parsing.constants import format_formula
from harness.reference.datasets.parsing.paths import (
    CHUNK_STRUCTURES,
    is_system_file,
    list_files,
    open_file,
    parse_chunk_bounds,
)
from harness.reference.datasets.parsing.structure_builder import (
    InvalidStructure,
    StructureRow,
    build_each,
    build_row,
    describe_missing_key,
    require_key,
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
    """A line of a text file of OC20: the name of the system, and the name of the frame."""

    name: str
    frame: str


def list_text_chunks(paths: Sequence[Path]) -> list[FileChunk]:
    """Return one chunk for each file (5,000 frames in OC20) or archive; decompressed copies are preferred."""
    chunks = [FileChunk(path, label) for path, label in list_files(paths, ENDINGS, "extended XYZ files")]
    next(_iter_text_samples(chunks[0]), None)
    return chunks


def read_text_chunk(chunk: FileChunk) -> Iterator[StructureTable | RejectedStructure]:
    """Yield frames in the order of the file, with total DFT energies.

    OC20's text files name the system of each frame, which becomes its group. They also give a reference energy, the
    difference between the total and the adsorption energy, which is not read.
    """
    yield from tabulate_rows(build_each(_iter_text_samples(chunk), _build_text_row))


def _iter_text_samples(chunk: FileChunk) -> Iterator[tuple[str, Any]]:
    if chunk.path.name.endswith(ARCHIVES):
        yield from _iter_archive(chunk)
        return
    with _open_text(chunk.path) as file:
        yield from _iter_file(file, str(chunk.path), chunk.key, _find_text_file(chunk.path))


class _Bounded(io.RawIOBase):
    """A file that cannot be read in pieces larger than a structure, so that a damaged header cannot fill the memory."""

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


def _iter_archive(chunk: FileChunk) -> Iterator[tuple[str, Any]]:
    try:
        with (
            open_file(chunk.path, accepted=(GZIP, "tar")) as packed,
            unpack_stream(packed, detect_compression(packed.peek(HEAD_BYTES))) as plain,  # type: ignore[attr-defined]
            tarfile.open(fileobj=_Bounded(plain), mode="r:") as archive,
        ):
            for member in archive:
                name = member.name.removeprefix("./")
                is_data = member.isfile() and name.endswith(MEMBERS) and not is_system_file(Path(name).name)
                content = archive.extractfile(member) if is_data else None
                if content is not None:
                    yield from _iter_member(content, f"{chunk.path}:{member.name}", f"{chunk.key}/{name}")
    except (*DECODING_ERRORS, tarfile.TarError) as error:
        raise InputError(f"{chunk.path}: truncated or not a compressed archive ({get_first_line(error)})") from None


def _iter_member(content: Any, where: str, label: str) -> Iterator[tuple[str, Any]]:
    head = io.BufferedReader(content, 1 << 16)
    with unpack_stream(head, detect_compression(head.peek(HEAD_BYTES))) as plain:
        yield from _iter_file(io.TextIOWrapper(plain, encoding="utf-8"), where, label, None)


@contextmanager
def _open_text(path: Path) -> Iterator[IO[str]]:
    with open_unpacked(path, (XZ, GZIP, BZIP2)) as plain:
        yield io.TextIOWrapper(plain, encoding="utf-8")


def _find_text_file(path: Path) -> Path | None:
    """Return the text file of OC20 that belongs to a file of frames, or None."""
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
    surplus = 0 if systems is None else sum(1 for _ in systems)
    if surplus:
        raise InputError(f"{where}: truncated, {count} frames, but its text file has {count + surplus} lines")
    if not count:
        raise InputError(f"{where}: holds no frames")


def _build_text_row(where: str, sample: tuple[FrameText, System | None]) -> StructureRow:
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


TEXT_FORMAT = DatasetFormat(
    "s2ef_text", "<n>.extxyz.xz with <n>.txt.xz, *.extxyz, or *.tar.gz of them", list_text_chunks, read_text_chunk
)


MAX_KEYS_PER_ENTRY = 1000  # if keys go up to more per stored entry, the file is damaged
RESERVED = frozenset({"length", "metadata"})
ENERGIES = ("raw_y", "energy", "y")  # of several names in a file, the first one here is the total DFT energy


def list_lmdb_chunks(paths: Sequence[Path]) -> list[FileChunk]:
    """Return ranges of keys of each file."""
    chunks = []
    for path, label in list_files(paths, (".lmdb", DATA_FILE), "LMDB files"):
        with open_transaction(path) as transaction:
            count = _count_structures(path, transaction)
        chunks += [
            FileChunk(path, f"{label} {first}:{min(first + CHUNK_STRUCTURES, count)}")
            for first in range(0, count, CHUNK_STRUCTURES)
        ]
    return chunks


def _count_structures(path: Path, transaction: lmdb.Transaction) -> int:
    """Return the number of structures, whose keys are 0, 1, ...; raises InputError if 'length' is inconsistent."""
    if transaction.get(b"0") is None:
        raise InputError(f"{path}: not an S2EF LMDB, {describe_missing_key('0', list_first_keys(transaction))}")
    entries = int(transaction.stat()["entries"])
    length = transaction.get(b"length")
    count = entries - (length is not None)
    if transaction.get(b"%d" % (count - 1)) is None or transaction.get(b"%d" % count) is not None:
        numbers, _ = list_keys(transaction)
        count = numbers[-1] + 1
    if count > MAX_KEYS_PER_ENTRY * entries:
        raise InputError(f"{path}: keys up to {count - 1}, but there are only {entries} entries; damaged?")
    if length is None:
        return count
    try:
        announced = int(load_pickle(bytes(length)))
    except (InvalidStructure, TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{path}: 'length' cannot be read ({error})") from None
    if announced < count:
        raise InputError(f"{path}: 'length' is {announced}, but there are {count} structures")
    if announced > MAX_KEYS_PER_ENTRY * entries:
        raise InputError(f"{path}: 'length' is {announced}, but there are only {entries} entries; damaged?")
    return announced


def read_lmdb_chunk(chunk: FileChunk) -> Iterator[StructureTable | RejectedStructure]:
    """Yield structures in the order of their keys, with total DFT energies: `raw_y`, `energy`, or else `y` (OC22).

    In ODAC23, `y` is the adsorption energy (https://github.com/facebookresearch/fairchem/issues/633).
    """
    label, first, stop = parse_chunk_bounds(chunk)
    with open_transaction(chunk.path) as transaction:
        yield from _reject_unknown(transaction, label) if first == 0 else ()
        yield from tabulate_rows(build_each(_iter_lmdb_samples(transaction, label, first, stop), _build_lmdb_row))


def _iter_lmdb_samples(transaction: lmdb.Transaction, label: str, first: int, stop: int) -> Iterator[tuple[str, Any]]:
    for k in range(first, stop):
        where = f"{label}/{k}"
        value = transaction.get(b"%d" % k)
        yield where, RejectedStructure(where, "missing row", "no such key") if value is None else value


def _build_lmdb_row(where: str, value: memoryview) -> StructureRow:
    graph = load_graph(value)
    numbers = np.asarray(require_key(graph, "atomic_numbers"))
    announced = graph.get("natoms")
    if announced is not None and int(np.asarray(announced).reshape(-1)[0]) != numbers.size:
        raise InvalidStructure(
            "shape", f"natoms is {int(np.asarray(announced).reshape(-1)[0])}, but there are {numbers.size} numbers"
        )
    energy = next((graph[name] for name in ENERGIES if name in graph), None)
    if energy is None and "y_relaxed" in graph:
        raise InvalidStructure(
            "unlabelled", "an IS2RE graph: y_relaxed is the energy of another geometry; use S2EF files"
        )
    if energy is None:
        raise InvalidStructure("unlabelled", describe_missing_key("y", graph))
    system = graph.get("sid")
    return build_row(
        where,
        format_formula(numbers) if system is None else str(np.asarray(system).reshape(-1)[0]),
        numbers,
        require_key(graph, "pos"),
        energy=energy,
        forces=next((graph[name] for name in ("force", "forces") if name in graph), None),
        cell=np.asarray(require_key(graph, "cell")).reshape(-1, 3),
        periodic=np.asarray(graph.get("pbc", True)).reshape(-1),
        charge=graph.get("charge"),
        multiplicity=graph.get("spin"),
        names=graph,
    )


def _reject_unknown(transaction: lmdb.Transaction, label: str) -> Iterator[RejectedStructure]:
    """Yield a rejection for each entry that is neither a structure nor a reserved key."""
    last = int(transaction.stat()["entries"]) - 1
    known = sum(transaction.get(name.encode()) is not None for name in RESERVED)
    if transaction.get(b"%d" % (last - known)) is None:
        for name in list_keys(transaction)[1]:
            if name not in RESERVED:
                yield RejectedStructure(
                    f"{label}/{name[:40]}", "unknown entry", "its key is not a whole number, as those of structures are"
                )


LMDB_FORMAT = DatasetFormat("s2ef_lmdb", "*.lmdb files, or folders of them", list_lmdb_chunks, read_lmdb_chunk)
