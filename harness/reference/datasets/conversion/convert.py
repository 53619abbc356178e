"""Convert official files or a shipped set to a store: read parts in parallel into a spool, then merge the parts.

A conversion that was killed can be resumed: parts in the spool are not read again, and a store gets its final name only
when it is complete.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from harness.reference.data.structure_table import RejectedStructure, StructureTable
from harness.reference.datasets.catalog import SOURCES, DatasetSource
from harness.reference.datasets.conversion.merge import merge
from harness.reference.datasets.conversion.read_part import ConversionRules, PartRequest, read_part
from harness.reference.datasets.conversion.spool import Spool, Summary
from harness.reference.datasets.parsing.base import TABLE_STRUCTURES, DatasetFormat, FileChunk, ProgressCallback
from harness.reference.datasets.parsing.paths import count_skipped_files, reject_copies
from harness.reference.datasets.readers.registry import detect_format, get_format
from harness.reference.datasets.shipped_sets import find_shipped_set, load_table
from harness.reference.errors import InputError

SPOOL_VERSION = 5  # a conversion does not resume from a spool of another version


@dataclass(frozen=True)
class Conversion:
    """A conversion to carry out.

    Attributes:
        slug: The dataset.
        format: The format of its files.
        paths: The files or folders to read.
        store: The store to write.
        source: The expected labels and units; None for a shipped set.
        about: Facts of the dataset for the attribute `about` of the store (head, role, level, licence, ...).
        rules: The options.
        workers: Number of processes.
    """

    slug: str
    format: DatasetFormat
    paths: tuple[Path, ...]
    store: Path
    source: DatasetSource | None
    about: dict[str, Any]
    rules: ConversionRules
    workers: int = 1

    def identity(self, parts: Sequence[FileChunk]) -> dict[str, Any]:
        """Return plain data on everything that determines the content of the store."""
        files = {}
        for path in dict.fromkeys(part.path for part in parts):
            state = path.stat()
            files[str(path)] = [state.st_size, state.st_mtime_ns]
        rules = {name: value for name, value in asdict(self.rules).items() if name != "strict"}
        keys = [[str(part.path), part.key] for part in parts]
        return {"version": SPOOL_VERSION, "dataset": self.slug, "files": files, "parts": keys, "rules": rules}


def convert(conversion: Conversion, progress: ProgressCallback) -> dict[str, Any]:
    """Write the store, and return its facts; raises InputError for unusable files, OSError if the disk is full."""
    started = time.perf_counter()
    if conversion.store.exists():
        raise InputError(
            f"{conversion.store}: there is a store of this name already; remove it, or choose another folder"
        )
    parts = conversion.format.list_chunks(conversion.paths)
    skipped_files = count_skipped_files(conversion.paths, parts)
    reject_copies(part.path for part in parts)
    spool = Spool(conversion.store.with_name(conversion.store.name + ".spool"), conversion.identity(parts))
    with spool.lock():
        resumed = any(spool.summary(k) for k in range(len(parts)))
        summaries = _read_parts(conversion, parts, spool, progress)
        read_s = time.perf_counter() - started
        facts = merge(
            conversion.store,
            spool,
            summaries=summaries,
            about=conversion.about,
            rules=conversion.rules,
            progress=progress,
        )
        spool.remove()
    seconds = time.perf_counter() - started
    left_out = sum((Counter(s["left_out"]) for s in summaries), Counter(facts.pop("left_out")))
    read = sum(s["read"] for s in summaries)
    splits = facts.pop("splits")
    facts["conversion"] = {
        "structures_read": read,
        "structures_written": sum(splits.values()),
        "excluded": dict(left_out.most_common()),
        "excluded_by_charge": sum(s["other_charges"] for s in summaries),
        "examples": [text for s in summaries for text in s["examples"]][:20],
        "parts": len(parts),
        "workers": conversion.workers,
        "read_time_s": read_s,
        "seconds": seconds,
        "resumed": resumed,
        "structures_per_s": None if resumed else read / seconds,
        "labels": facts.pop("labels"),
        "duplicate_structures": facts.pop("repeats"),
        "regrouped": facts.pop("regrouped"),
        "stress_without_label": facts.pop("without_stress"),
        "missing_labels": facts.pop("missing_labels"),
        "skipped_files": dict(skipped_files),
        "splits": splits,
        **{name: value for name, value in asdict(conversion.rules).items() if name != "charges"},
    }
    return facts


def _read_parts(
    conversion: Conversion, parts: Sequence[FileChunk], spool: Spool, progress: ProgressCallback
) -> list[Summary]:
    """Read the parts that are not in the spool yet, and return the summaries of all parts."""
    summaries = [spool.summary(k) for k in range(len(parts))]
    missing = [
        PartRequest(k, part, conversion.format, source=conversion.source, rules=conversion.rules, spool=spool.folder)
        for k, part in enumerate(parts)
        if summaries[k] is None
    ]
    known = [s for s in summaries if s is not None]
    for s in known:
        if conversion.rules.strict and s["broken"]:
            raise InputError(f"{s['broken']} (from the spool; without --strict, the structure is left out)")
    progress(len(known), len(parts), "parts read")
    for count, (k, summary) in enumerate(_read_in_parallel(missing, conversion.workers), start=len(known) + 1):
        summaries[k] = summary
        progress(count, len(parts), "parts read")
    return [s for s in summaries if s is not None]


def _read_in_parallel(requests: Sequence[PartRequest], workers: int) -> Iterator[tuple[int, Summary]]:
    """Yield the number and the summary of each part when it is finished."""
    if workers == 1 or len(requests) < 2:
        yield from ((request.number, read_part(request)) for request in requests)
        return
    # only as many requests as workers are submitted at a time, so that an error ends the conversion soon
    waiting = list(reversed(requests))
    running: dict[Future[Summary], PartRequest] = {}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        min(workers, len(requests)), mp_context=context, initializer=_exit_with_parent, initargs=(os.getpid(),)
    ) as pool:
        while waiting or running:
            while waiting and len(running) < workers:
                request = waiting.pop()
                running[pool.submit(read_part, request)] = request
            for future in wait(running, return_when="FIRST_COMPLETED").done:
                request = running.pop(future)
                try:
                    yield request.number, future.result()
                except BrokenProcessPool:
                    raise InputError(
                        f"{request.chunk.path}: a worker was killed while it read this file (out of memory?); run the"
                        " same command again to continue, with fewer --workers if memory is short"
                    ) from None


def _exit_with_parent(parent: int) -> None:
    """End this worker when its parent ends, since another process may then use the spool."""
    import ctypes
    import signal

    parent_died = 1  # PR_SET_PDEATHSIG
    ctypes.CDLL(None).prctl(parent_died, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


OMOL25 = "omol25"  # its neutral and its charged structures are datasets of two other heads


def plan_conversion(
    entry: DatasetSource, paths: Sequence[Path], store: Path, rules: ConversionRules, workers: int
) -> Conversion:
    """Return the conversion of these files, or of the shipped set if there are none."""
    if not paths:
        shipped = find_shipped_set(entry.slug)
        return Conversion(
            slug=entry.slug,
            format=SHIPPED,
            paths=(Path(entry.slug),),
            store=store,
            source=None,
            about=describe_shipped(entry),
            rules=rules,
            workers=1 if shipped.count < TABLE_STRUCTURES else workers,
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
    """Return the format of a dataset's files: its authors' format, or that of a common container."""
    return get_format(detect_format(paths, entry.format))


def find_official_files(root: str, entry: DatasetSource) -> tuple[Path, ...]:
    """Return the paths to read for a dataset: its folder in the folder of all datasets, or nothing if it has none.

    The neutral and the charged structures of OMol25 may be in the folder of OMol25.

    Args:
        root: The absolute path of the folder of all datasets; "" if there is none.
        entry: The dataset.

    Raises:
        InputError: `root` is not a folder with datasets.
    """
    if not root:
        return ()
    folder = Path(root).expanduser()
    if not folder.is_absolute():
        raise InputError(f"data={root}: expected an absolute path, as jobs run in other folders")
    if not folder.is_dir():
        raise InputError(f"data={root}: no such folder")
    folders = {path.name.lower(): path for path in sorted(folder.iterdir()) if path.is_dir()}
    if not folders.keys() & {s.slug for s in SOURCES}:
        present = ", ".join(sorted(folders)[:8]) or "no folders"
        raise InputError(f"{folder}: expected folders named as `harness data list` names the datasets; found {present}")
    names = (entry.slug,) if entry.charges == "all" else (entry.slug, OMOL25)
    return next(((folders[name],) for name in names if name in folders), ())


def describe_official(entry: DatasetSource) -> dict[str, Any]:
    """Return the facts about official files that reports need."""
    return {
        "slug": entry.slug,
        "head": entry.head,
        "role": "official",
        "level": entry.level,
        "energies": f"{entry.energy_kind}; zero: {entry.zero_energy_state}",
        "source": entry.url,
        "licence": entry.licence,
        "attribution": entry.citation,
        "original_count": entry.count,
        "part_of": None if entry.charges == "all" else OMOL25,
    }


def describe_shipped(entry: DatasetSource) -> dict[str, Any]:
    """Return the facts about a shipped set that reports need."""
    shipped = find_shipped_set(entry.slug)
    return {
        "slug": entry.slug,
        "head": entry.head,
        "role": shipped.data_origin,
        "level": shipped.level,
        "energies": shipped.labels,
        "source": shipped.provenance,
        "licence": shipped.licence,
        "attribution": shipped.attribution,
        "original_count": entry.count,
        "part_of": None if entry.charges == "all" else OMOL25,
    }


def _list_shipped(paths: Sequence[Path]) -> list[FileChunk]:
    return [FileChunk(find_shipped_set(path.name).file, path.name) for path in paths]


def _read_shipped(part: FileChunk) -> Iterator[StructureTable | RejectedStructure]:
    table = load_table(find_shipped_set(part.key))
    for first in range(0, len(table), TABLE_STRUCTURES):
        yield table[first : first + TABLE_STRUCTURES]


SHIPPED = DatasetFormat(
    name="shipped", files="the sets that ship with the harness", list_chunks=_list_shipped, read_chunk=_read_shipped
)
