"""Bundles: run folders, their checksums and files about them, as a folder or as a compressed file (.tar.xz).

`harness artifact BUNDLE` writes a bundle, and `harness report BUNDLE` makes the report from it.
"""

from __future__ import annotations

import io
import lzma
import os
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path, PurePosixPath

from harness.host.files import write_below, write_bytes
from harness.protocol.errors import UsageError
from harness.results.checksums import (
    LINE_CHECKSUMS,
    MANIFEST,
    Checksums,
    build_checksum_files,
    is_text,
    parse_checksum_files,
)

FOLDER, SUFFIX = "runs", ".tar.xz"
HISTORY = "history.jsonl"
# Files that are derived from other files and written again when needed, and locks.
EXCLUDED_FILES = ("telemetry.cache.json",)
EXCLUDED_SUFFIXES = (".lock", ".part")
# Limits of archives, so that a small one cannot fill a disk.
MAX_BYTES, MAX_FILE_BYTES = 8 << 30, 1 << 29


@dataclass(frozen=True)
class RunFiles:
    """The files of a results folder.

    Attributes:
        contents: the contents of the files that belong in a bundle, by name.
        left_out: the sizes in bytes of weights and stores, and 0 for links, by name. Files that are written again when
            needed, locks and incomplete files are in neither mapping.
    """

    contents: dict[str, bytes]
    left_out: dict[str, int]


@dataclass(frozen=True)
class Verification:
    """The result of a comparison of a bundle with its checksums.

    Attributes:
        n_files: the number of files.
        manifest_sha256: the checksum of the manifest, which stands for the whole bundle.
        problems: a line for each problem.
    """

    n_files: int
    manifest_sha256: str
    problems: list[str]


def read_run_files(results: Path) -> RunFiles:
    """Read the records of all runs, and the history of commits; raise UsageError if there are no run folders."""
    contents: dict[str, bytes] = {}
    left_out: dict[str, int] = {}
    for path in sorted((results / FOLDER).rglob("*")):
        name = path.relative_to(results).as_posix()
        if path.is_symlink():
            left_out[name] = 0
        elif path.is_file() and path.name not in (*EXCLUDED_FILES, "lock") and path.suffix not in EXCLUDED_SUFFIXES:
            with path.open("rb") as handle:
                head = handle.read(4096)
                if is_text(head):
                    contents[name] = head + handle.read()
                else:
                    left_out[name] = path.stat().st_size
    if not contents:
        raise UsageError(f"{results / FOLDER}: no run folders to pack")
    history = results / HISTORY
    if history.is_file() and not history.is_symlink():
        contents[HISTORY] = history.read_bytes()
    return RunFiles(contents, left_out)


def write_bundle(files: Mapping[str, bytes], target: Path) -> None:
    """Write files and their checksums as an archive if the target ends in .tar.xz, else into a new folder.

    Equal files give equal archives.

    Raises:
        UsageError: the target is a folder that is not empty, or a file with another suffix, or the files are too large
            for an archive.
    """
    contents = build_checksum_files(files) | {name: files[name] for name in sorted(files)}
    if target.name.endswith(SUFFIX) and not target.is_dir():
        sizes = [len(content) for content in contents.values()]
        if problem := _find_excess(sum(sizes), max(sizes)):
            raise UsageError(f"{target}: would contain {problem}; write a folder instead")
        target.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(target, _pack(contents))
        return
    if target.is_file():
        raise UsageError(f"{target}: is a file; expected a new folder, or a file that ends in {SUFFIX}")
    if target.is_dir() and any(target.iterdir()):
        raise UsageError(f"{target}: the folder is not empty; expected a new folder, or a file that ends in {SUFFIX}")
    for name, content in contents.items():
        write_below(target, name, content)


