"""Convert one dataset to a store, or read all stores in every mode (suites/data.yaml).

`convert` writes store/<slug>.bp in the folder of the case; `read` reads the stores of the cases that it waits for.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import msgspec

from harness.protocol.events import CaseLog
from harness.protocol.programs.data import DataFacts, DataParameters
from harness.protocol.records import Progress
from harness.reference.datasets.catalog import find_source
from harness.reference.datasets.conversion.convert import convert
from harness.reference.datasets.conversion.inputs import find_official_files, plan_conversion
from harness.reference.datasets.conversion.read_part import ConversionRules
from harness.reference.distributed import launch
from harness.reference.errors import InputError


def run(parameters: DataParameters, log: CaseLog, folder: Path) -> None:
    """Convert one dataset, or read all stores in every mode."""
    if parameters.task == "convert":
        convert_dataset(parameters, log, folder)
    else:
        from harness.reference.programs.data.read_benchmark import benchmark_modes

        benchmark_modes(parameters, list_earlier_stores(folder), launch.detect_rank(os.environ), log)


def convert_dataset(parameters: DataParameters, log: CaseLog, folder: Path) -> None:
    """Convert a dataset to a store in the folder of the case."""
    entry = find_source(parameters.dataset)
    rules = ConversionRules(
        cutoff=parameters.cutoff,
        max_neighbours=parameters.max_neighbours,
        max_force=parameters.max_force,
        split_seed=parameters.seed,
        strict=parameters.strict,
    )
    target = folder / "store" / f"{entry.slug}.bp"
    shutil.rmtree(target, ignore_errors=True)  # an earlier attempt may have left one without its facts
    workers = parameters.workers or len(os.sched_getaffinity(0))
    plan = plan_conversion(entry, find_official_files(parameters.source, entry), target, rules, workers)

    def report(done: int, total: int, what: str) -> None:
        log.write(Progress(done=done, total=total, what=what))

    log.record_facts(msgspec.convert(convert(plan, report), DataFacts))


def list_earlier_stores(folder: Path) -> list[Path]:
    """Return the stores of the cases that this one waited for, in the order of their heads."""
    needed = json.loads((folder / "case.json").read_text(encoding="utf-8"))["after"]
    stores = [path for name in needed for path in (folder.resolve().parent / name / "store").glob("*.bp")]
    if not stores:
        raise InputError("no store: this case reads the stores of the conversions that it waits for")
    return sorted(stores, key=lambda path: find_source(path.stem).branch)
