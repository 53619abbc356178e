"""Find the files of a user, open them with clear errors, and divide them into chunks."""

from __future__ import annotations

import filecmp
import os
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO

from harness.reference.datasets.parsing.base import FileChunk
from harness.reference.datasets.parsing.unpacking import HEAD_BYTES, reject_other_kinds
from harness.reference.errors import InputError, get_first_line

CHUNK_STRUCTURES = 50_000  # approximate number of structures in a chunk
COMPRESSED = (".xz", ".bz2", ".gz")
SYSTEM_FOLDERS = frozenset({"__MACOSX", ".Trashes", ".Spotlight-V100", ".fseventsd", "@eaDir"})
SYSTEM_FILES = frozenset({".DS_Store", "Thumbs.db", "ehthumbs.db", "desktop.ini", "lock.mdb"})
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.bz2", ".7z", ".rar")
PACKED = (*COMPRESSED, ".zst")
UNFINISHED = (".part", ".partial", ".crdownload", ".aria2", ".download", ".tmp", ".incomplete")
COMPARED_BYTES = 1 << 19  # files of equal size are compared first by this number of bytes at both ends


def is_system_file(name: str) -> bool:
    """Return whether a file was created by macOS or Windows, such as `._x` next to a file x."""
    return name.startswith("._") or name in SYSTEM_FILES


def count_skipped_files(paths: Sequence[Path], chunks: Iterable[FileChunk]) -> Counter[str]:
    """Count the files in folders that look like data but are in no chunk, by reason."""
    used = {os.path.realpath(chunk.path) for chunk in chunks}
    counts: Counter[str] = Counter()
    for folder in (path for path in paths if path.is_dir()):
        for path in _walk_folder(folder):
            name = path.name.lower()
            if is_system_file(path.name) or SYSTEM_FOLDERS & set(path.relative_to(folder).parts):
                counts["files of the operating system, such as ._* and .DS_Store"] += path.name != "lock.mdb"
            elif os.path.realpath(path) not in used and name.endswith(ARCHIVES):
                counts["archives, to be unpacked if their content is not here"] += 1
            elif os.path.realpath(path) not in used and name.endswith(UNFINISHED):
                counts["unfinished downloads"] += 1
    return +counts


@contextmanager
def open_file(path: Path, buffering: int = -1, accepted: Collection[str] = ()) -> Iterator[BinaryIO]:
    """Open a file to read bytes; raises InputError if it cannot be opened or is not a data file.

    Args:
        path: The file.
        buffering: As in `open`.
        accepted: As in `reject_other_kinds`.
    """
    try:
        with path.open("rb", buffering) as file:
            reject_other_kinds(path, file.read(HEAD_BYTES), accepted)
            file.seek(0)
            yield file
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or get_first_line(error)})") from None


def list_folder(folder: Path) -> list[Path]:
    """Return all files below a folder, sorted; raises InputError if a folder cannot be read.

    Links to folders are followed. Files of the operating system are omitted.
    """
    return [
        path
        for path in _walk_folder(folder)
        if not is_system_file(path.name) and not SYSTEM_FOLDERS & set(path.relative_to(folder).parts)
    ]


def _walk_folder(folder: Path) -> list[Path]:
    def raise_input_error(error: OSError) -> None:
        raise InputError(f"{error.filename}: cannot be read ({error.strerror})")

    visited = {os.path.realpath(folder)}
    files: list[Path] = []
    for parent, folders, names in os.walk(folder, followlinks=True, onerror=raise_input_error):
        children = {name: os.path.realpath(os.path.join(parent, name)) for name in folders}
        folders[:] = [name for name, real in children.items() if real not in visited]
        visited.update(children.values())
        files += [path for path in (Path(parent, name) for name in names) if path.is_file()]
    return sorted(files)


