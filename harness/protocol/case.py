"""Case: one run of one program; and the files of its folder, read as this version writes them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import orjson
from msgspec import Struct

from harness.protocol.errors import shortened
from harness.protocol.events import FILE_NAME, Event, find_fault, read_bytes, read_run, upgrade
from harness.protocol.records import Bytes, Count, NotNegative, Number, Positive, PositiveCount, Time
from harness.protocol.schema_errors import find_problem


@dataclass(frozen=True, slots=True)
class Case:
    """One run of one program with everything decided.

    sanity and performance are what its events must show (harness.protocol.checks).
    """

    id: str
    """Hash of program, parameters, point, ranks, system, environment and settings: equal work has equal ids."""
    name: str
    suite: str
    system: str
    program: str
    parameters: dict[str, Any]
    point: dict[str, Any]
    """The value on each axis."""
    settings: dict[str, Any]
    nodes: int
    ranks_per_node: int
    minutes: float
    expected_minutes: float
    repeat: int
    tags: tuple[str, ...]
    sanity: tuple[dict[str, Any], ...] = ()
    performance: tuple[dict[str, Any], ...] = ()
    after: tuple[str, ...] = ()
    """Folders, in the same campaign, of the cases that must have ended well before."""

    @property
    def ranks(self) -> int:
        """Number of processes."""
        return self.nodes * self.ranks_per_node

    @property
    def folder_name(self) -> str:
        """Name of the folder, inside that of the campaign."""
        return f"{self.name}-{self.id[:10]}"


class SelectedEvents(Struct, kw_only=True):
    """Events that a check looks at; case.json may hold more than this version knows."""

    event: str
    where: dict[str, Any] | None = None
    field: str | None = None


class SanityRow(SelectedEvents, kw_only=True):
    """What events must show."""

    at_least: Count | None = None
    at_most: Count | None = None


class PerformanceRow(SelectedEvents, kw_only=True):
    """A figure of merit and what it is held against."""

    field: str
    name: str
    unit: str
    reference: Number
    tolerance: NotNegative
    direction: str
    statistic: str | None = None


class CaseFile(Struct, kw_only=True):
    """case.json, as far as results are read from it."""

    program: str
    id: str = ""
    name: str = ""
    suite: str = ""
    system: str = ""
    parameters: dict[str, Any] = {}
    point: dict[str, Any] = {}
    settings: dict[str, Any] = {}
    nodes: PositiveCount = 1
    ranks_per_node: PositiveCount = 1
    ranks: PositiveCount = 1
    repeat: Count = 0
    sanity: list[SanityRow] = []
    performance: list[PerformanceRow] = []


class StagedParameters(Struct):
    """What the analysis asks of the parameters of a case with stages."""

    precision: str
    stages: list[str] | None = None
    workload: str = ""


class TransferAnalysis(Struct):
    """What the analysis asks of the parameters of a downstream task."""

    task: str | None = None


class HpoAnalysis(Struct):
    """What the analysis asks of the parameters of a search."""

    trial: dict[str, Any] | None = None


class NetworkAnalysis(Struct):
    """The network that a projection assumes."""

    latency_us: NotNegative
    bandwidth_gb_s: Positive


class ScalingAnalysis(Struct):
    """What the analysis asks of the parameters of a scaling point."""

    network: NetworkAnalysis | None = None


class Provenance(Struct, kw_only=True):
    """provenance.json: what the numbers of a case rest on."""

    time_s: Time = 0.0
    commit: str | None = None
    changed_since_commit: bool | None = None
    python: str = ""
    harness: str = ""
    packages: dict[str, str] = {}
    cpu: str = ""
    cores: PositiveCount | None = None
    memory_bytes: Bytes = 0.0
    host: str = ""
    load_1min: NotNegative = 0.0
    platform: str = ""


# Results of other versions may have other parameters: only those are checked that the analysis asks for.
ANALYSED: dict[str, type[Struct]] = {
    "ladder": StagedParameters,
    "training_steps": StagedParameters,
    "transfer": TransferAnalysis,
    "hpo": HpoAnalysis,
    "data_parallel": ScalingAnalysis,
}


class Unreadable(Exception):
    """Why a case cannot be read: the file, the line and the field at fault."""


def read_case(folder: Path | str) -> dict[str, Any]:
    """Read case.json; raise Unreadable where it does not describe a case."""
    try:
        case = read_json(f"{folder}/case.json")
    except (FileNotFoundError, NotADirectoryError):
        raise Unreadable("not a folder of a case: there is no case.json") from None
    fault = find_case_fault(case)
    if fault is not None:
        raise Unreadable(f"case.json: {fault}")
    return dict(case)


def find_case_fault(case: Any) -> str | None:
    """Return the first field of a case that is not as expected."""
    fault = _fault(CaseFile, case)
    if fault is not None or case["program"] not in ANALYSED:
        return fault
    inner = _fault(ANALYSED[case["program"]], case.get("parameters", {}))
    return None if inner is None else f"parameters.{inner}"


def find_provenance_fault(provenance: Any) -> str | None:
    """Return the first field of a provenance that is not as expected."""
    return _fault(Provenance, provenance)


def _fault(kind: type[Struct], value: Any) -> str | None:
    if not isinstance(value, dict):
        return "expected a mapping"
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError:
        return find_problem(kind, value)
    return None


def read_log(folder: Path | str, case: dict[str, Any]) -> Sequence[Event]:
    """Read the events of a case's last run; raise Unreadable where one of them is damaged, unknown or impossible."""
    run = read_run(f"{folder}/{FILE_NAME}", case["program"])
    if run.damaged is not None:
        raise Unreadable(f"{FILE_NAME}:{run.damaged}: not an event; expected a JSON object with `event`")
    try:
        log = upgrade(run.events)
    except ValueError as error:
        raise Unreadable(f"{FILE_NAME}:{run.lines[0]}: {error}") from None
    if log is not run.events or not run.checked:
        fault = find_fault(case["program"], log)
        if fault is not None:
            raise Unreadable(f"{FILE_NAME}:{run.lines[fault[0]]}: {fault[1]}")
    if log and log[0]["event"] == "start":
        for key, name in (("program", "program"), ("case", "id")):
            theirs, ours = log[0].get(key), case.get(name)
            if theirs is not None and ours is not None and theirs != ours:
                what = f"{key} is {shortened(theirs)}, and case.json has {shortened(ours)}"
                raise Unreadable(f"{FILE_NAME}:{run.lines[0]}: the log of another case: {what}")
    return log


def read_json(path: str) -> Any:
    """Read a JSON file; raise Unreadable with the line at fault, or OSError."""
    try:
        return orjson.loads(read_bytes(path))
    except orjson.JSONDecodeError as error:
        raise Unreadable(f"{os.path.basename(path)}:{error.lineno}: not JSON: {error.msg}") from None
