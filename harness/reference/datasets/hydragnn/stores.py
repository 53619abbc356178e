"""What a store is of: its dataset, its level of theory, its reference energies. All that reads stores asks here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from harness.reference.datasets.catalog import Source, source
from harness.reference.datasets.statistics import reference_energies
from harness.reference.datasets.statistics.reference_energies import References
from harness.reference.errors import InputError
from harness.reference.storage.adios.integrity import find_seal
from harness.reference.storage.adios.writer import BPFile

VERSION_SUFFIX = re.compile(r"-v\d+$")  # of HydraGNN: NAME-v2.bp has references subtracted
OTHER_NAMES = {"opoly26": "opoly2026"}  # in HydraGNN's own converters
REFERENCED, TOTAL = "referenced", "total"


@dataclass(frozen=True)
class StoreFacts:
    """What a store says of itself.

    about: facts of the dataset, its role and level of theory among them. energies: `total`, or `referenced` where the
    references were subtracted and must be added to have total energies.
    left_out: of each split, indices of the samples that cannot be used.
    """

    source: Source
    about: Mapping[str, Any]
    references: References
    energies: str
    statistics: Mapping[str, Any]
    left_out: Mapping[str, list[int]]

    @property
    def role(self) -> str:
        """What a report must call the data."""
        return str(self.about["role"])

    @property
    def level(self) -> str:
        """The level of theory."""
        return str(self.about["level"])


def source_named(name: str) -> Source:
    """Return the dataset of a name as HydraGNN's files or attributes have it; raises InputError for an unknown one."""
    plain = VERSION_SUFFIX.sub("", name.lower())
    return source(OTHER_NAMES.get(plain, plain))


def is_bp_folder(path: Path) -> bool:
    """Return whether this looks like a BP folder."""
    return (path / "md.idx").is_file()


def require_seal(path: Path) -> None:
    """Raise InputError, with the command to run, for a store of HydraGNN that was not converted yet."""
    if not is_bp_folder(path) or find_seal(path) is not None:
        return
    try:
        name = source_named(path.stem).slug
    except InputError:
        name = "DATASET"
    raise InputError(
        f"{path}: has no harness.json; a store of HydraGNN gets one beside it, without a copy, by"
        f" `harness data convert {name} {path}`"
    )


def describe_store(file: BPFile) -> StoreFacts:
    """Return what a store says of itself; raises InputError for one that does not, with what to do."""
    result = file.attributes
    if not file.is_sealed:
        require_seal(file.path)
    try:
        about, fitted = result["about"], result["references"]
        left_out = {label: sorted(map(int, indices)) for label, indices in result.get("left_out_samples", {}).items()}
        facts = StoreFacts(
            source(str(about["slug"])),
            {**about, "role": str(about["role"]), "level": str(about["level"])},
            reference_energies.from_json(fitted),
            str(result.get("energies", TOTAL)),
            dict(result["statistics"]),
            left_out,
        )
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError):
        raise InputError(
            f"{file.path}: says neither its level of theory nor its reference energies; convert it anew"
        ) from None
    for label, indices in left_out.items():
        if label not in file.splits or len(set(indices)) < len(indices):
            raise InputError(f"{file.path}: damaged, {label[:80]!r} is no split to leave samples out of")
        if indices and not 0 <= indices[0] <= indices[-1] < file.samples(label):
            raise InputError(f"{file.path}: damaged, it leaves out samples of {label} that are not there")
    if facts.energies not in (REFERENCED, TOTAL) or np.isinf(facts.references.energy_ev).any():
        raise InputError(f"{file.path}: damaged, its energies are neither total nor referenced")
    return facts