def list_files(paths: Sequence[Path], endings: tuple[str, ...], what: str) -> list[tuple[Path, str]]:
    """Return the given files and all files with the endings in the given folders, each with a unique label.

    The label is the path below the common folder, without the ending. A compressed file is ignored if its decompressed
    copy exists too.

    Args:
        paths: Files and folders.
        endings: Endings of file names, which apply to files in folders only.
        what: The name of such files in messages.

    Raises:
        InputError: A path does not exist, or a folder has no such files.
    """
    named_files: list[Path] = []
    for path in paths:
        if path.is_dir():
            below = [p for p in list_folder(path) if p.name.endswith(endings)]
            if not below:
                searched = f"*{', *'.join(endings)}{_describe_packed_files(path)}"
                raise InputError(f"{path}: no {what} in this folder (looked for {searched})")
            named_files += below
        elif path.is_file():
            if not is_system_file(path.name):
                named_files.append(path)
        else:
            raise InputError(f"{path}: no such file or folder")
    if not named_files:
        named = "only files of the operating system (._*) were given" if paths else "no paths were given"
        raise InputError(f"no {what}: {named}")
    # A file with several names is read once, under the first; links keep their own names.
    unique = list({os.path.realpath(p): Path(os.path.abspath(p)) for p in reversed(named_files)}.values())[::-1]
    root = os.path.commonpath([p.parent for p in unique])
    labelled = [(p, _strip_ending(p.relative_to(root).as_posix(), endings)) for p in unique]
    plain = {label for p, label in labelled if p.suffix not in COMPRESSED}
    once = [(p, label) for p, label in labelled if p.suffix not in COMPRESSED or label not in plain]
    if len({label for _, label in once}) < len(once):
        return [(p, p.relative_to(root).as_posix()) for p, _ in once]
    return once


def _describe_packed_files(folder: Path) -> str:
    """Return a hint for a folder that contains only archives or compressed files, or ""."""
    packed = [p.name for p in list_folder(folder) if p.name.lower().endswith((*ARCHIVES, *PACKED))]
    return f"; it holds {packed[0]}, which has to be unpacked first" if packed else ""


def _strip_ending(name: str, endings: tuple[str, ...]) -> str:
    ending = next((e for e in sorted(endings, key=len, reverse=True) if name.endswith(e)), "")
    label = name[: len(name) - len(ending)] if ending else name
    return label.rstrip("/") or name


def split_into_chunks(
    path: Path, label: str, sizes: Sequence[int], structures_per_chunk: int = CHUNK_STRUCTURES
) -> list[FileChunk]:
    """Split a file into chunks of consecutive pieces.

    Args:
        path: The file.
        label: The label of the file (see `list_files`).
        sizes: Number of structures in each consecutive piece of the file, such as a group.
        structures_per_chunk: The number of structures that a chunk, except for the last one, has at least.
    """
    chunks, first, count = [], 0, 0
    for k, size in enumerate(sizes):
        count += size
        if count >= structures_per_chunk or k == len(sizes) - 1:
            chunks.append(FileChunk(path, f"{label} {first}:{k + 1}"))
            first, count = k + 1, 0
    return chunks


def parse_chunk_bounds(chunk: FileChunk) -> tuple[str, int, int]:
    """Return (label, first, stop) of a chunk whose key is "label first:stop"."""
    label, _, span = chunk.key.rpartition(" ")
    first, _, stop = span.partition(":")
    return label, int(first), int(stop)


def reject_copies(paths: Iterable[Path]) -> None:
    """Raise InputError if two different files have the same content.

    Only files of the same size are read, and only as far as they agree.
    """
    alike: dict[tuple[int, str], list[Path]] = defaultdict(list)
    sizes: dict[int, list[Path]] = defaultdict(list)
    for path in dict.fromkeys(paths):
        if path.is_file():
            sizes[path.stat().st_size].append(path)
    for size, candidates in sizes.items():
        for path in candidates if len(candidates) > 1 and size else ():
            alike[size, _digest_ends(path, size)].append(path)
    for candidates in alike.values():
        for k, path in enumerate(candidates):
            for other in candidates[:k]:
                if filecmp.cmp(other, path, shallow=False):
                    raise InputError(
                        f"{path}: holds the same bytes as {other}; name only one of them, or take one out of the folder"
                    )


def _digest_ends(path: Path, size: int) -> str:
    with path.open("rb") as file:
        digest = sha256(file.read(COMPARED_BYTES))
        file.seek(max(0, size - COMPARED_BYTES))
        digest.update(file.read(COMPARED_BYTES))
    return digest.hexdigest()