def _pack(contents: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:xz", preset=6, format=tarfile.PAX_FORMAT) as archive:
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(content), 0o644
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def unpack_bundle(bundle: Path, results: Path) -> int:
    """Unpack the run folders of a bundle below a results folder; files with the same content are left unchanged.

    The whole bundle is checked before the first file is written. The history of commits is unpacked only where there is
    none, since reports add to it.

    Returns:
        The number of files of run folders in the bundle.

    Raises:
        UsageError: this is not a bundle, it is damaged or too large, a file is missing or does not have its checksum,
            or a file differs from one that exists.
    """
    checksums, members = _open_bundle(bundle)
    names = []
    for name, content in members:
        names.append(name)
        path = results / name
        if checksums and (problem := checksums.find_problem(name, content)):
            raise UsageError(f"{bundle}: {problem}")
        if name.startswith(f"{FOLDER}/") and _is_plain_file(path) and path.read_bytes() != content:
            raise UsageError(f"{bundle}: {name} differs from {path}; unpack it into another folder (--out DIR)")
    for problem in checksums.list_missing(names) if checksums else ():
        raise UsageError(f"{bundle}: {problem}")
    count = sum(name.startswith(f"{FOLDER}/") for name in names)
    if not count:
        raise UsageError(f"{bundle}: contains no run folders")
    for name, content in _open_bundle(bundle)[1]:
        is_new = not (results / name).exists() if name == HISTORY else not _is_plain_file(results / name)
        if is_new and (name == HISTORY or name.startswith(f"{FOLDER}/")):
            write_below(results, name, content)
    return count


def _is_plain_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def verify_bundle(bundle: Path) -> Verification:
    """Compare every file of a bundle with its checksum.

    Raises:
        UsageError: this is not a bundle, it is damaged or too large, or it has no checksums.
    """
    checksums, members = _open_bundle(bundle)
    if checksums is None:
        raise UsageError(f"{bundle}: has no {MANIFEST}; expected a bundle that `harness artifact` wrote")
    problems, names = [], set()
    for name, content in members:
        names.add(name)
        problem = checksums.find_problem(name, content)
        if problem is not None:
            problems.append(problem)
    return Verification(len(names), checksums.manifest_sha256, [*problems, *checksums.list_missing(names)])


def _open_bundle(bundle: Path) -> tuple[Checksums | None, Iterator[tuple[str, bytes]]]:
    """Return the checksums of a bundle, None for a bundle of version 0.1, and its files without the manifest."""
    members = _read_folder(bundle) if bundle.is_dir() else _read_archive(bundle)
    first: dict[str, bytes] = {}
    for name, content in members:
        first[name] = content
        if name not in (MANIFEST, LINE_CHECKSUMS) or {MANIFEST, LINE_CHECKSUMS} <= first.keys():
            break
    checksums = parse_checksum_files(str(bundle), first) if MANIFEST in first else None

    def list_members() -> Iterator[tuple[str, bytes]]:
        first.pop(MANIFEST, None)
        for name, content in chain(first.items(), members):
            if checksums is None and not name.startswith(f"{FOLDER}/"):
                raise UsageError(f"{bundle}: {name!r} is not a file below {FOLDER}/; not a bundle of results")
            yield name, content

    return checksums, list_members()


def _read_folder(bundle: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the name and the content of each file of a bundle that is a folder, the checksums first."""
    names = []
    for folder, folders, files in os.walk(bundle):
        for name in (*folders, *files):
            path = Path(folder, name)
            if path.is_symlink() or (name in files and not path.is_file()):
                raise UsageError(f"{path}: is not a file or folder; a bundle has no links")
            if name in files:
                names.append(path.relative_to(bundle).as_posix())
    first = [name for name in (MANIFEST, LINE_CHECKSUMS) if name in names]
    if not first and not any(name.startswith(f"{FOLDER}/") for name in names):
        raise UsageError(f"{bundle}: not a bundle of results; expected {MANIFEST} and {FOLDER}/ in it")
    for name in [*first, *sorted(set(names) - set(first))]:
        yield name, (bundle / name).read_bytes()


def _find_excess(total: int, largest: int) -> str | None:
    """Return what exceeds the limits of archives, or None.

    Args:
        total: The size of all files in bytes.
        largest: The size of the largest file in bytes.
    """
    is_excess = total > MAX_BYTES or largest > MAX_FILE_BYTES
    return f"more than {MAX_BYTES >> 30} GiB, or a file above {MAX_FILE_BYTES >> 20} MiB" if is_excess else None


def _read_archive(bundle: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the name and the content of each file of an archive; raise UsageError for an invalid one."""
    total = 0
    try:
        with tarfile.open(bundle, mode="r:xz") as archive:
            for member in archive:
                path = PurePosixPath(member.name)
                if not member.isfile() or path.is_absolute() or ".." in path.parts or "\0" in member.name:
                    raise UsageError(
                        f"{bundle}: {member.name!r} is not a file inside the bundle; a bundle has no links"
                    )
                total += member.size
                if problem := _find_excess(total, member.size):
                    raise UsageError(f"{bundle}: contains {problem}")
                content = archive.extractfile(member)
                assert content is not None
                yield member.name, content.read()
    except FileNotFoundError:
        raise UsageError(f"{bundle}: no such file") from None
    except (tarfile.TarError, lzma.LZMAError, EOFError) as error:
        raise UsageError(f"{bundle}: not a bundle of results, or damaged ({error})") from None
