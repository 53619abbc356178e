"""Selectors of runs for a comparison: a folder of runs, conditions on runs, or both.

The user writes a selector as `PATH`, `KEY=VALUE,...` or `PATH@KEY=VALUE,...`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.experiments.tables import MetricSamples, list_metric_samples
from harness.protocol.errors import UsageError, did_you_mean
from harness.results.misfits import MISFIT_ERRORS, describe_misfit
from harness.results.runs import JOBS_FOLDER, RunRecord, load_run_folders, load_runs, mark_unreadable

# Keys that distinguish runs of the same case: if the two sides differ only in these, cases are matched by name.
LOCATION_KEYS = {"campaign", "system", "commit", "host", "cpu", "id", "repeat"}
CASE_KEYS = ("suite", "system", "program", "id", "repeat")
PROVENANCE_KEYS = ("commit", "host", "cpu")
PREFIX_KEYS = ("commit", "id")  # the user may abbreviate the values of these keys
MAX_EXAMPLES = 8


@dataclass(frozen=True)
class RunSelector:
    """A selector of runs.

    Attributes:
        text: The selector as the user wrote it.
        folder: A folder of runs; None means the results folder.
        conditions: The expected value of each key.
    """

    text: str
    folder: Path | None
    conditions: Mapping[str, str]


@dataclass(frozen=True)
class Observation:
    """The samples of one metric of one run, and the record of the run."""

    record: RunRecord
    samples: MetricSamples

    def get_value(self, key: str) -> str | None:
        """Return the value of a key for the run, or for the part of it that was measured; None for an unknown key."""
        case = self.record.case
        if key in PROVENANCE_KEYS:
            return self.record.provenance.get(key)
        names = {"campaign": self.record.folder.parent.name, "case": case.get("name"),
                 "metric": self.samples.metric.name}  # fmt: skip
        sources = (self.samples.part, names, case if key in CASE_KEYS else {}, case.get("axis_values", {}),
                   case.get("parameters", {}))  # fmt: skip
        value = next((source[key] for source in sources if source.get(key) is not None), None)
        return None if value is None else str(value)

    def matches(self, key: str, value: str) -> bool:
        """Return whether the key has this value; hashes may be abbreviated."""
        actual = self.get_value(key)
        return actual is not None and (actual.startswith(value) if key in PREFIX_KEYS else actual == value)

    def list_keys(self) -> set[str]:
        """Return all keys that get_value knows for this run and its part."""
        case = self.record.case
        parameters = {k for k, v in case.get("parameters", {}).items() if not isinstance(v, (dict, list))}
        fixed = {"campaign", "case", "metric", *CASE_KEYS, *PROVENANCE_KEYS}
        return {*fixed, *self.samples.part, *case.get("axis_values", {}), *parameters}


def parse_selector(text: str) -> RunSelector:
    """Parse a selector; raise UsageError for text that names neither a folder nor conditions."""
    folder, at, conditions = text.partition("@")
    if not at and "=" in text and not Path(text).exists():
        folder, conditions = "", text
    if folder and not Path(folder).is_dir():
        raise UsageError(f"{folder}: no such folder; a side is PATH, KEY=VALUE or PATH@KEY=VALUE (stage=baseline, ...)")
    pairs = [pair.partition("=") for pair in conditions.split(",") if pair]
    if (at and not pairs) or not all(key and equals and value for key, equals, value in pairs):
        raise UsageError(f"{text}: expected KEY=VALUE,... got {conditions!r}")
    return RunSelector(text, Path(folder) if folder else None, {key: value for key, _, value in pairs})


class RunIndex:
    """The observations of folders, each of which is read only once.

    Attributes:
        unreadable: The cases that could not be read.
    """

    def __init__(self, out: Path) -> None:
        self._out = out
        self._by_folder: dict[Path, list[Observation]] = {}
        self.unreadable: list[RunRecord] = []

    def find_observations(self, selector: RunSelector) -> list[Observation]:
        """Return the observations of a selector.

        Raises:
            UsageError: There are none; the message suggests the key or value that may have been meant.
        """
        folder = (selector.folder or self._out).resolve()
        if folder not in self._by_folder:
            self._by_folder[folder] = self._read(folder)
        available = self._by_folder[folder]
        if not available:
            raise UsageError(f"{selector.folder or self._out}: no finished runs here")
        selected = [o for o in available if all(o.matches(k, v) for k, v in selector.conditions.items())]
        if not selected:
            raise UsageError(f"{selector.text}: {_explain_no_match(available, selector.conditions)}")
        return selected

    def _read(self, folder: Path) -> list[Observation]:
        observations = []
        for record in _load_records(folder) if folder.is_dir() else []:
            if record.state == "unreadable":
                self.unreadable.append(record)
            elif record.state == "done":
                try:
                    observations += [Observation(record, samples) for samples in list_metric_samples(record)]
                except MISFIT_ERRORS as error:
                    self.unreadable.append(mark_unreadable(record, describe_misfit(error)))
        return observations


def _load_records(folder: Path) -> list[RunRecord]:
    """Load the runs of a results folder, a folder of campaigns, a campaign, or a case."""
    if (folder / "case.json").is_file():
        return load_run_folders([folder])
    if (folder / "runs").is_dir():
        return load_runs(folder / "runs")
    subfolders = sorted(p for p in folder.iterdir() if p.is_dir() or p.is_symlink())
    is_campaign = any((subfolder / "case.json").exists() for subfolder in subfolders)
    return load_run_folders(f for f in subfolders if f.name != JOBS_FOLDER) if is_campaign else load_runs(folder)


def _explain_no_match(available: Sequence[Observation], conditions: Mapping[str, str]) -> str:
    for key, expected in conditions.items():
        values = {v for o in available if (v := o.get_value(key)) is not None}
        if not values:
            # all observations of one program and part have the same keys
            representatives: dict[tuple[Any, ...], Observation] = {}
            for o in available:
                representatives.setdefault((o.record.case.get("program"), *o.samples.part), o)
            known = set().union(*(o.list_keys() for o in representatives.values()))
            return f"no run has a key {key!r}{did_you_mean(key, known)}"
        if not any(o.matches(key, expected) for o in available):
            examples = ", ".join(sorted(values)[:MAX_EXAMPLES])
            return f"no run with {key}={expected}{did_you_mean(expected, values)}; there are: {examples}"
    return "no run meets all of these conditions"
