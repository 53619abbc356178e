"""DeepHyper's optimizer, asked for points and told of objectives, and what it is warmed up with."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from harness.protocol.programs.hpo import Objective
from harness.reference.errors import InputError
from harness.reference.programs.hpo.deephyper_without_mpi import CBO
from harness.reference.programs.hpo.space import Space, holds, problem

FAILED = "F"


@dataclass(frozen=True)
class WarmStartCounts:
    """Of earlier results: rows that were told to the optimizer, and those left out, by why."""

    told: int = 0
    failed: int = 0
    outside: int = 0


@dataclass
class Optimizer:
    """Centralized Bayesian optimization (CBO), maximizing; failures count as the worst that was seen.

    seconds: what asking and telling has cost so far.
    """

    space: Space
    aims: Sequence[Objective]
    search: CBO
    seconds: float = 0.0
    _unsaid: list[dict[str, Any]] = field(default_factory=list)
    _succeeded: bool = False

    @classmethod
    def of(cls, space: Space, aims: Sequence[Objective], *, seed: int, initial_points: int, folder: Path) -> Optimizer:
        """The paper's settings: upper confidence bound, points of one batch kept apart by the least seen (cl_min)."""
        search = CBO(
            problem(space),
            random_state=seed,
            acq_func="UCB",
            multi_point_strategy="cl_min",
            n_initial_points=initial_points,
            log_dir=str(folder),
            acq_optimizer_kwargs={"filter_failures": "min"},
        )
        return cls(space, aims, search)

    def ask(self) -> dict[str, Any]:
        """The next point to try."""
        began = time.monotonic()
        (point,) = self.search.ask(1)
        self.seconds += time.monotonic() - began
        return dict(point)

    def tell(self, configuration: Mapping[str, Any], values: Mapping[str, float] | None) -> None:
        """What came of a point: a value for each aim, or None for a failure."""
        began = time.monotonic()
        if values is not None:
            objective = tuple(values[aim] for aim in self.aims)
            self.search.tell([(dict(configuration), objective if len(objective) > 1 else objective[0])])
            self._succeeded = True
        else:
            self._unsaid.append(dict(configuration))
        if self._succeeded and self._unsaid:  # there is no worst before there is one
            several = FAILED if len(self.aims) == 1 else [FAILED] * len(self.aims)
            self.search.tell([(point, several) for point in self._unsaid])
            self._unsaid.clear()
        self.seconds += time.monotonic() - began

    def warm_up(self, files: Sequence[Path]) -> WarmStartCounts:
        """Tell results of earlier searches, tables with columns p:NAME and objective as of DeepHyper and of this one.

        Points outside the space and failures are left out. Raises InputError for a file that is no such table.
        """
        told = failed = outside = 0
        for path in files:
            rows = _table(path, list(self.space), len(self.aims))
            for configuration, objective in rows:
                if not holds(self.space, configuration):
                    outside += 1
                elif objective is None:
                    failed += 1
                else:
                    self.tell(configuration, dict(zip(self.aims, objective, strict=True)))
                    told += 1
        return WarmStartCounts(told, failed, outside)


def objective_columns(aims: int) -> list[str]:
    """What DeepHyper calls its objectives."""
    return ["objective"] if aims == 1 else [f"objective_{k}" for k in range(aims)]


def _table(path: Path, names: list[str], aims: int) -> list[tuple[dict[str, Any], tuple[float, ...] | None]]:
    """The rows of a table of results: the point, and its objectives or None for a failure."""
    try:
        table = pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a table of results ({error})") from None
    wanted = [*(f"p:{name}" for name in names), *objective_columns(aims)]
    absent = [column for column in wanted if column not in table.columns]
    if absent:
        raise InputError(f"{path}: no column {absent[0]!r}; there are {', '.join(map(str, table.columns[:12]))}")
    numbers = table[objective_columns(aims)].apply(pd.to_numeric, errors="coerce")
    found = []
    for (_, row), (_, values) in zip(table.iterrows(), numbers.iterrows(), strict=True):
        plain = {name: getattr(row[f"p:{name}"], "item", lambda v=row[f"p:{name}"]: v)() for name in names}
        configuration = {k: int(v) if isinstance(v, float) and v.is_integer() else v for k, v in plain.items()}
        found.append((configuration, None if values.isna().any() else tuple(map(float, values))))
    return found
