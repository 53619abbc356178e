"""What a case opens, writes and sends on many ranks, extrapolated from measured runs on a few.

The counts of a run on n nodes with p ranks are taken as a + b n + c p, whose coefficients follow from runs of the same
program on different numbers of nodes and ranks (`python -m tests.builders.file_use`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

FILE = Path(__file__).parent / "shipped" / "file_use.json"
# Limits that this harness sets itself; those of sites differ. A listing of a folder of 10,000 files takes seconds on a
# busy file system; a log of 256 MiB is read into about 2 GiB of memory.
MAX_FILES_PER_FOLDER = 10_000
MAX_OPENS_PER_S = 20_000
MAX_LOG_BYTES = 256 << 20
# Places of opened files, as harness.reference.profiling.file_use counts them; those on the node itself are not shared.
PLACES = {
    "case": "opens in the case's folder",
    "environment": "opens in the Python environment",
    "other": "opens elsewhere",
}
REMEDIES = {
    "environment": "the environment must be on the disks of the nodes, as with the setting archive",
    "telemetry": "-S telemetry=omnistat or none writes no file per rank",
}
ELEMENT_BYTES = {"fp64": 8, "fp32": 4, "bf16": 4}  # bf16 applies only to matrix products


class MeasuredRun(msgspec.Struct, forbid_unknown_fields=True):
    """The counts of one run, over all of its ranks."""

    nodes: int
    ranks: int
    opens: dict[str, int]
    """Attempts to open a file, by place."""
    files: dict[str, int]
    """Entries of each folder in the case's folder; `.` is the case's folder."""
    bytes: dict[str, int]
    """Size of each file in the case's folder."""
    start_s: float
    """Seconds from the start of the processes to the first fact in the log."""


class MeasuredProgram(msgspec.Struct, forbid_unknown_fields=True):
    """The runs of a program, which all have the same parameters."""

    parameters: dict[str, Any]
    runs: list[MeasuredRun]


class MeasuredModel(msgspec.Struct, forbid_unknown_fields=True):
    """The number of trained parameters of a model, without the gate."""

    model: dict[str, Any]
    trained_parameters: int


class FileUse(msgspec.Struct, forbid_unknown_fields=True):
    """The content of the file with all measured runs and models."""

    source: str
    programs: dict[str, MeasuredProgram]
    models: list[MeasuredModel] = []


@dataclass(frozen=True)
class Law:
    """A count a + b n + c p of a run on n nodes with p ranks."""

    per_job: float
    per_node: float
    per_rank: float

    def compute(self, nodes: int, ranks: int) -> float:
        """Return the count of a run."""
        return self.per_job + self.per_node * nodes + self.per_rank * ranks


@dataclass(frozen=True)
class Estimate:
    """A quantity of a job, such as the files of a folder.

    Attributes:
        name: what is counted, and where.
        value: the value, which is compared with the bound.
        unit: the unit of the value and of the bound.
        bound: the largest value that causes no trouble; None: there is no bound.
        detail: how the value arises.
        remedy: what to do if the value exceeds the bound; empty if nothing is known.
    """

    name: str
    value: float
    unit: str
    bound: float | None
    detail: str
    remedy: str = ""

    @property
    def is_exceeded(self) -> bool:
        """Whether the value is above the bound."""
        return self.bound is not None and self.value > self.bound

    def format(self) -> str:
        """Return the estimate as one line."""
        text = f"{self.name}: {self.value:,.0f} {self.unit} ({self.detail})"
        if not self.is_exceeded:
            return text
        return f"{text}; warning: above {self.bound:,.0f}" + (f": {self.remedy}" if self.remedy else "")


@cache
def load_file_use() -> FileUse:
    """Return the measured runs that ship with the harness."""
    return msgspec.json.decode(FILE.read_bytes(), type=FileUse)


def fit_law(runs: Sequence[MeasuredRun], counts: Sequence[float]) -> Law:
    """Return the law that fits the counts of runs best, by least squares; coefficients below 0 become 0."""
    design = np.array([[1.0, run.nodes, run.ranks] for run in runs])
    coefficients, *_ = np.linalg.lstsq(design, np.array(counts, dtype=float), rcond=None)
    return Law(*np.maximum(coefficients.round(6), 0.0).tolist())


