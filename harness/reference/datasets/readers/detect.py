"""Which reader files are for: datasets are handed out, and handed on, in several containers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from harness.reference.datasets.containers.lmdb_file import DATA_FILE, MAGIC, PAGE_HEAD, is_ase_database
from harness.reference.datasets.parsing.paths import below_folder, is_system_file, opened
from harness.reference.datasets.readers import s2ef_text
from harness.reference.datasets.readers.asedb import SQLITE
from harness.reference.errors import InputError

LMDB_ENDINGS = (".lmdb", ".aselmdb", DATA_FILE)
# of formats that a single dataset has
SPECIAL = (".h5", ".hdf5", ".json", ".json.bz2", ".json.gz", ".json.xz", ".xz")
WORDS = {
    "s2ef_text": "extended XYZ",
    "asedb": "ASE databases (.db)",
    "aselmdb": "LMDB files of ASE rows",
    "s2ef_lmdb": "LMDB files of graphs",
}


def container_of(paths: Sequence[Path], own: str) -> str:
    """Return the name of the format that reads these files: the dataset's own, or that of a common container.

    Args:
        paths: Files or folders as the user named them.
        own: The format in which the dataset's authors hand it out.

    Raises:
        InputError: The files are of several containers, of which only one could be read.
    """
    files = [file for path in paths for file in (below_folder(path) if path.is_dir() else (path,))]
    by_ending: dict[str, Path] = {}
    for file in files:
        if not is_system_file(file.name) and file.is_file():
            by_ending.setdefault(_ending(file), file)
    if own not in WORDS and any(ending in SPECIAL or ".tfrecord" in ending for ending in by_ending):
        return own
    kinds = {kind: file for ending, file in by_ending.items() if (kind := _kind(ending, file, own))}
    if len(kinds) > 1:
        examples = " and ".join(f"{WORDS[kind]} ({file.name})" for kind, file in sorted(kinds.items()))
        raise InputError(f"the paths hold {examples}; name the files or folders of one kind")
    return next(iter(kinds), own)


def _ending(file: Path) -> str:
    known = (*s2ef_text.ENDINGS, ".db", *LMDB_ENDINGS, *SPECIAL, ".txt.xz")
    result = [ending for ending in known if file.name.endswith(ending)]
    return (
        max(result, key=len)
        if result
        else "".join(file.suffixes[-2:] if ".tfrecord" in file.name else file.suffixes[-1:])
    )


def _kind(ending: str, file: Path, own: str) -> str:
    """The container of a file, "" for files of none."""
    if ending in s2ef_text.ENDINGS:
        return "s2ef_text"
    if ending == ".db":
        return "asedb"
    if ending in LMDB_ENDINGS:
        return _of_lmdb(file, own)
    with opened(file, accepted=("xz", "gzip", "bzip2", "zip", "zstd", "7z", "rar", "tar")) as content:
        head = content.read(PAGE_HEAD)
    if head.startswith(SQLITE):
        return "asedb"
    return _of_lmdb(file, own) if MAGIC in head else ""


def _of_lmdb(file: Path, own: str) -> str:
    try:
        return "aselmdb" if is_ase_database(file) else "s2ef_lmdb"
    except InputError:
        return own if own in ("aselmdb", "s2ef_lmdb") else "aselmdb"  # whose reader says what is wrong
