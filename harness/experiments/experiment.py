"""The interface between an experiment and the rest of the harness.

An experiment is a package. Its `__init__.py` defines EXPERIMENT. Its module `metrics` has the functions of
MetricsModule, of which only `build_tables` is required, and its module `page` has the functions of PageModule.
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
# A number of useful results, and their unit.
WorkCount = tuple[float, str]
# A name that is at least this similar to the name of an absent function counts as a misspelling of it.
SIMILARITY = 0.8


@dataclass(frozen=True)
class Metric:
    """The name of a measured quantity, its unit, and whether higher or lower values are better."""

    name: str
    unit: str
    better: Direction


@dataclass(frozen=True)
class MetricSamples:
    """Raw samples of a metric.

    Attributes:
        part: the part of the run in which the samples were measured, such as {"stage": "baseline"}; empty: the run.
        rounds: the round of each sample if the parts alternate in rounds; otherwise empty.
    """

    metric: Metric
    values: tuple[float, ...]
    part: Mapping[str, str] = field(default_factory=dict)
    rounds: tuple[int, ...] = ()


THROUGHPUT = Metric("throughput", "structures/s", "higher")


@dataclass(frozen=True)
class CostJoin:
    """The rule that joins the rows of a table with the tables of costs.

    Attributes:
        scope: what a row is about: a whole case, or a part of it (an epoch, a trial, a stage or a precision).
        keys: the columns that the table shares with the table of costs.
        name_columns: the columns whose values, joined by spaces, are the name of the part.
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
    """The functions of an experiment's module `metrics`; only `build_tables` is required."""

    def build_tables(self, records: Sequence[RunRecord]) -> Mapping[str, pd.DataFrame]:
        """Return the experiment's tables by name, from all readable records; a table may be empty."""

    def list_metric_samples(self, record: RunRecord) -> Iterator[MetricSamples]:
        """Yield the samples of a finished run that can be compared with the samples of another run."""

    def count_work(self, record: RunRecord, scope: Scope, name: str) -> WorkCount:
        """Return the number of useful results of a case, or of one of its parts, and the unit of the results.

        The report divides the cost of the case, or of the part, by this number.

        Args:
            record: The run.
            scope: The scope of the count: the whole case, or a part of this kind.
            name: The name of the part as in its telemetry window, such as `baseline`; empty for the whole case.
        """


class PageModule(Protocol):
    """The functions of an experiment's module `page`."""

    def build_sections(self, context: PageContext) -> list[Section]:
        """Write the figures, and return the sections of the page; return an empty list if there are no data."""


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """An experiment: the programs whose runs it evaluates, and the package that builds its tables and its page.

    Attributes:
        package: the package with the modules of the experiment.
        title: the title of the page.
        programs: the programs whose runs the page shows.
        page: the file name of the page, without suffix; by default the last part of the package's name.
        costs: the rule that adds columns of costs to a table of the experiment, by name of the table.
        has_samples: whether the page links to the table of all raw samples.
    """

    package: str
    title: str
    programs: tuple[str, ...]
    page: str = ""
    costs: Mapping[str, CostJoin] = field(default_factory=dict)
    has_samples: bool = False

    def __post_init__(self) -> None:
        """Set the default name of the page."""
        object.__setattr__(self, "page", self.page or self.package.rpartition(".")[2])

    @property
    def metrics(self) -> MetricsModule:
        """The module that builds the tables of the experiment and lists the samples of its metrics."""
        return cast(MetricsModule, self._import("metrics"))

    @property
    def page_module(self) -> PageModule:
        """The module that builds the page of the experiment; importing it needs matplotlib."""
        return cast(PageModule, self._import("page"))

    def find_function(self, name: Literal["list_metric_samples", "count_work"]) -> Callable[..., Any] | None:
        """Return an optional function of the module `metrics`; None if the module does not define it."""
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
    """Raise UsageError if a module defines a function of the protocol under an old or a misspelt name."""
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
    """Return the values that are numbers as floats; omit all others, such as None and booleans."""
    return tuple([float(v) for v in values if type(v) in (float, int)])
