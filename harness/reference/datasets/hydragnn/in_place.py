"""Make a store of HydraGNN usable in place: write a seal next to it, without changing or copying the store."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from harness.reference.datasets.catalog import DatasetSource
from harness.reference.datasets.conversion.convert import describe_official
from harness.reference.datasets.hydragnn.inspect import Findings, examine_store
from harness.reference.datasets.hydragnn.stores import REFERENCED, TOTAL, find_named_source
from harness.reference.datasets.parsing.base import ProgressCallback
from harness.reference.datasets.splits import SPLITS
from harness.reference.datasets.summary import Statistics
from harness.reference.errors import InputError
from harness.reference.storage.adios.integrity import (
    Seal,
    check_files,
    get_inner_seal_paths,
    get_outer_seal_paths,
    read_older_seal,
    write_seal,
)
from harness.reference.storage.adios.reader import BPFile
from harness.reference.storage.adios.writer import compute_checksums

MAX_REJECTED_SHARE = 0.1  # if more structures cannot be used, the whole store is rejected
EDGES_NOTE = "edges are not used: neighbours are computed from positions"


def convert_in_place(entry: DatasetSource, path: Path, to: Path | None, progress: ProgressCallback) -> str:
    """Check a store of HydraGNN, and write its seal next to it or next to a link in another folder.

    Args:
        entry: The dataset.
        path: The store.
        to: The folder in which a link to the store is created, with the seal next to the link; None to write the seal
            next to the store.
        progress: The function that reports progress.

    Returns:
        A summary of several lines.

    Raises:
        InputError: The store belongs to another dataset, or too many structures cannot be used.
    """
    older = read_older_seal(path)
    if older is not None:
        return _renew_seal(entry, path, older)
    if get_inner_seal_paths(path)[0].exists():
        return f"{path}: a store of this program, nothing to do"

    def require_entry(name: object) -> DatasetSource:
        require_dataset(entry, path, name)
        return entry

    findings = examine_store(path, require_entry, progress)
    n_faulty = sum(len(split.left_out) for split in findings.splits.values())
    if SPLITS[0] not in findings.splits:
        raise InputError(f"{path}: has no {SPLITS[0]}, only {', '.join(findings.splits)}")
    if n_faulty > MAX_REJECTED_SHARE * findings.samples:
        counted = ", ".join(f"{n:,} {kind}" for kind, n in findings.faults.most_common())
        first = findings.examples[0] if findings.examples else ""
        raise InputError(f"{path}: {n_faulty:,} of {findings.samples:,} structures cannot be used: {counted} ({first})")
    target = path if to is None else _link_store(path, to)
    write_seal(target, get_outer_seal_paths(target), findings.tables, _build_facts(entry, findings))
    lines = [
        f"{target}: {findings.samples - n_faulty:,} structures of {entry.slug} can be used for training in place;"
        f" {get_outer_seal_paths(target)[0].name} next to it has the checksums and reference energies",
        *describe_findings(findings),
    ]
    return "\n".join(lines)


def _renew_seal(entry: DatasetSource, path: Path, older: Seal) -> str:
    """Add checksums of blocks to an intact store that an older version wrote."""
    check_files(path, older)
    with BPFile(path, unfinished=True) as file:
        about = file.attributes.get("about")
        require_dataset(entry, path, about.get("slug") if isinstance(about, dict) else None)
        tables = compute_checksums(file)
    write_seal(path, get_inner_seal_paths(path), tables)
    return f"{path}: written by an older version; the checksums of its blocks have been added"


def require_dataset(entry: DatasetSource, path: Path, name: object) -> None:
    """Raise InputError if the dataset that a store names is not the expected one; unknown names are accepted."""
    try:
        source = find_named_source(str(name))
    except InputError:
        return
    if source != entry and not entry.slug.startswith(f"{source.slug}-"):
        raise InputError(
            f"{path}: its dataset_name is {name!r}, not {entry.slug}: `harness data convert {source.slug} {path}`"
        )


def describe_findings(findings: Findings) -> list[str]:
    """Return a line for each split, for the kind of energies, and for each kind of fault."""
    kind = (
        "energies are residuals of a linear regression, which is added again"
        if findings.is_referenced
        else "energies are total, as they are stored"
        if findings.coefficients is not None
        else "no linear regression: energies are total, as they are stored"
    )
    lines = []
    for label, split in findings.splits.items():
        s = split.statistics
        size = f"{s.sizes.low:.0f} to {s.sizes.high:.0f} atoms" if s.sizes.number else "no usable size"
        left_out = f", {len(split.left_out):,} left out" if split.left_out else ""
        forces = f", forces up to {s.forces.high:.4g} eV/angstrom" if s.forces.number else ", no forces"
        energy = f"{s.energy.low:.4g} to {s.energy.high:.4g} eV/atom minus references" if s.energy.number else "none"
        lines.append(
            f"  {label}: {split.samples:,} structures of {size}, {split.edges:,} edges{left_out};"
            f" energy {energy}{forces}"
        )
    lines.append(f"  {kind}; {EDGES_NOTE}")
    for heading, counted in (("cannot be used", findings.faults), ("unusual", findings.unusual)):
        lines += [f"  {heading}: {n:,} {kind}" for kind, n in counted.most_common()]
    return [*lines, *(f"    {text}" for text in findings.examples)]


def _build_facts(entry: DatasetSource, findings: Findings) -> dict[str, Any]:
    """Return the facts about a store that training, reports and `harness data stats` need."""
    statistics = Statistics()
    for split in findings.splits.values():
        statistics.merge(split.statistics)
    energies = REFERENCED if findings.is_referenced else TOTAL
    return {
        "about": describe_official(entry) | {"stored_by": "HydraGNN"},
        "references": findings.references.to_json(),
        "statistics": statistics.to_json(),
        "energies": energies,
        "left_out_samples": {label: split.left_out for label, split in findings.splits.items() if split.left_out},
        "left_out": sum(len(split.left_out) for split in findings.splits.values()),
        "unusual": dict(findings.unusual),
    }


def _link_store(path: Path, to: Path) -> Path:
    """Create a link to the store in a folder, and return the link."""
    to.mkdir(parents=True, exist_ok=True)
    link = to / path.resolve().name
    if link.resolve() != path.resolve():
        if link.exists() or link.is_symlink():
            raise InputError(f"{link}: exists already and is another store; remove it, or choose another folder")
        os.symlink(path.resolve(), link, target_is_directory=True)
    return link
