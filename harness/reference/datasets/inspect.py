"""Going through official files without writing, and through stores: what is in them, and what is wrong with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from harness.protocol.text import sanitize_line
from harness.reference.data.structure_table import Fault, Frames, Remark
from harness.reference.datasets.catalog import Source
from harness.reference.datasets.conversion import labels
from harness.reference.datasets.conversion.inputs import SHIPPED, format_of
from harness.reference.datasets.conversion.labels import LabelCounts
from harness.reference.datasets.conversion.read_part import EXAMPLES, STATED, UNREADABLE, of_charges
from harness.reference.datasets.hydragnn.in_place import describe
from harness.reference.datasets.hydragnn.inspect import examine_store
from harness.reference.datasets.hydragnn.stored_frames import read_blocks
from harness.reference.datasets.hydragnn.stores import describe_store, is_bp_folder, require_seal, source_named
from harness.reference.datasets.parsing.base import Part
from harness.reference.datasets.parsing.paths import count_passed_over
from harness.reference.datasets.parsing.unit_checks import MAX_FORCE, check
from harness.reference.datasets.splitting.copies import refuse_copies
from harness.reference.datasets.splitting.splits import digests
from harness.reference.errors import InputError
from harness.reference.storage.adios.integrity import find_seal, inner_seal_paths
from harness.reference.storage.adios.writer import BPFile
from harness.reference.storage.columns import text_of
from harness.reference.storage.schema import is_finite

STEP = 1024
OUTLIERS = {
    "outlier": "that the dataset's authors flag as such",
    "force norm": f"with forces of {MAX_FORCE:g} eV/angstrom or more",
}
NEEDED = frozenset({"forces", "spin"})  # labels without which a whole set is not what its dataset is
MOST_OUTLIERS = 0.05  # share of structures above which large forces mean that the units are wrong
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Report:
    """What was found, in lines, and how many structures cannot be used; at least one where none can."""

    told: str
    faults: int


@dataclass
class _Findings:
    """What was found in official files."""

    sound: int = 0
    other_charges: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    labels: LabelCounts = field(default_factory=LabelCounts)
    examples: list[str] = field(default_factory=list)
    shown: Counter[str] = field(default_factory=Counter)

    def add(self, fault: Fault, path: Path) -> None:
        """Count a structure that cannot be used, and keep the first few of each kind as examples."""
        self.faults[fault.kind] += fault.count
        self.labels.add_fault(fault)
        self.show(fault.kind, f"{path.name}: {fault.where}: {fault.reason}")

    def show(self, kind: str, text: str) -> None:
        """Keep an example, up to a few of each kind."""
        self.shown[kind] += 1
        if self.shown[kind] <= EXAMPLES:
            self.examples.append(f"  {sanitize_line(text)}")


def of_files(entry: Source, paths: Sequence[Path], progress: Progress) -> Report:
    """Read all of a dataset's files, or its shipped set, as a conversion would."""
    form, official = (format_of(entry, paths), entry) if paths else (SHIPPED, None)
    found = _Findings()
    parts = form.parts(list(paths) or [Path(entry.slug)])
    refuse_copies(part.path for part in parts)
    for number, part in enumerate(parts):
        try:
            for item in form.read(part):
                _take(item, part, entry, official, found)
        except InputError as error:
            found.faults[UNREADABLE] += 1
            found.show(UNREADABLE, str(error))
        progress(number + 1, len(parts), "parts read")
    return _report(entry, found, count_passed_over(paths, parts), is_official=official is not None)


def _take(item: Frames | Fault, part: Part, entry: Source, official: Source | None, found: _Findings) -> None:
    """Check what a reader yields, and count it."""
    if isinstance(item, Remark):
        found.labels.add_remark(item)
    elif isinstance(item, Fault):
        found.add(item, part.path)
    else:
        wanted = of_charges(item, entry.charges)
        found.other_charges += len(item) - len(wanted)
        sound, faults = check(wanted, source=official)
        found.labels.add(sound)
        found.sound += len(sound)
        for fault in faults:
            found.add(fault, part.path)


