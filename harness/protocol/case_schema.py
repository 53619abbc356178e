"""What case.json and provenance.json must hold for a case to be read."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter, ValidationError

from harness.protocol.event_fields import Count, Flag, NotNegative, Number, Several, Text, Time, listed, typed
from harness.protocol.event_schema import describe_problem

SELECTED = {"event": Text, "where?": dict[str, Any] | None, "field?": Text | None}
CASE = {
    "id?": Text, "name?": Text, "suite?": Text, "system?": Text, "program": Text, "parameters?": dict[str, Any],
    "point?": dict[str, Any], "settings?": dict[str, Any], "nodes?": Several, "ranks_per_node?": Several,
    "ranks?": Several, "repeat?": Count,
    "sanity?": listed(SELECTED | {"at_least?": Count, "at_most?": Count | None}),
    "performance?": listed(SELECTED | {
        "field": Text, "name": Text, "unit": Text, "reference": Number, "tolerance": NotNegative, "direction": Text,
        "statistic?": Text,
    }),
}  # fmt: skip
# Program -> what the analysis asks of its parameters.
PARAMETERS: dict[str, dict[str, Any]] = {
    "ladder": {"precision": Text, "stages?": list[Text] | None, "workload?": Text},
    "training_steps": {"precision": Text, "stages?": list[Text] | None},
    "transfer": {"task?": Text | None},
    "hpo": {"trial?": dict[str, Any] | None},
    "data_parallel": {
        "network?": typed({"latency_us": NotNegative, "bandwidth_gb_s": NotNegative}) | None,
    },
}  # fmt: skip
PROVENANCE = {
    "time_s?": Time, "commit?": Text | None, "changed_since_commit?": Flag | None, "python?": Text, "harness?": Text,
    "packages?": dict[str, Text], "cpu?": Text, "cores?": Several | None, "memory_bytes?": NotNegative, "host?": Text,
    "load_1min?": NotNegative, "platform?": Text,
}  # fmt: skip
_case, _provenance = TypeAdapter(typed(CASE)), TypeAdapter(typed(PROVENANCE))
_parameters = {name: TypeAdapter(typed(fields)) for name, fields in PARAMETERS.items()}


def find_case_fault(case: Any) -> str | None:
    """Return the first field of a case that is not as expected."""
    if not isinstance(case, dict):
        return "expected a mapping"
    fault = _fault(_case, case)
    checker = _parameters.get(case["program"]) if fault is None else None
    if checker is None:
        return fault
    inner = _fault(checker, case.get("parameters", {}))
    return None if inner is None else f"parameters.{inner}"


def find_provenance_fault(provenance: Any) -> str | None:
    """Return the first field of a provenance that is not as expected."""
    return _fault(_provenance, provenance) if isinstance(provenance, dict) else "expected a mapping"


def _fault(checker: TypeAdapter[Any], value: Any) -> str | None:
    if checker.validator.isinstance_python(value):
        return None
    try:
        checker.validate_python(value)
    except ValidationError as error:
        return describe_problem(error)
    return "not as expected"
