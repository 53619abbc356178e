"""A store of HydraGNN made usable where it lies: a seal beside it, and not a byte of it changed or copied."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.reference.datasets.catalog import Source
from harness.reference.datasets.conversion.inputs import about_official
from harness.reference.datasets.hydragnn.inspect import Findings, examine_store
from harness.reference.datasets.hydragnn.stores import REFERENCED, TOTAL, source_named
from harness.reference.datasets.splitting.splits import SPLITS
from harness.reference.datasets.statistics.summary import Statistics
from harness.reference.errors import InputError
from harness.reference.storage.adios.integrity import (
    Seal,
    check_files,
    inner_seal_paths,
    outer_seal_paths,
    read_older_seal,
    write_seal,
)
from harness.reference.storage.adios.writer import BPFile, sum_arrays

MOST_AT_FAULT = 0.1  # of all structures
WHERE_EDGES_COUNT = "edges are not used: neighbours are found from positions"
Progress = Callable[[int, int, str], None]


def convert_in_place(entry: Source, path: Path, to: Path | None, progress: Progress) -> str:
    """Check a store of HydraGNN and write what it lacks beside it, or beside a link to it in the folder `to`.

    Returns what was done, in lines. Raises InputError for a store of another dataset, and for one that is unsound.
    """
    older = read_older_seal(path)
    if older is not None:
        return _renew_seal(entry, path, older)
    if inner_seal_paths(path)[0].exists():
        return f"{path}: a store of this program, nothing to do"

    def expected(name: object) -> Source:
        require_dataset(entry, path, name)
        return entry

    findings = examine_store(path, expected, progress)
    at_fault = sum(len(split.left_out) for split in findings.splits.values())
    if SPLITS[0] not in findings.splits:
        raise InputError(f"{path}: has no {SPLITS[0]}, only {', '.join(findings.splits)}")
    if at_fault > MOST_AT_FAULT * findings.samples:
        counted = ", ".join(f"{n:,} {kind}" for kind, n in findings.faults.most_common())
        first = findings.examples[0] if findings.examples else ""
        raise InputError(f"{path}: {at_fault:,} of {findings.samples:,} structures cannot be used: {counted} ({first})")
    target = path if to is None else _link(path, to)
    write_seal(target, outer_seal_paths(target), findings.tables, _facts(entry, findings))
    lines = [
        f"{target}: {findings.samples - at_fault:,} structures of {entry.slug} can be trained on where they lie;"
        f" {outer_seal_paths(target)[0].name} beside it has the checksums and reference energies",
        *describe(findings),
    ]
    return "\n".join(lines)


def _renew_seal(entry: Source, path: Path, older: Seal) -> str:
    """Give a store of an older version, if it is as that version sealed it, the checksums of its blocks."""
    check_files(path, older)
    with BPFile(path, unfinished=True) as file:
        about = file.attributes.get("about")
        require_dataset(entry, path, about.get("slug") if isinstance(about, dict) else None)
        tables = sum_arrays(file)
    write_seal(path, inner_seal_paths(path), tables)
    return f"{path}: written by an older version; the checksums of its blocks have been added"


def require_dataset(entry: Source, path: Path, name: object) -> None:
    """Raise InputError where a store says that it is of another dataset."""
    try:
        result = source_named(str(name))
    except InputError:
        return
    if result != entry and not entry.slug.startswith(f"{result.slug}-"):
        raise InputError(
            f"{path}: its dataset_name is {name!r}, not {entry.slug}: `harness data convert {result.slug} {path}`"
        )


def describe(findings: Findings) -> list[str]:
    """A line for each split, and for all that is unusual."""
    kind = (
        "energies are what a linear regression left; its coefficients are added again"
        if findings.is_referenced
        else "energies are total, as they are stored"
        if findings.coefficients is not None
        else "no linear regression: energies are total, as they are stored"
    )
    lines = []
    for label, split in findings.splits.items():
        s = split.statistics
        size = f"{s.sizes.low:.0f} to {s.sizes.high:.0f} atoms" if s.sizes.number else "no usable size"
        left = f", {len(split.left_out):,} left out" if split.left_out else ""
        forces = f", forces up to {s.forces.high:.4g} eV/angstrom" if s.forces.number else ", no forces"
        energy = (
            f"{s.energy.low:.4g} to {s.energy.high:.4g} eV/atom beyond the references" if s.energy.number else "none"
        )
        lines.append(
            f"  {label}: {split.samples:,} structures of {size}, {split.edges:,} edges{left}; energy {energy}{forces}"
        )
    lines.append(f"  {kind}; {WHERE_EDGES_COUNT}")
    for heading, counted in (("cannot be used", findings.faults), ("unusual", findings.notes)):
        lines += [f"  {heading}: {n:,} {kind}" for kind, n in counted.most_common()]
    return [*lines, *(f"    {text}" for text in findings.examples)]


def _facts(entry: Source, findings: Findings) -> dict[str, Any]:
    """What training, reports and `harness data stats` ask of a store."""
    statistics = Statistics()
    for split in findings.splits.values():
        statistics.merge(split.statistics)
    energies = REFERENCED if findings.is_referenced else TOTAL
    return {
        "about": about_official(entry) | {"stored_by": "HydraGNN"},
        "references": findings.references.as_json(),
        "statistics": statistics.as_json(),
        "energies": energies,
        "left_out_samples": {label: split.left_out for label, split in findings.splits.items() if split.left_out},
        "left_out": sum(len(split.left_out) for split in findings.splits.values()),
        "unusual": dict(findings.notes),
    }


def _link(path: Path, to: Path) -> Path:
    """Return a link to the store in a folder, made unless it is there."""
    to.mkdir(parents=True, exist_ok=True)
    link = to / path.resolve().name
    if link.resolve() != path.resolve():
        if link.exists() or link.is_symlink():
            raise InputError(f"{link}: exists already and is another store; remove it, or choose another folder")
        os.symlink(path.resolve(), link, target_is_directory=True)
    return link
