"""Loading records from run folders, and building tables from records."""

from __future__ import annotations

import json
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from .sampling import Benchmark, find_first, skip_if_missing

LOAD_RUNS = ("harness.results.runs.load_runs", "harness.results.runs.load", "harness.collect.runs.load")
FOLDERS, RECORDS, ROUNDS = 200, 3, 6
STAGES = {"baseline": 1.0, "branch_skip": 0.3, "batched_heads": 0.1}


@cache
def write_folders() -> Any:
    """Write 200 finished cases of the ladder to a folder that is removed when the process ends."""
    folder = tempfile.TemporaryDirectory()
    for k in range(FOLDERS):
        case = Path(folder.name) / "ladder-local" / f"case-{k}"
        case.mkdir(parents=True)
        parameters = {"workload": "random", "precision": "fp64", "stages": list(STAGES)}
        content = {"id": str(k), "name": case.name, "suite": "ladder", "program": "ladder", "parameters": parameters}
        (case / "case.json").write_text(json.dumps(content))
        events: list[dict[str, Any]] = [{"event": "start"}]
        for number in range(ROUNDS):
            for stage, seconds in STAGES.items():
                events.append({
                    "event": "sample", "stage": stage, "round": number, "batch": 0, "structures": 16,
                    "device_s": seconds * (8 + number), "energy_dtype": "torch.float64",
                    "force_dtype": "torch.float64", "finite": True, "neighbour_lists_s": 0.1, "collation_s": 0.05,
                    "transfer_s": 0.05, "load_1min": 0.5, "force_error_ev_per_angstrom": 0.0,
                    "force_scale_ev_per_angstrom": 20.0,
                    "energy_error_ev_per_atom": 0.0, "energy_scale_ev_per_atom": 3.0,
                })  # fmt: skip
        events.append({"event": "done"})
        (case / "events.jsonl").write_text("".join(json.dumps({**e, "time_s": 1.0}) + "\n" for e in events))
        (case / "exit_code").write_text("0\n")
    return folder


@cache
def load_records() -> Any:
    return find_first(*LOAD_RUNS)(Path(write_folders().name))[:RECORDS]


class Collect(Benchmark):
    def setup(self) -> None:
        with skip_if_missing():
            load = find_first(*LOAD_RUNS)
        self.load, self.root = load, Path(write_folders().name)
        load_records()

    def time_load_200_folders(self) -> None:
        self.load(self.root)


class Tables(Benchmark):
    def setup(self) -> None:
        with skip_if_missing():
            build_ladder_table = find_first(
                "harness.experiments.ladder.metrics.build_ladder_table",
                "harness.experiments.ladder.metrics.ladder_table",
                "harness.analysis.ladder.ladder_table",
            )
            build_samples_table = find_first(
                "harness.results.tables.build_samples_table",
                "harness.results.tables.samples_table",
                "harness.collect.tables.samples_table",
                "harness.collect.runs.samples_table",
            )
        self.tables = (build_ladder_table, build_samples_table)
        self.time_tables()

    def time_tables(self) -> None:
        for table in self.tables:
            table(load_records())
