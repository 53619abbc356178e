"""Extended XYZ of the Open Catalyst datasets: OC20's <n>.extxyz.xz with <n>.txt.xz, and archives of extxyz files."""

from __future__ import annotations

import io
import lzma
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from harness.reference.datasets.formats.composition import formula
from harness.reference.datasets.formats.extxyz import Text, frames, parsed
from harness.reference.datasets.formats.gather import Row, Unfit, gathered, made, missing, one_line, row
from harness.reference.datasets.formats.paths import files, opened
from harness.reference.datasets.formats.reader import Format, Part
from harness.reference.errors import InputError
from harness.reference.frames import Fault, Frames

ENDINGS = (".extxyz", ".extxyz.xz", ".xyz", ".tar.gz", ".tgz")
MEMBERS = (".extxyz", ".extxyz.xz", ".xyz")
BROKEN = (OSError, EOFError, lzma.LZMAError, zlib.error, tarfile.TarError, UnicodeDecodeError)
SYSTEM_KEYS = ("sid", "system_id", "_name", "name")
System = tuple[str, str]  # its name, and that of the frame


def parts(paths: Sequence[Path]) -> list[Part]:
    """One part for each file (5,000 frames in OC20) or archive; a file that lies there twice is read decompressed."""
    found = [Part(path, label) for path, label in files(paths, ENDINGS, "extended XYZ files")]
    next(_samples(found[0]), None)
    return found


def read(part: Part) -> Iterator[Frames | Fault]:
    """Frames in the order of the file, with the energies of the frames themselves: DFT totals.

    OC20's text file names the system of each frame, which becomes its group; its reference energy, which turns totals
    into adsorption energies, is one number per system and is left to the fit of reference energies.
    """
    yield from gathered(made(_samples(part), _row))


def _samples(part: Part) -> Iterator[tuple[str, Any]]:
    if part.path.name.endswith((".tar.gz", ".tgz")):
        yield from _archive(part)
        return
    systems = _systems(part.path)
    with _opened(part.path) as file:
        yield from _file(file, str(part.path), part.key, systems)


def _archive(part: Part) -> Iterator[tuple[str, Any]]:
    try:
        with tarfile.open(part.path, "r:gz") as archive:
            for member in archive:
                packed = archive.extractfile(member) if member.isfile() and member.name.endswith(MEMBERS) else None
                if packed is not None:
                    label = f"{part.key}/{member.name.removeprefix('./')}"
                    with lzma.open(packed) if member.name.endswith(".xz") else packed as plain:
                        text = io.TextIOWrapper(plain, encoding="utf-8")
                        yield from _file(text, f"{part.path}:{member.name}", label, None)
    except BROKEN as error:
        raise InputError(f"{part.path}: truncated or not a compressed archive ({one_line(error)})") from None


@contextmanager
def _opened(path: Path) -> Iterator[IO[str]]:
    try:
        with opened(path) as packed, lzma.open(packed) if path.suffix == ".xz" else packed as plain:
            yield io.TextIOWrapper(plain, encoding="utf-8")
    except BROKEN as error:
        raise InputError(f"{path}: truncated, or not the text that its name says ({one_line(error)})") from None


def _systems(path: Path) -> list[System] | None:
    """The systems of OC20's text file beside a trajectory; None where there is no such file."""
    stem = path.name.removesuffix(".xz").rpartition(".")[0]
    beside = next((p for p in (path.with_name(f"{stem}.txt"), path.with_name(f"{stem}.txt.xz")) if p.is_file()), None)
    if beside is None:
        return None
    found = []
    with _opened(beside) as file:
        for k, line in enumerate(file, start=1):
            words = line.strip().split(",")
            if len(words) != 3:
                raise InputError(f"{beside}, line {k}: {line.strip()[:40]!r}, expected system,frame,reference energy")
            found.append((words[0], words[1]))
    return found


def _file(file: IO[str], where: str, label: str, systems: list[System] | None) -> Iterator[tuple[str, Any]]:
    count = 0
    for count, text in enumerate(frames(file, where), start=1):
        if systems is not None and count > len(systems):
            raise InputError(f"{where}: frame {count}, but its text file has {len(systems)} lines")
        yield f"{label}/{count - 1}", (text, None if systems is None else systems[count - 1])
    if systems is not None and count < len(systems):
        raise InputError(f"{where}: truncated, {count} frames where its text file has {len(systems)} lines")
    if not count:
        raise InputError(f"{where}: holds no frames")


def _row(where: str, sample: tuple[Text, System | None]) -> Row:
    text, system = sample
    found = parsed(text)
    energy = text.keys.get("energy")
    if energy is None:
        raise Unfit("unlabelled", missing("energy", text.keys))
    named = next((text.keys[key] for key in SYSTEM_KEYS if key in text.keys), None)
    return row(
        where if system is None else f"{where}/{system[0]}/{system[1]}",
        system[0] if system is not None else named or formula(found.numbers),
        found.numbers,
        found.positions,
        energy=float(energy),
        forces=found.forces,
        cell=found.cell,
        periodic=found.periodic,
    )


FORMAT = Format("s2ef_text", "<n>.extxyz.xz with <n>.txt.xz, *.extxyz, or *.tar.gz of them", parts, read)
