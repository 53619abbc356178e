"""Going through official files without writing, and through stores: what is in them, and what is wrong with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from harness.reference.datasets.formats.checks import check
from harness.reference.datasets.in_place import describe
from harness.reference.datasets.inputs import SHIPPED, format_of
from harness.reference.datasets.originals import examine_store
from harness.reference.datasets.reading import EXAMPLES, UNLABELLED, of_charges
from harness.reference.datasets.sources import Source
from harness.reference.datasets.splits import digests
from harness.reference.datasets.stored_frames import read_blocks
from harness.reference.datasets.stores import describe_store, is_bp_folder, require_seal, source_named
from harness.reference.errors import InputError
from harness.reference.frames import Fault
from harness.reference.store.blocks import text_of
from harness.reference.store.bp import BPFile
from harness.reference.store.bp_folder import find_seal, places_inside

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Report:
    """What was found, in lines, and how many structures cannot be used."""

    told: str
    faults: int


def of_files(entry: Source, paths: Sequence[Path], progress: Progress) -> Report:
    """Read all of a dataset's files, or its shipped set, as a conversion would."""
    form, official = (format_of(entry, paths), entry) if paths else (SHIPPED, None)
    found, examples, sound = Counter[str](), [], 0
    parts = form.parts(list(paths) or [Path(entry.slug)])
    for number, part in enumerate(parts):
        try:
            for item in form.read(part):
                faults = [item] if isinstance(item, Fault) else []
                if not isinstance(item, Fault):
                    kept, faults = check(of_charges(item, entry.charges), source=official)
                    sound += len(kept)
                for fault in faults:
                    found[fault.kind] += fault.count
                    if found[fault.kind] <= EXAMPLES * fault.count:
                        examples.append(f"  {part.path.name}: {fault.where}: {fault.reason}")
        except InputError as error:
            found["unreadable"] += 1
            examples.append(f"  {error}")
        progress(number + 1, len(parts), "parts read")
    counted = ", ".join(f"{n:,} {kind}" for kind, n in found.most_common())
    told = f"{entry.slug}: {sound:,} structures can be used; {counted or 'nothing is wrong with the rest'}"
    return Report("\n".join([told, *examples]), sum(n for kind, n in found.items() if kind != UNLABELLED))


def of_store(path: Path, progress: Progress) -> Report:
    """Read all of a store: checksums, values, ids."""
    if is_bp_folder(path) and not places_inside(path)[0].exists():
        return _of_original(path, progress)
    with BPFile(path) as file:
        file.verify()
        faults, ids = Counter[str](), [np.zeros(0, dtype=np.uint64)]
        total = sum(file.samples(label) for label in file.splits)
        done = 0
        for label in file.splits:
            for _, block in read_blocks(file, label):
                for name, column in block.columns.items():
                    if column.values.dtype.kind == "f" and not np.isfinite(column.values).all():
                        faults[f"{label}/{name} not finite"] += 1
                if "id" in block.columns:
                    ids.append(digests(np.array([text_of(record["id"]) for record in block.records()])))
                done += block.samples
                progress(done, total, "samples read")
        names = np.concatenate(ids)
        faults["ids that stood there before"] = len(names) - len(np.unique(names))
        splits = ", ".join(f"{file.samples(label):,} {label}" for label in file.splits)
    counted = ", ".join(f"{n:,} {kind}" for kind, n in (+faults).items())
    return Report(f"{path}: {total:,} structures ({splits}); {counted or 'nothing is wrong'}", faults.total())


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
    return Report("\n".join([told, *describe(findings)]), faults)


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
