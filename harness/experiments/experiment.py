"""The interface between an experiment and the rest of the harness.

An experiment is a package. Its `__init__.py` defines EXPERIMENT; its module `metrics` has the functions of
MetricsModule, of which only `build_tables` is required; its module `page` has those of PageModule.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

from harness.protocol.errors import UsageError
from harness.protocol.types import Scope
from harness.protocol.upgrade import find_new_name

if TYPE_CHECKING:
    import pandas as pd

    from harness.document.blocks import PrintedPaper, Section
    from harness.results.runs import RunRecord

Direction = Literal["higher", "lower"]
WorkCount = tuple[float, str]
# From this similarity on, the name of a function counts as a misspelt one.
SIMILARITY = 0.8


@dataclass(frozen=True)
class Metric:
    """The name of a measured quantity, its unit, and the direction in which it is better."""

    name: str
    unit: str
    better: Direction


@dataclass(frozen=True)
class MetricSamples:
    """Raw samples of a metric.

    Attributes:
        part: the part of the run that the samples are from, such as a stage or a precision.
        rounds: the round of each sample if parts alternate in rounds, else empty.
    """

    metric: Metric
    values: tuple[float, ...]
    part: Mapping[str, str] = field(default_factory=dict)
    rounds: tuple[int, ...] = ()


THROUGHPUT = Metric("throughput", "structures/s", "higher")


@dataclass(frozen=True)
class CostJoin:
    """How the rows of a table are joined with the tables of costs.

    Attributes:
        scope: what a row describes: a whole case, or a kind of part.
        keys: the columns that the table shares with the table of costs.
        name_columns: the columns that form the part's name, joined by a space.
    """

    scope: Scope = "case"
    keys: tuple[str, ...] = ("folder",)
    name_columns: tuple[str, ...] = ()


@dataclass(frozen=True)
class PageContext:
    """The input from which a page is built.

    Attributes:
        tables: the tables of all experiments by name.
        records: all runs, including incomplete and unreadable ones.
        figures: the folder for the page's figures.
        paper: the values that the paper prints.
    """

    tables: Mapping[str, pd.DataFrame]
    records: Sequence[RunRecord]
    figures: Path
    paper: PrintedPaper


class MetricsModule(Protocol):
    """The functions of an experiment's module `metrics`."""

    def build_tables(self, records: Sequence[RunRecord]) -> Mapping[str, pd.DataFrame]:
        """Return the experiment's tables by name, from all readable records; a table may be empty."""

    def list_metric_samples(self, record: RunRecord) -> Iterator[MetricSamples]:
        """Yield the samples of a finished run that can be compared with those of another run (optional)."""

    def count_work(self, record: RunRecord, scope: Scope, name: str) -> WorkCount:
        """Return the number of useful results of a case, or of one of its parts, and their unit (optional).

        The report divides the cost of the case, or of the part, by this number.

        Args:
            record: The run.
            scope: What is counted: the whole case, or a part of this kind.
            name: The name of the part as in its Window, such as `baseline`; empty for the whole case.
        """


class PageModule(Protocol):
    """The functions of an experiment's module `page`."""

    def build_sections(self, context: PageContext) -> list[Section]:
        """Return the page's sections, or an empty list if there is nothing to show; draw its figures."""


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """An experiment: the programs whose runs it evaluates, and the package that builds its tables and its page.

    Attributes:
        package: the package that holds its modules.
        title: the title of its page.
        programs: the programs whose runs it shows.
        page: the file name of its page, without suffix; by default the last part of the package's name.
        costs: how the rows of its tables are joined with their costs, by the table's name.
        has_samples: whether its page links to the table of all raw samples.
    """

    package: str
    title: str
    programs: tuple[str, ...]
    page: str = ""
    costs: Mapping[str, CostJoin] = field(default_factory=dict)
    has_samples: bool = False

    def __post_init__(self) -> None:
        """Name the page after the package by default."""
        object.__setattr__(self, "page", self.page or self.package.rpartition(".")[2])

    @property
    def metrics(self) -> MetricsModule:
        """The module that builds its tables and samples its metrics."""
        return cast(MetricsModule, self._import("metrics"))

    @property
    def page_module(self) -> PageModule:
        """The module that builds its page; needs matplotlib."""
        return cast(PageModule, self._import("page"))

    def find_function(self, name: Literal["list_metric_samples", "count_work"]) -> Callable[..., Any] | None:
        """Return an optional function of its module `metrics`, or None."""
        return getattr(self.metrics, name, None)

    def _import(self, module: str) -> Any:
        name = f"{self.package}.{module}"
        try:
            imported = importlib.import_module(name)
            _check_functions(imported, MetricsModule if module == "metrics" else PageModule)
            return imported
        except ModuleNotFoundError as error:
            if error.name != name:
                raise
            raise UsageError(f"the experiment {self.package} has no module {module}.py") from None


def _check_functions(module: ModuleType, protocol: type) -> None:
    """Raise UsageError for a function of a module whose name is an old or a misspelt one of a protocol's functions."""
    known = [name for name in vars(protocol) if not name.startswith("_")]
    absent = [name for name in known if not hasattr(module, name)]
    for name, value in vars(module).items():
        if name in known or name.startswith("_") or getattr(value, "__module__", "") != module.__name__:
            continue
        if new := find_new_name(name, known):
            raise UsageError(f"{module.__file__}: the function {name!r} is now called {new!r}")
        if close := difflib.get_close_matches(name, absent, n=1, cutoff=SIMILARITY):
            hint = f"did you mean {close[0]!r}? Otherwise begin its name with an underscore"
            raise UsageError(f"{module.__file__}: the harness does not call {name!r} ({hint})")


def select_numbers(values: Iterable[Any]) -> tuple[float, ...]:
    """Return the values that are numbers."""
    return tuple([float(v) for v in values if type(v) in (float, int)])
