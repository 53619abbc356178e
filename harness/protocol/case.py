"""A case, which is one run of one program, and functions that read the files in its folder, of any version."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import orjson
from msgspec import Struct

from harness.protocol.errors import shorten
from harness.protocol.events import EVENTS_FILE, VERSION, Event, find_invalid_event, read_bytes, read_last_run, upgrade
from harness.protocol.records import Bytes, Count, NonNegative, Number, Positive, PositiveCount, Time
from harness.protocol.schema_errors import find_problem
from harness.protocol.upgrade import convert_case


@dataclass(frozen=True, slots=True)
class Case:
    """One run of one program, with the value of every parameter.

    `sanity` and `performance` are the checks of the events (harness.protocol.checks).
    """

    id: str
    """Hash of program, parameters, values of axes, nodes, ranks per node, system, environment, identity settings and
    repeat."""
    name: str
    suite: str
    system: str
    program: str
    parameters: dict[str, Any]
    axis_values: dict[str, Any]
    """The value of the case on each axis of the suite's matrix."""
    settings: dict[str, Any]
    nodes: int
    ranks_per_node: int
    walltime_minutes: float
    """The walltime that the job requests for this case."""
    expected_minutes: float
    """The time that the case is expected to take."""
    repeat: int
    tags: tuple[str, ...]
    sanity: tuple[dict[str, Any], ...] = ()
    performance: tuple[dict[str, Any], ...] = ()
    depends_on: tuple[str, ...] = ()
    """Folders, in the same campaign, of the cases that must have succeeded before this one starts."""

    @property
    def ranks(self) -> int:
        """The number of processes on all nodes."""
        return self.nodes * self.ranks_per_node

    @property
    def folder_name(self) -> str:
        """The name of the case's folder, inside the folder of the campaign."""
        return f"{self.name}-{self.id[:10]}"


class SelectedEvents(Struct, kw_only=True):
    """The selection of the events that a check reads; case.json may contain keys that this version does not know."""

    event: str
    where: dict[str, Any] | None = None
    field: str | None = None


class SanityRow(SelectedEvents, kw_only=True):
    """A sanity check of the events."""

    min_events: Count | None = None
    max_events: Count | None = None


class PerformanceRow(SelectedEvents, kw_only=True):
    """A figure of merit and its reference."""

    field: str
    name: str
    unit: str
    reference: Number
    tolerance: NonNegative
    direction: str
    statistic: str | None = None


class CaseFile(Struct, kw_only=True):
    """The keys of case.json that the analysis reads."""

    program: str
    version: PositiveCount = 1
    id: str = ""
    name: str = ""
    suite: str = ""
    system: str = ""
    parameters: dict[str, Any] = {}
    axis_values: dict[str, Any] = {}
    settings: dict[str, Any] = {}
    nodes: PositiveCount = 1
    ranks_per_node: PositiveCount = 1
    ranks: PositiveCount = 1
    repeat: Count = 0
    sanity: list[SanityRow] = []
    performance: list[PerformanceRow] = []


class StagedParameters(Struct):
    """The parameters that the analysis reads of a case with stages."""

    precision: str
    stages: list[str] | None = None
    workload: str = ""


class TransferCaseParameters(Struct):
    """The parameters that the analysis reads of a downstream task."""

    task: str | None = None


class HpoCaseParameters(Struct):
    """The parameters that the analysis reads of a search."""

    trial: dict[str, Any] | None = None


class NetworkParameters(Struct):
    """The network that a projection assumes."""

    latency_us: NonNegative
    bandwidth_gb_per_s: Positive


class ScalingCaseParameters(Struct):
    """The parameters that the analysis reads of a scaling case."""

    network: NetworkParameters | None = None


class Provenance(Struct, kw_only=True):
    """The content of provenance.json: the code, the environment and the machine of a case."""

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
    load_1min: NonNegative = 0.0
    platform: str = ""


