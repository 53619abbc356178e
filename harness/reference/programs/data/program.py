"""The program of suites/data.yaml: convert one dataset to a store, or read all stores in every mode.

`convert` makes the store in the run folder, store/<slug>.bp; facts `dataset`, `conversion`, `references`, `statistics`.
`read` takes the stores of the cases that this one waited for.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from harness.protocol.events import EventLog
from harness.reference.datasets.catalog import source
from harness.reference.datasets.conversion.convert import convert
from harness.reference.datasets.conversion.inputs import conversion, official_files
from harness.reference.datasets.conversion.read_part import Rules
from harness.reference.distributed import launch
from harness.reference.errors import InputError
from harness.reference.options import build
from harness.reference.programs.data.config import DataConfig


def run(parameters: dict[str, Any], log: EventLog, folder: Path) -> None:
    """The program."""
    config = build(DataConfig, parameters)
    if config.task == "convert":
        make_store(config, log, folder)
    elif config.task == "read":
        from harness.reference.programs.data.read_benchmark import read_modes

        read_modes(config, stores_before(folder), launch.find(os.environ), log)
    else:
        raise InputError(f"unknown task {config.task!r}; there are convert and read")


def make_store(config: DataConfig, log: EventLog, folder: Path) -> None:
    """Convert a dataset into the run folder."""
    entry = source(config.dataset)
    rules = Rules(
        cutoff=config.cutoff,
        max_neighbours=config.max_neighbours,
        max_force=config.max_force,
        split_seed=config.seed,
        strict=config.strict,
    )
    target = folder / "store" / f"{entry.slug}.bp"
    shutil.rmtree(target, ignore_errors=True)  # of an earlier attempt at this case that lost its facts
    workers = config.workers or len(os.sched_getaffinity(0))
    order = conversion(entry, official_files(config.source, entry), target, rules, workers)

    def tell(done: int, total: int, what: str) -> None:
        log.write("progress", done=done, total=total, what=what)

    for name, value in convert(order, tell).items():
        log.fact(name, value)


def stores_before(folder: Path) -> list[Path]:
    """The stores of the cases that this one waited for, by name."""
    needed = json.loads((folder / "case.json").read_text(encoding="utf-8"))["after"]
    found = [path for name in needed for path in (folder.resolve().parent / name / "store").glob("*.bp")]
    if not found:
        raise InputError("no store: this case reads what the conversions before it have made")
    return sorted(found, key=lambda path: source(path.stem).branch)
