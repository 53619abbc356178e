"""Files as a user names them, opened with one line for what goes wrong, and cut into parts."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from harness.reference.datasets.parsing.base import Part
from harness.reference.datasets.parsing.structure_builder import one_line
from harness.reference.datasets.parsing.unpacking import HEAD, refuse_other_kinds
from harness.reference.errors import InputError

PART = 50_000  # structures of a part, about
COMPRESSED = (".xz", ".bz2", ".gz")
SYSTEM_FOLDERS = frozenset({"__MACOSX", ".Trashes", ".Spotlight-V100", ".fseventsd", "@eaDir"})
SYSTEM_FILES = frozenset({".DS_Store", "Thumbs.db", "ehthumbs.db", "desktop.ini", "lock.mdb"})
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.bz2", ".7z", ".rar")
PACKED = (*COMPRESSED, ".zst")
UNFINISHED = (".part", ".partial", ".crdownload", ".aria2", ".download", ".tmp", ".incomplete")


def is_system_file(name: str) -> bool:
    """Whether a file is what macOS or Windows leave in folders and archives, such as the companion `._x` of x."""
    return name.startswith("._") or name in SYSTEM_FILES


def count_passed_over(paths: Sequence[Path], parts: Iterable[Part]) -> Counter[str]:
    """Count what lies in the folders besides the files that are read, and may look like data."""
    used = {os.path.realpath(part.path) for part in parts}
    counts: Counter[str] = Counter()
    for folder in (path for path in paths if path.is_dir()):
        for path in _walk(folder):
            name = path.name.lower()
            if is_system_file(path.name) or SYSTEM_FOLDERS & set(path.relative_to(folder).parts):
                counts["files of the operating system, such as ._* and .DS_Store"] += path.name != "lock.mdb"
            elif os.path.realpath(path) not in used and name.endswith(ARCHIVES):
                counts["archives, to be unpacked if their content is not here"] += 1
            elif os.path.realpath(path) not in used and name.endswith(UNFINISHED):
                counts["unfinished downloads"] += 1
    return +counts


@contextmanager
def opened(path: Path, buffering: int = -1, accepted: Collection[str] = ()) -> Iterator[BinaryIO]:
    """A file to read bytes from; raises InputError where the system refuses, or where something else lies there.

    accepted: as in `refuse_other_kinds`.
    """
    try:
        with path.open("rb", buffering) as file:
            refuse_other_kinds(path, file.read(HEAD), accepted)
            file.seek(0)
            yield file
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or one_line(error)})") from None


def below_folder(folder: Path) -> list[Path]:
    """All files below a folder, links to folders followed, sorted; raises InputError for a folder closed to us.

    What operating systems leave in folders is not among them.
    """
    return [
        path
        for path in _walk(folder)
        if not is_system_file(path.name) and not SYSTEM_FOLDERS & set(path.relative_to(folder).parts)
    ]


def _walk(folder: Path) -> list[Path]:
    def refuse(error: OSError) -> None:
        raise InputError(f"{error.filename}: cannot be read ({error.strerror})")

    seen = {os.path.realpath(folder)}
    found: list[Path] = []
    for place, folders, names in os.walk(folder, followlinks=True, onerror=refuse):
        fresh = {name: os.path.realpath(os.path.join(place, name)) for name in folders}
        folders[:] = [name for name, real in fresh.items() if real not in seen]
        seen.update(fresh.values())
        found += [path for path in (Path(place, name) for name in names) if path.is_file()]
    return sorted(found)


def files(paths: Sequence[Path], endings: tuple[str, ...], what: str) -> list[tuple[Path, str]]:
    """Files as named and, in folders, those with the endings: sorted, each with a label that no other has.

    The label is the path below the folder that all of them are in, without the ending. A compressed file is passed over
    where it also lies there decompressed.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            below = [p for p in below_folder(path) if p.name.endswith(endings)]
            if not below:
                raise InputError(
                    f"{path}: no {what} in this folder (looked for *{', *'.join(endings)}{_packed_files(path)})"
                )
            found += below
        elif path.is_file():
            if not is_system_file(path.name):
                found.append(path)
        else:
            raise InputError(f"{path}: no such file or folder")
    if not found:
        named = "only files of the operating system (._*) were given" if paths else "no paths were given"
        raise InputError(f"no {what}: {named}")
    # A file that is reached by several names is read once, by the first; links keep the names that they give.
    unique = list({os.path.realpath(p): Path(os.path.abspath(p)) for p in reversed(found)}.values())[::-1]
    root = os.path.commonpath([p.parent for p in unique])
    labelled = [(p, _without(p.relative_to(root).as_posix(), endings)) for p in unique]
    plain = {label for p, label in labelled if p.suffix not in COMPRESSED}
    once = [(p, label) for p, label in labelled if p.suffix not in COMPRESSED or label not in plain]
    if len({label for _, label in once}) < len(once):
        return [(p, p.relative_to(root).as_posix()) for p, _ in once]
    return once


def _packed_files(folder: Path) -> str:
    """What to say of a folder that holds archives or packed files alone."""
    packed = [p.name for p in below_folder(folder) if p.name.lower().endswith((*ARCHIVES, *PACKED))]
    return f"; it holds {packed[0]}, which has to be unpacked first" if packed else ""


def _without(name: str, endings: tuple[str, ...]) -> str:
    ending = next((e for e in sorted(endings, key=len, reverse=True) if name.endswith(e)), "")
    label = name[: len(name) - len(ending)] if ending else name
    return label.rstrip("/") or name


def ranges(path: Path, label: str, sizes: Sequence[int], limit: int = PART) -> list[Part]:
    """Parts of consecutive pieces of a file, each of about `limit` structures; sizes: structures of each piece."""
    parts, first, count = [], 0, 0
    for k, size in enumerate(sizes):
        count += size
        if count >= limit or k == len(sizes) - 1:
            parts.append(Part(path, f"{label} {first}:{k + 1}"))
            first, count = k + 1, 0
    return parts


def bounds(part: Part) -> tuple[str, int, int]:
    """(label, first, stop) of a part made by `ranges`."""
    label, _, span = part.key.rpartition(" ")
    first, _, stop = span.partition(":")
    return label, int(first), int(stop)