def estimate_case(case: Mapping[str, Any], nodes: int, ranks: int) -> list[Estimate]:
    """Return the estimates of a case on other numbers of nodes and ranks; empty if its program was not measured.

    Args:
        case: The fields of the case: `program`, `parameters` and `settings`.
        nodes: The number of nodes.
        ranks: The number of ranks on all nodes.
    """
    program = load_file_use().programs.get(case["program"])
    if program is None:
        return []
    estimates = [*_estimate_opens(program, case, nodes, ranks), *_estimate_files(program, case, nodes, ranks)]
    law = fit_law(program.runs, [run.bytes["events.jsonl"] for run in program.runs])
    size = law.compute(nodes, ranks)
    detail = f"{law.per_rank:,.0f} bytes for each rank"
    estimates.append(Estimate("event log", size / 1e6, "MB", MAX_LOG_BYTES / 1e6, detail))
    return [*estimates, *_estimate_exchange(case, ranks)]


def _estimate_opens(program: MeasuredProgram, case: Mapping[str, Any], nodes: int, ranks: int) -> Iterator[Estimate]:
    """Yield the opens per second, if all files are opened within the shortest measured start."""
    start_s = min(run.start_s for run in program.runs)
    for place, name in PLACES.items():
        law = fit_law(program.runs, [run.opens.get(place, 0) for run in program.runs])
        total = law.compute(nodes, ranks)
        detail = f"{law.per_rank:,.0f} by each rank, {total:,.0f} in all, within {start_s:.0f} s"
        is_local = place == "environment" and case.get("settings", {}).get("archive")
        if total and not is_local:
            yield Estimate(name, total / start_s, "per second", MAX_OPENS_PER_S, detail, REMEDIES.get(place, ""))


def _estimate_files(program: MeasuredProgram, case: Mapping[str, Any], nodes: int, ranks: int) -> Iterator[Estimate]:
    """Yield the number of files of each folder in the case's folder."""
    folders = [find_largest_folders(run.files) for run in program.runs]
    for folder in dict.fromkeys(name for names in folders for name in names):
        law = fit_law(program.runs, [names.get(folder, 0) for names in folders])
        if folder == "telemetry":
            if case.get("settings", {}).get("telemetry") != "sampler":
                continue
            if case["parameters"].get("device", "cpu") != "cpu":  # each rank with a GPU samples it
                law = Law(0.0, 0.0, 1.0)
        name = "files in the case's folder" if folder == "." else f"files in {folder}/"
        detail = f"{law.per_job:g} + {law.per_node:g} for each node + {law.per_rank:g} for each rank"
        value = law.compute(nodes, ranks)
        yield Estimate(name, value, "files", MAX_FILES_PER_FOLDER, detail, REMEDIES.get(folder, ""))


def find_largest_folders(files: Mapping[str, int]) -> dict[str, int]:
    """Return the entries of folders; of numbered ones, such as `results-00001.bp`, the largest is `results-*.bp`."""
    largest: dict[str, int] = {}
    for folder, count in files.items():
        name = re.sub(r"\d+", "*", folder)
        largest[name] = max(count, largest.get(name, 0))
    return largest


def _estimate_exchange(case: Mapping[str, Any], ranks: int) -> Iterator[Estimate]:
    """Yield the bytes that each rank sends per step, if ranks exchange gradients of a model of known size."""
    precision = case["parameters"].get("precision")
    parameters = find_trained_parameters(case["parameters"].get("model", {}))
    if parameters is None or precision not in ELEMENT_BYTES:
        return
    size = parameters * ELEMENT_BYTES[precision]
    sent = compute_all_reduce_bytes(ranks, size)
    detail = f"all-reduce of {parameters:,} gradients; never more than {2 * size / 1e6:,.0f} MB"
    yield Estimate("sent by each rank per step", sent / 1e6, "MB", None, detail)


def compute_all_reduce_bytes(ranks: int, size: float) -> float:
    """Return the bytes that a rank sends in an all-reduce of `size` bytes: 2 (p - 1) / p size."""
    return 2 * (ranks - 1) / ranks * size


def find_trained_parameters(model: Mapping[str, Any]) -> int | None:
    """Return the number of trained parameters of a model that was measured, or None."""
    known = load_file_use().models
    return next((entry.trained_parameters for entry in known if entry.model == dict(model)), None)
