"""Going through official files without writing, and through stores: what is in them, and what is wrong with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from harness.reference.datasets.copies import refuse_copies
from harness.reference.datasets.formats.checks import check
from harness.reference.datasets.inputs import SHIPPED, format_of
from harness.reference.datasets.reading import EXAMPLES, UNLABELLED, of_charges
from harness.reference.datasets.sources import Source
from harness.reference.datasets.splits import digests
from harness.reference.errors import InputError
from harness.reference.frames import Fault
from harness.reference.store.blocks import text_of
from harness.reference.store.bp import BPFile
from harness.text import sanitize_line

STEP = 1024
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Report:
    """What was found, in lines, how many structures cannot be used, and how many can."""

    told: str
    faults: int
    usable: int


def of_files(entry: Source, paths: Sequence[Path], progress: Progress) -> Report:
    """Read all of a dataset's files, or its shipped set, as a conversion would."""
    form, official = (format_of(entry, paths), entry) if paths else (SHIPPED, None)
    found, examples, sound = Counter[str](), [], 0
    parts = form.parts(list(paths) or [Path(entry.slug)])
    refuse_copies(part.path for part in parts)
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
                        examples.append(f"{part.path.name}: {fault.where}: {fault.reason}")
        except InputError as error:
            found["unreadable"] += 1
            examples.append(str(error))
        progress(number + 1, len(parts), "parts read")
    counted = ", ".join(f"{n:,} {kind}" for kind, n in found.most_common())
    rest = counted or ("nothing is wrong with the rest" if sound else "the files hold none")
    told = f"{entry.slug}: {sound:,} structures can be used; {rest}"
    unusable = sum(n for kind, n in found.items() if kind != UNLABELLED)
    return Report("\n".join([told, *(f"  {sanitize_line(text)}" for text in examples)]), unusable, sound)


def of_store(path: Path, progress: Progress) -> Report:
    """Read all of a store: checksums, values, ids."""
    with BPFile(path) as file:
        if "format" in file.attributes:
            file.verify()
        faults, ids = Counter[str](), [np.zeros(0, dtype=np.uint64)]
        total = sum(file.samples(label) for label in file.splits)
        done = 0
        for label in file.splits:
            for block in _blocks(file, label):
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
    told = f"{sanitize_line(str(path))}: {total:,} structures ({splits}); {counted or 'nothing is wrong'}"
    return Report(told, faults.total(), total)


def _blocks(file: BPFile, label: str) -> Iterator[Any]:
    samples = file.samples(label)
    for first in range(0, samples, STEP):
        yield file.columns(label, first, min(first + STEP, samples))


def statistics_line(path: Path) -> str:
    """A store in one line, from what was noted when it was made."""
    with BPFile(path) as file:
        about, told = file.attributes.get("about"), file.attributes.get("statistics")
        total = sum(file.samples(label) for label in file.splits)
    if not isinstance(about, dict) or not isinstance(told, dict):
        return f"{path}: {total:,} structures; not made by this program, so nothing more was noted"
    elements = " ".join(told["elements"])
    shown = elements if len(told["elements"]) <= 12 else f"{len(told['elements'])} elements"
    energy, forces = told["energy_ev_per_atom"], told["force_norm_ev_per_a"]
    return (
        f"{about['slug']} ({about['role']}, {about['level']}): {total:,} structures of {told['sizes']['min']:.0f} to"
        f" {told['sizes']['max']:.0f} atoms; {shown}; energy beyond the references sd {energy['sd']:.3g} eV/atom"
        + (f", forces rms {forces['rms']:.3g} eV/angstrom" if forces["number"] else ", no forces")
    )