# Results of other versions may have other parameters, so only the parameters that the analysis reads are checked.
ANALYSIS_PARAMETERS: dict[str, type[Struct]] = {
    "ladder": StagedParameters,
    "training_steps": StagedParameters,
    "transfer": TransferCaseParameters,
    "hpo": HpoCaseParameters,
    "data_parallel": ScalingCaseParameters,
}


class Unreadable(Exception):
    """A case cannot be read; the message names the file, the line and the invalid field."""


def read_case(folder: Path | str) -> dict[str, Any]:
    """Read case.json; raise Unreadable if it does not describe a case."""
    try:
        case = read_json(f"{folder}/case.json")
    except (FileNotFoundError, NotADirectoryError):
        raise Unreadable("not a folder of a case: there is no case.json") from None
    try:
        case = upgrade_case(case)
    except ValueError as error:
        raise Unreadable(f"case.json: {error}") from None
    problem = find_case_problem(case)
    if problem is not None:
        raise Unreadable(f"case.json: {problem}")
    return dict(case)


def upgrade_case(case: Any) -> Any:
    """Convert the content of case.json to the current version; raise ValueError for a newer version."""
    version = case.get("version", 1) if isinstance(case, dict) else VERSION
    if type(version) is not int or version == VERSION:
        return case
    if version > VERSION:
        raise ValueError(f"written by a newer version ({version}; this harness reads up to {VERSION})")
    return convert_case(case)


def find_case_problem(case: Any) -> str | None:
    """Return a message about the first invalid field of a case, or None."""
    problem = _find_mapping_problem(CaseFile, case)
    if problem is not None or case["program"] not in ANALYSIS_PARAMETERS:
        return problem
    inner = _find_mapping_problem(ANALYSIS_PARAMETERS[case["program"]], case.get("parameters", {}))
    return None if inner is None else f"parameters.{inner}"


def find_provenance_problem(provenance: Any) -> str | None:
    """Return a message about the first invalid field of a provenance, or None."""
    return _find_mapping_problem(Provenance, provenance)


def _find_mapping_problem(kind: type[Struct], value: Any) -> str | None:
    """Return a message about the first field of a mapping that does not match a type, or None."""
    if not isinstance(value, dict):
        return "expected a mapping"
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError:
        return find_problem(kind, value)
    return None


def read_log(folder: Path | str, case: dict[str, Any]) -> Sequence[Event]:
    """Read the events of a case's last run, converted to the current version.

    Raises:
        Unreadable: an event is damaged, unknown or invalid, or the log belongs to another case.
    """
    run = read_last_run(f"{folder}/{EVENTS_FILE}", case["program"])
    if run.damaged_line is not None:
        raise Unreadable(f"{EVENTS_FILE}:{run.damaged_line}: not an event; expected a JSON object with `event`")
    try:
        log = upgrade(run.events, case["program"])
    except ValueError as error:
        raise Unreadable(f"{EVENTS_FILE}:{run.lines[0]}: {error}") from None
    if log is not run.events or not run.is_checked:
        invalid = find_invalid_event(case["program"], log)
        if invalid is not None:
            index, problem = invalid
            raise Unreadable(f"{EVENTS_FILE}:{run.lines[index]}: {problem}")
    if log and log[0]["event"] == "start":
        for key, name in (("program", "program"), ("case", "id")):
            logged, expected = log[0].get(key), case.get(name)
            if logged is not None and expected is not None and logged != expected:
                message = f"{key} is {shorten(logged)}, and case.json has {shorten(expected)}"
                raise Unreadable(f"{EVENTS_FILE}:{run.lines[0]}: the log of another case: {message}")
    return log


def read_json(path: str) -> Any:
    """Read a JSON file; raise Unreadable with the number of the invalid line, or OSError."""
    try:
        return orjson.loads(read_bytes(path))
    except orjson.JSONDecodeError as error:
        raise Unreadable(f"{os.path.basename(path)}:{error.lineno}: not JSON: {error.msg}") from None
