"""The official formats by name, and detection of the format of files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from harness.protocol.errors import did_you_mean
from harness.reference.datasets.containers.lmdb_file import DATA_FILE, MAGIC, PAGE_HEAD, is_ase_database
from harness.reference.datasets.parsing.base import DatasetFormat
from harness.reference.datasets.parsing.paths import is_system_file, list_folder, open_file
from harness.reference.datasets.readers import ani1x, asedb, aselmdb, pymatgen_files, qcml, qm7x, s2ef, transition1x
from harness.reference.datasets.readers.asedb import SQLITE
from harness.reference.errors import InputError

FORMATS: dict[str, DatasetFormat] = {
    dataset_format.name: dataset_format
    for dataset_format in (
        pymatgen_files.ALEXANDRIA,
        ani1x.FORMAT,
        asedb.FORMAT,
        aselmdb.FORMAT,
        pymatgen_files.MPTRJ,
        qcml.FORMAT,
        qm7x.FORMAT,
        s2ef.LMDB_FORMAT,
        s2ef.TEXT_FORMAT,
        transition1x.FORMAT,
    )
}
LMDB_ENDINGS = (".lmdb", ".aselmdb", DATA_FILE)
# endings of formats that belong to one dataset each (in contrast to the containers below)
SINGLE_DATASET_ENDINGS = (".h5", ".hdf5", ".json", ".json.bz2", ".json.gz", ".json.xz", ".xz")
CONTAINER_NAMES = {
    "s2ef_text": "extended XYZ",
    "asedb": "ASE databases (.db)",
    "aselmdb": "LMDB files of ASE rows",
    "s2ef_lmdb": "LMDB files of graphs",
}


def get_format(name: str) -> DatasetFormat:
    """Return the format of a name; raises InputError, with the closest name, if there is none."""
    if name in FORMATS:
        return FORMATS[name]
    raise InputError(f"no format {name!r}{did_you_mean(name, FORMATS)}")


def detect_format(paths: Sequence[Path], default: str) -> str:
    """Return the name of the format of these files: the authors' format, or that of a common container.

    Args:
        paths: Files or folders.
        default: The format in which the authors publish the dataset.

    Raises:
        InputError: The files belong to several containers.
    """
    files = [file for path in paths for file in (list_folder(path) if path.is_dir() else (path,))]
    by_ending: dict[str, Path] = {}
    for file in files:
        if not is_system_file(file.name) and file.is_file():
            by_ending.setdefault(_find_ending(file), file)
    if default not in CONTAINER_NAMES and any(
        ending in SINGLE_DATASET_ENDINGS or ".tfrecord" in ending for ending in by_ending
    ):
        return default
    kinds = {kind: file for ending, file in by_ending.items() if (kind := _detect_container(ending, file, default))}
    if len(kinds) > 1:
        examples = " and ".join(f"{CONTAINER_NAMES[kind]} ({file.name})" for kind, file in sorted(kinds.items()))
        raise InputError(f"the paths hold {examples}; name the files or folders of one kind")
    return next(iter(kinds), default)


def _find_ending(file: Path) -> str:
    """Return the longest known ending of a file name, else its suffix; two suffixes if one is .tfrecord-*."""
    known = (*s2ef.ENDINGS, ".db", *LMDB_ENDINGS, *SINGLE_DATASET_ENDINGS, ".txt.xz")
    matches = [ending for ending in known if file.name.endswith(ending)]
    return (
        max(matches, key=len)
        if matches
        else "".join(file.suffixes[-2:] if ".tfrecord" in file.name else file.suffixes[-1:])
    )


def _detect_container(ending: str, file: Path, default: str) -> str:
    """Return the container of a file, or ""."""
    if ending in s2ef.ENDINGS:
        return "s2ef_text"
    if ending == ".db":
        return "asedb"
    if ending in LMDB_ENDINGS:
        return _detect_lmdb(file, default)
    with open_file(file, accepted=("xz", "gzip", "bzip2", "zip", "zstd", "7z", "rar", "tar")) as content:
        head = content.read(PAGE_HEAD)
    if head.startswith(SQLITE):
        return "asedb"
    return _detect_lmdb(file, default) if MAGIC in head else ""


def _detect_lmdb(file: Path, default: str) -> str:
    try:
        return "aselmdb" if is_ase_database(file) else "s2ef_lmdb"
    except InputError:
        return default if default in ("aselmdb", "s2ef_lmdb") else "aselmdb"  # this reader reports the problem
