"""What a dataset is converted from: its official files where there are some, else the shipped set in its place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.reference.data.structure_table import Fault, Frames
from harness.reference.datasets.catalog import SOURCES, Source
from harness.reference.datasets.conversion.convert import Conversion
from harness.reference.datasets.conversion.read_part import Rules
from harness.reference.datasets.parsing.base import BLOCK, Format, Part
from harness.reference.datasets.readers.detect import container_of
from harness.reference.datasets.readers.registry import named
from harness.reference.datasets.shipped_sets import load_frames, mini_set
from harness.reference.errors import InputError

WHOLE = "omol25"  # what the branches of one charge are parts of


def conversion(entry: Source, paths: Sequence[Path], store: Path, rules: Rules, workers: int) -> Conversion:
    """How to convert these files, or the shipped set if there are none."""
    if not paths:
        mini = mini_set(entry.slug)
        return Conversion(
            slug=entry.slug,
            format=SHIPPED,
            paths=(Path(entry.slug),),
            store=store,
            source=None,
            about=about_shipped(entry),
            rules=rules,
            workers=1 if mini.count < BLOCK else workers,
        )
    return Conversion(
        slug=entry.slug,
        format=format_of(entry, paths),
        paths=tuple(paths),
        store=store,
        source=entry,
        about=about_official(entry),
        rules=replace(rules, charges=entry.charges),
        workers=workers,
    )


def format_of(entry: Source, paths: Sequence[Path]) -> Format:
    """The format of a dataset's files: its authors' own, or another container that these files are in."""
    return named(container_of(paths, entry.format))


def official_files(root: str, entry: Source) -> tuple[Path, ...]:
    """The dataset's own folder in a folder of all of them, or nothing if it is not there.

    A branch of one charge is read from the folder of the whole. Raises InputError for a folder with no dataset in it.
    """
    if not root:
        return ()
    folder = Path(root).expanduser()
    if not folder.is_absolute():
        raise InputError(f"data={root}: expected an absolute path, jobs run in other folders")
    if not folder.is_dir():
        raise InputError(f"data={root}: no such folder")
    there = {path.name.lower(): path for path in sorted(folder.iterdir()) if path.is_dir()}
    if not there.keys() & {s.slug for s in SOURCES}:
        found = ", ".join(sorted(there)[:8]) or "no folders"
        raise InputError(f"{folder}: expected folders named as `harness data list` names the datasets; found {found}")
    names = (entry.slug,) if entry.charges == "all" else (entry.slug, WHOLE)
    return next(((there[name],) for name in names if name in there), ())


def about_official(entry: Source) -> dict[str, Any]:
    """What a report must say of official files."""
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
        "part_of": None if entry.charges == "all" else WHOLE,
    }


def about_shipped(entry: Source) -> dict[str, Any]:
    """What a report must say of a shipped set."""
    mini = mini_set(entry.slug)
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
        "part_of": None if entry.charges == "all" else WHOLE,
    }


def _parts(paths: Sequence[Path]) -> list[Part]:
    return [Part(mini_set(path.name).file, path.name) for path in paths]


def _read(part: Part) -> Iterator[Frames | Fault]:
    frames = load_frames(mini_set(part.key))
    for first in range(0, len(frames), BLOCK):
        yield frames[first : first + BLOCK]


SHIPPED = Format(name="shipped", files="what comes with the harness", parts=_parts, read=_read)
