"""DeepHyper's optimizer with an ask-and-tell interface, a log of its calls, and a warm start from earlier results."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from harness.protocol.programs.hpo import Objective
from harness.reference.errors import InputError
from harness.reference.programs.hpo.space import CBO, Space, build_problem, contains_point

ASKED, TOLD = "asked", "told"


@dataclass(frozen=True)
class AskTellLog:
    """An append-only file with the lines `asked 3 .` and `told 3 .` for the calls of trial 3."""

    path: Path

    def append(self, call: str, trial: int) -> None:
        """Append a line; the newline comes first, so that an incomplete line (full disk) does not damage the next."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(f"\n{call} {trial} .")

    def read(self) -> list[tuple[str, int]]:
        """Return the calls with their trials, ignoring incomplete lines; without a file, the list is empty."""
        try:
            lines = self.path.read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return []
        words = [line.split() for line in lines]
        return [(w[0], int(w[1])) for w in words if len(w) == 3 and w[0] in (ASKED, TOLD) and w[2] == "."]


FAILED = "F"


@dataclass(frozen=True)
class WarmStartCounts:
    """The numbers of earlier results in a warm start.

    Attributes:
        received: Number of results that were passed to the optimizer, which are all others.
        failed: Number of failed trials, which are ignored.
        outside_space: Number of points outside the space, which are ignored.
    """

    received: int = 0
    failed: int = 0
    outside_space: int = 0


@dataclass
class Optimizer:
    """Centralized Bayesian optimization (CBO), which maximizes; a failure counts as the worst result so far.

    Attributes:
        space: The search space.
        objectives: Names of the objectives.
        search: The optimizer of DeepHyper.
        seconds: Seconds spent in all calls so far.
    """

    space: Space
    objectives: Sequence[Objective]
    search: CBO
    seconds: float = 0.0
    _pending_failures: list[dict[str, Any]] = field(default_factory=list)
    _has_result: bool = False

    @classmethod
    def create(
        cls, space: Space, objectives: Sequence[Objective], *, seed: int, initial_points: int, folder: Path
    ) -> Optimizer:
        """Return an optimizer with the settings of the paper: upper confidence bound, and the constant liar cl_min.

        Args:
            space: The search space.
            objectives: Names of the objectives.
            seed: Seed of the search.
            initial_points: Number of random points at the start.
            folder: The folder of DeepHyper's files.
        """
        search = CBO(
            build_problem(space),
            random_state=seed,
            acq_func="UCB",
            multi_point_strategy="cl_min",
            n_initial_points=initial_points,
            log_dir=str(folder),
            acq_optimizer_kwargs={"filter_failures": "min"},
        )
        return cls(space, objectives, search)

    def ask(self) -> dict[str, Any]:
        """Return the next point to try."""
        started = time.monotonic()
        (point,) = self.search.ask(1)
        self.seconds += time.monotonic() - started
        return dict(point)

    def tell(self, configuration: Mapping[str, Any], values: Mapping[str, float] | None) -> None:
        """Report the result of a point: a value of each objective, or None for a failure."""
        started = time.monotonic()
        if values is not None:
            result = tuple(values[objective] for objective in self.objectives)
            self.search.tell([(dict(configuration), result if len(result) > 1 else result[0])])
            self._has_result = True
        else:
            self._pending_failures.append(dict(configuration))
        if self._has_result and self._pending_failures:  # a failure counts as the worst result, so there must be one
            failure = FAILED if len(self.objectives) == 1 else [FAILED] * len(self.objectives)
            self.search.tell([(point, failure) for point in self._pending_failures])
            self._pending_failures.clear()
        self.seconds += time.monotonic() - started

    def warm_up(self, files: Sequence[Path]) -> WarmStartCounts:
        """Add the results of earlier searches to the optimizer, without failures and points outside the space.

        Args:
            files: Tables with columns p:NAME and objective, as DeepHyper and this program write them.

        Raises:
            InputError: A file is not such a table.
        """
        received = failed = outside = 0
        for path in files:
            for configuration, values in _read_table(path, list(self.space), len(self.objectives)):
                if not contains_point(self.space, configuration):
                    outside += 1
                elif values is None:
                    failed += 1
                else:
                    self.tell(configuration, dict(zip(self.objectives, values, strict=True)))
                    received += 1
        return WarmStartCounts(received, failed, outside)


def list_objective_columns(count: int) -> list[str]:
    """Return the names of DeepHyper's columns for this number of objectives."""
    return ["objective"] if count == 1 else [f"objective_{k}" for k in range(count)]


def _read_table(
    path: Path, names: list[str], n_objectives: int
) -> list[tuple[dict[str, Any], tuple[float, ...] | None]]:
    """Return each point in a table of results with its objectives, or None for a failure."""
    try:
        table = pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a table of results ({error})") from None
    expected = [*(f"p:{name}" for name in names), *list_objective_columns(n_objectives)]
    absent = [column for column in expected if column not in table.columns]
    if absent:
        raise InputError(f"{path}: no column {absent[0]!r}; its columns are {', '.join(map(str, table.columns[:12]))}")
    numbers = table[list_objective_columns(n_objectives)].apply(pd.to_numeric, errors="coerce")
    rows = []
    for (_, row), (_, values) in zip(table.iterrows(), numbers.iterrows(), strict=True):
        plain = {name: getattr(row[f"p:{name}"], "item", lambda v=row[f"p:{name}"]: v)() for name in names}
        configuration = {k: int(v) if isinstance(v, float) and v.is_integer() else v for k, v in plain.items()}
        rows.append((configuration, None if values.isna().any() else tuple(map(float, values))))
    return rows
