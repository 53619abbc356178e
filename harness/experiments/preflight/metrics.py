"""Tables on the checks of machines: the items, their measurements, the calculations, and the binding of ranks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from harness.results.runs import RunRecord
from harness.results.tables import Columns

CASE = "campaign case system folder"
ITEMS = Columns(
    "preflight_items",
    case=CASE,
    item="item verdict expected observed advice duration_s checked_time_s",
    where="hosts world_size device device_name state error",
)
MEASUREMENTS = Columns("preflight_measurements", case=CASE, measurement="item name value unit reference")
CALCULATIONS = Columns(
    "preflight_calculations",
    case=CASE,
    where="item rank device device_name",
    calculation="calculation formulation precision width",
    error="error tolerance",
    speed="duration_s plain_s speedup peak_bytes unavailable_reason",
)
BINDINGS = Columns(
    "preflight_bindings", case=CASE, binding="rank host local_rank cpus cores near_cpus device device_name"
)


def build_tables(records: Sequence[RunRecord]) -> dict[str, pd.DataFrame]:
    """Return the tables of all cases, also of those in which an item failed or that ended early."""
    runs = [record for record in records if record.program == "preflight"]
    return {
        "preflight_items": ITEMS.build(row for run in runs for row in _list_items(run)),
        "preflight_measurements": MEASUREMENTS.build(
            {**_get_case(run), "item": event["item"], **measurement}
            for run in runs
            for event in run.events("preflight_item")
            for measurement in event.get("measurements") or ()
        ),
        "preflight_calculations": CALCULATIONS.build(row for run in runs for row in _list_calculations(run)),
        "preflight_bindings": BINDINGS.build(
            {**_get_case(run), **{name: _join(value) for name, value in binding.items()}}
            for run in runs
            for binding in run.facts.get("bindings") or ()
        ),
    }


def _list_items(run: RunRecord) -> Iterator[dict[str, Any]]:
    """Yield a row for each item; an item without a result has the verdict "not checked"."""
    results = {event["item"]: event for event in run.events("preflight_item")}
    shared = {**_get_case(run), **_get_device(run), "hosts": _join(run.facts.get("hosts"))}
    shared |= {"world_size": run.facts.get("world_size"), "state": run.state, "error": run.error}
    for item in run.facts.get("items") or results:
        event = results.get(item) or {
            "verdict": "not checked", "expected": "a result", "observed": f"no result: the run is {run.state}",
            "advice": "See `stderr` of the case, and run the preflight again with --retry.",
        }  # fmt: skip
        row = {name: event[name] for name in ITEMS["item"] if name in event}
        yield {**shared, **row, "item": item, "checked_time_s": event.get("time_s")}


def _list_calculations(run: RunRecord) -> Iterator[dict[str, Any]]:
    for event in run.events("preflight_calculation"):
        result = event["result"]
        speedup = result["plain_s"] / result["duration_s"] if {"plain_s", "duration_s"} <= result.keys() else None
        where = {"item": event["item"], "rank": event["rank"]}
        yield {**_get_case(run), **_get_device(run), **where, **result, "speedup": speedup}


def _get_case(run: RunRecord) -> dict[str, Any]:
    names = {"campaign": run.campaign, "folder": run.location}
    return names | {"case": run.case.get("name"), "system": run.case.get("system")}


def _get_device(run: RunRecord) -> Mapping[str, Any]:
    return {name: run.facts.get(name) for name in ("device", "device_name")}


def _join(value: Any) -> Any:
    return " ".join(map(str, value)) if isinstance(value, list) else value