def _report(entry: Source, found: _Findings, passed_over: Counter[str], *, is_official: bool) -> Report:
    """The lines of a report, and how many structures or labels are at fault."""
    unforced = found.labels.without["forces"]
    usable = found.sound - (unforced if unforced < found.sound else 0)
    lacking = [label for label in entry.labels if is_official and 0 < found.sound == found.labels.without[label]]
    unusable = set(lacking) & NEEDED or (found.labels.hint("charge") and "spin" in entry.labels)
    lines = labels.describe(found.labels, entry.labels)
    lines += [_outliers(found.faults[kind], text) for kind, text in OUTLIERS.items() if found.faults[kind]]
    if found.other_charges:
        lines.append(f"{labels.count_structures(found.other_charges)} of other charges passed over")
    lines += [f"passed over: {what}: {n:,}" for what, n in passed_over.items()]
    counted = ", ".join(f"{n:,} {kind}" for kind, n in found.faults.most_common())
    clean = "nothing is wrong with the rest" if not (lacking or unusable) and usable else "no other fault was found"
    summary = f"{entry.slug}: {usable:,} structures can be used; {counted or clean}"
    faults = sum(n for kind, n in found.faults.items() if not _is_usual(kind, n, found))
    at_fault = faults or (found.sound if unusable else int(not usable))
    return Report("\n".join([summary, *(f"  {line}" for line in lines), *found.examples]), at_fault)


def _outliers(count: int, text: str) -> str:
    return f"outliers: {labels.count_structures(count)} {text}, left out"


def _is_usual(kind: str, count: int, found: _Findings) -> bool:
    """Whether intact official files may hold so many structures of a kind that is left out."""
    if kind in STATED:
        return True
    return kind in OUTLIERS and count <= MOST_OUTLIERS * (found.sound + found.faults.total())


def of_store(path: Path, progress: Progress) -> Report:
    """Read all of a store: checksums, values, ids."""
    if is_bp_folder(path) and not inner_seal_paths(path)[0].exists():
        return _of_original(path, progress)
    with BPFile(path) as file:
        file.verify()
        faults, ids = Counter[str](), [np.zeros(0, dtype=np.uint64)]
        total = sum(file.samples(label) for label in file.splits)
        done = 0
        for label in file.splits:
            for _, block in read_blocks(file, label):
                for name, column in block.columns.items():
                    if column.values.dtype.kind == "f" and not is_finite(name, column.values):
                        faults[f"{label}/{name} not finite"] += 1
                if "id" in block.columns:
                    ids.append(digests(np.array([text_of(record["id"]) for record in block.records()])))
                done += block.samples
                progress(done, total, "samples read")
        names = np.concatenate(ids)
        faults["ids that stood there before"] = len(names) - len(np.unique(names))
        splits = ", ".join(f"{file.samples(label):,} {label}" for label in file.splits)
    counted = ", ".join(f"{n:,} {kind}" for kind, n in (+faults).items())
    told = f"{sanitize_line(str(path))}: {total:,} structures ({splits}); {counted or 'nothing is wrong'}"
    return Report(told, faults.total() or int(not total))


def _of_original(path: Path, progress: Progress) -> Report:
    """Go through a store of HydraGNN, array by array."""

    def find_source(name: object) -> Source | None:
        try:
            return source_named(str(name or path.stem))
        except InputError:
            return None

    findings = examine_store(path, find_source, progress)
    faults = findings.faults.total()
    ready = ""
    if find_seal(path) is None:
        name = findings.entry.slug if findings.entry else "DATASET"
        ready = f"; `harness data convert {name} {path}` makes it usable"
    found = f"{faults:,} cannot be used" if faults else "nothing is wrong"
    told = f"{path}: {findings.samples:,} structures as HydraGNN stores them; {found}{ready}"
    return Report("\n".join([told, *describe(findings)]), faults or int(not findings.samples))


def statistics_line(path: Path) -> str:
    """A store in one line, from what was noted when it was made."""
    require_seal(path)
    with BPFile(path) as file:
        facts = describe_store(file)
        total = sum(file.samples(label) for label in file.splits)
    try:
        return f"{facts.source.slug} ({facts.role}, {facts.level}): {total:,} structures {_summed_up(facts.statistics)}"
    except (KeyError, TypeError, ValueError):
        raise InputError(f"{path}: its statistics are damaged; convert it anew") from None


def _summed_up(told: Mapping[str, Any]) -> str:
    elements = " ".join(told["elements"])
    shown = elements if len(told["elements"]) <= 12 else f"{len(told['elements'])} elements"
    energy, forces = told["energy_ev_per_atom"], told["force_norm_ev_per_a"]
    return (
        f"of {told['sizes']['min']:.0f} to"
        f" {told['sizes']['max']:.0f} atoms; {shown}; energy beyond the references sd {energy['sd']:.3g} eV/atom"
        + (f", forces rms {forces['rms']:.3g} eV/angstrom" if forces["number"] else ", no forces")
    )
