"""Checks of official files without conversion, and checks of stores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from harness.protocol.text import sanitize_line
from harness.reference.data.structure_table import RejectedStructure, Remark, StructureTable
from harness.reference.datasets.catalog import DatasetSource
from harness.reference.datasets.conversion import read_part
from harness.reference.datasets.conversion.convert import SHIPPED, detect_source_format
from harness.reference.datasets.conversion.read_part import (
    MAX_EXAMPLES,
    REJECTED_BY_SOURCE,
    UNREADABLE,
    LabelCounts,
    select_charges,
)
from harness.reference.datasets.hydragnn.in_place import describe_findings
from harness.reference.datasets.hydragnn.inspect import examine_store
from harness.reference.datasets.hydragnn.stores import (
    describe_store,
    find_named_source,
    is_bp_folder,
    read_blocks,
    require_seal,
)
from harness.reference.datasets.parsing.base import FileChunk, ProgressCallback
from harness.reference.datasets.parsing.paths import count_skipped_files, reject_copies
from harness.reference.datasets.parsing.unit_checks import MAX_FORCE, check_structures
from harness.reference.datasets.splits import hash_texts
from harness.reference.errors import InputError
from harness.reference.storage.adios.integrity import find_seal, get_inner_seal_paths
from harness.reference.storage.adios.reader import BPFile
from harness.reference.storage.schema import is_finite
from harness.reference.storage.structure_codec import decode_text

OUTLIERS = {
    "outlier": "that the dataset's authors flag as such",
    "force norm": f"with forces of {MAX_FORCE:g} eV/angstrom or more",
}
REQUIRED_LABELS = frozenset({"forces", "spin"})  # if the official dataset has them, the files must have them too
MAX_OUTLIER_SHARE = 0.05  # if more structures have large forces, the units are probably wrong


@dataclass(frozen=True)
class Report:
    """The result of a check.

    Attributes:
        text: The findings, in one or more lines.
        faults: Number of faults; at least 1 if no structure can be used.
    """

    text: str
    faults: int


@dataclass
class _Findings:
    """The findings in official files."""

    sound: int = 0
    other_charges: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    labels: LabelCounts = field(default_factory=LabelCounts)
    examples: list[str] = field(default_factory=list)
    example_counts: Counter[str] = field(default_factory=Counter)

    def add(self, fault: RejectedStructure, path: Path) -> None:
        """Count a structure that cannot be used, and add it to the examples if it is among the first of its kind."""
        self.faults[fault.kind] += fault.count
        self.labels.add_rejection(fault)
        self.add_example(fault.kind, f"{path.name}: {fault.where}: {fault.reason}")

    def add_example(self, kind: str, text: str) -> None:
        """Add an example, unless there are MAX_EXAMPLES of its kind."""
        self.example_counts[kind] += 1
        if self.example_counts[kind] <= MAX_EXAMPLES:
            self.examples.append(f"  {sanitize_line(text)}")


def inspect_files(entry: DatasetSource, paths: Sequence[Path], progress: ProgressCallback) -> Report:
    """Read all files of a dataset, or its shipped set, as a conversion does, and report the faults."""
    form, official = (detect_source_format(entry, paths), entry) if paths else (SHIPPED, None)
    findings = _Findings()
    parts = form.list_chunks(list(paths) or [Path(entry.slug)])
    reject_copies(part.path for part in parts)
    for number, part in enumerate(parts):
        try:
            for item in form.read_chunk(part):
                _count_item(item, part, entry, official, findings)
        except InputError as error:
            findings.faults[UNREADABLE] += 1
            findings.add_example(UNREADABLE, str(error))
        progress(number + 1, len(parts), "parts read")
    return _build_report(entry, findings, count_skipped_files(paths, parts), is_official=official is not None)


def _count_item(
    item: StructureTable | RejectedStructure,
    part: FileChunk,
    entry: DatasetSource,
    official: DatasetSource | None,
    findings: _Findings,
) -> None:
    """Check an item of a reader, and count it."""
    if isinstance(item, Remark):
        findings.labels.add_remark(item)
    elif isinstance(item, RejectedStructure):
        findings.add(item, part.path)
    else:
        selected = select_charges(item, entry.charges)
        findings.other_charges += len(item) - len(selected)
        sound, faults = check_structures(selected, source=official)
        findings.labels.add(sound)
        findings.sound += len(sound)
        for fault in faults:
            findings.add(fault, part.path)


def _build_report(
    entry: DatasetSource, findings: _Findings, skipped_files: Counter[str], *, is_official: bool
) -> Report:
    """Return the report on official files or a shipped set."""
    without_forces = findings.labels.without["forces"]
    usable = findings.sound - (without_forces if without_forces < findings.sound else 0)
    lacking = [label for label in entry.labels if is_official and 0 < findings.sound == findings.labels.without[label]]
    unusable = set(lacking) & REQUIRED_LABELS or (findings.labels.find_hint("charge") and "spin" in entry.labels)
    lines = read_part.describe_missing_labels(findings.labels, entry.labels)
    lines += [
        _describe_outliers(findings.faults[kind], text) for kind, text in OUTLIERS.items() if findings.faults[kind]
    ]
    if findings.other_charges:
        lines.append(f"{read_part.format_count(findings.other_charges)} with other charges skipped")
    lines += [f"skipped: {what}: {n:,}" for what, n in skipped_files.items()]
    counted = ", ".join(f"{n:,} {kind}" for kind, n in findings.faults.most_common())
    clean = "nothing is wrong with the rest" if not (lacking or unusable) and usable else "no other fault was found"
    summary = f"{entry.slug}: {usable:,} structures can be used; {counted or clean}"
    faults = sum(n for kind, n in findings.faults.items() if not _is_usual(kind, n, findings))
    n_faulty = faults or (findings.sound if unusable else int(not usable))
    return Report("\n".join([summary, *(f"  {line}" for line in lines), *findings.examples]), n_faulty)


def _describe_outliers(count: int, text: str) -> str:
    return f"outliers: {read_part.format_count(count)} {text}, left out"


def _is_usual(kind: str, count: int, findings: _Findings) -> bool:
    """Return whether intact official files may hold this number of rejected structures of a kind."""
    if kind in REJECTED_BY_SOURCE:
        return True
    return kind in OUTLIERS and count <= MAX_OUTLIER_SHARE * (findings.sound + findings.faults.total())


def inspect_store(path: Path, progress: ProgressCallback) -> Report:
    """Read a whole store, and check its checksums, values and ids."""
    if is_bp_folder(path) and not get_inner_seal_paths(path)[0].exists():
        return _inspect_hydragnn_store(path, progress)
    with BPFile(path) as file:
        file.verify()
        faults, ids = Counter[str](), [np.zeros(0, dtype=np.uint64)]
        total = sum(file.count_samples(label) for label in file.splits)
        count = 0
        for label in file.splits:
            for _, block in read_blocks(file, label):
                for name, column in block.columns.items():
                    if column.values.dtype.kind == "f" and not is_finite(name, column.values):
                        faults[f"{label}/{name} not finite"] += 1
                if "id" in block.columns:
                    ids.append(hash_texts(np.array([decode_text(record["id"]) for record in block.iter_samples()])))
                count += block.samples
                progress(count, total, "samples read")
        names = np.concatenate(ids)
        faults["duplicate ids"] = len(names) - len(np.unique(names))
        splits = ", ".join(f"{file.count_samples(label):,} {label}" for label in file.splits)
    counted = ", ".join(f"{n:,} {kind}" for kind, n in (+faults).items())
    summary = f"{sanitize_line(str(path))}: {total:,} structures ({splits}); {counted or 'nothing is wrong'}"
    return Report(summary, faults.total() or int(not total))


def _inspect_hydragnn_store(path: Path, progress: ProgressCallback) -> Report:
    """Examine a store that HydraGNN wrote."""

    def find_expected_source(name: object) -> DatasetSource | None:
        try:
            return find_named_source(str(name or path.stem))
        except InputError:
            return None

    findings = examine_store(path, find_expected_source, progress)
    faults = findings.faults.total()
    hint = ""
    if find_seal(path) is None:
        name = findings.entry.slug if findings.entry else "DATASET"
        hint = f"; `harness data convert {name} {path}` makes it usable"
    verdict = f"{faults:,} cannot be used" if faults else "nothing is wrong"
    summary = f"{path}: {findings.samples:,} structures as HydraGNN stores them; {verdict}{hint}"
    return Report("\n".join([summary, *describe_findings(findings)]), faults or int(not findings.samples))


def summarize_store(path: Path) -> str:
    """Summarize a store in one line, from the statistics of its conversion."""
    require_seal(path)
    with BPFile(path) as file:
        facts = describe_store(file)
        total = sum(file.count_samples(label) for label in file.splits)
    try:
        statistics = _format_statistics(facts.statistics)
    except (KeyError, TypeError, ValueError):
        raise InputError(f"{path}: its statistics are damaged; convert it again") from None
    return f"{facts.source.slug} ({facts.data_origin}, {facts.level}): {total:,} structures {statistics}"


def _format_statistics(statistics: Mapping[str, Any]) -> str:
    elements = " ".join(statistics["elements"])
    listed = elements if len(statistics["elements"]) <= 12 else f"{len(statistics['elements'])} elements"
    energy, forces = statistics["energy_ev_per_atom"], statistics["force_norm_ev_per_a"]
    return (
        f"of {statistics['sizes']['min']:.0f} to"
        f" {statistics['sizes']['max']:.0f} atoms; {listed}; residual energy sd {energy['sd']:.3g} eV/atom"
        + (f", forces rms {forces['rms']:.3g} eV/angstrom" if forces["number"] else ", no forces")
    )
