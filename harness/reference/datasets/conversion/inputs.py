"""The input of a conversion: the official files of a dataset if there are some, else its shipped set."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.reference.data.structure_table import RejectedStructure, StructureTable
from harness.reference.datasets.catalog import SOURCES, DatasetSource
from harness.reference.datasets.conversion.convert import Conversion
from harness.reference.datasets.conversion.read_part import ConversionRules
from harness.reference.datasets.parsing.base import TABLE_STRUCTURES, DatasetFormat, FileChunk
from harness.reference.datasets.readers.registry import detect_format, get_format
from harness.reference.datasets.shipped_sets import find_shipped_set, load_table
from harness.reference.errors import InputError

OMOL25 = "omol25"  # the dataset that the branches of one charge are parts of


def plan_conversion(
    entry: DatasetSource, paths: Sequence[Path], store: Path, rules: ConversionRules, workers: int
) -> Conversion:
    """Return how to convert these files, or the shipped set if there are none."""
    if not paths:
        mini = find_shipped_set(entry.slug)
        return Conversion(
            slug=entry.slug,
            format=SHIPPED,
            paths=(Path(entry.slug),),
            store=store,
            source=None,
            about=describe_shipped(entry),
            rules=rules,
            workers=1 if mini.count < TABLE_STRUCTURES else workers,
        )
    return Conversion(
        slug=entry.slug,
        format=detect_source_format(entry, paths),
        paths=tuple(paths),
        store=store,
        source=entry,
        about=describe_official(entry),
        rules=replace(rules, charges=entry.charges),
        workers=workers,
    )


def detect_source_format(entry: DatasetSource, paths: Sequence[Path]) -> DatasetFormat:
    """Return the format of a dataset's files: that of its authors, or another container."""
    return get_format(detect_format(paths, entry.format))


def find_official_files(root: str, entry: DatasetSource) -> tuple[Path, ...]:
    """Return the dataset's folder in a folder of all datasets, or nothing if it does not exist.

    A branch of one charge is read from the folder of the whole. Raises InputError for a folder with no dataset in it.
    """
    if not root:
        return ()
    folder = Path(root).expanduser()
    if not folder.is_absolute():
        raise InputError(f"data={root}: expected an absolute path, jobs run in other folders")
    if not folder.is_dir():
        raise InputError(f"data={root}: no such folder")
    folders = {path.name.lower(): path for path in sorted(folder.iterdir()) if path.is_dir()}
    if not folders.keys() & {s.slug for s in SOURCES}:
        present = ", ".join(sorted(folders)[:8]) or "no folders"
        raise InputError(f"{folder}: expected folders named as `harness data list` names the datasets; found {present}")
    names = (entry.slug,) if entry.charges == "all" else (entry.slug, OMOL25)
    return next(((folders[name],) for name in names if name in folders), ())


def describe_official(entry: DatasetSource) -> dict[str, Any]:
    """Return the facts of official files that reports need."""
    return {
        "slug": entry.slug,
        "head": entry.head,
        "role": "official",
        "level": entry.level,
        "energies": f"{entry.label}; zero: {entry.zero}",
        "source": entry.url,
        "licence": entry.licence,
        "attribution": entry.citation,
        "original_count": entry.count,
        "part_of": None if entry.charges == "all" else OMOL25,
    }


def describe_shipped(entry: DatasetSource) -> dict[str, Any]:
    """Return the facts of a shipped set that reports need."""
    mini = find_shipped_set(entry.slug)
    return {
        "slug": entry.slug,
        "head": entry.head,
        "role": mini.role,
        "level": mini.level,
        "energies": mini.labels,
        "source": mini.provenance,
        "licence": mini.licence,
        "attribution": mini.attribution,
        "original_count": entry.count,
        "part_of": None if entry.charges == "all" else OMOL25,
    }


def _list_shipped(paths: Sequence[Path]) -> list[FileChunk]:
    return [FileChunk(find_shipped_set(path.name).file, path.name) for path in paths]


def _read_shipped(part: FileChunk) -> Iterator[StructureTable | RejectedStructure]:
    frames = load_table(find_shipped_set(part.key))
    for first in range(0, len(frames), TABLE_STRUCTURES):
        yield frames[first : first + TABLE_STRUCTURES]


SHIPPED = DatasetFormat(
    name="shipped", files="the sets that ship with the harness", list_chunks=_list_shipped, read_chunk=_read_shipped
)
