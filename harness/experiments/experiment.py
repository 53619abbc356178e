"""What an experiment is to the rest of the harness: an object that names it, and functions at fixed places.

An experiment is a package. Its `__init__.py` defines EXPERIMENT; its module `metrics` has the functions of
MetricsModule, of which only `build_tables` is required; its module `page` has those of PageModule.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

from harness.protocol.errors import UsageError

if TYPE_CHECKING:
    import pandas as pd

    from harness.document.blocks import Section
    from harness.document.paper import Paper
    from harness.results.runs import RunRecord

Better = Literal["higher", "lower"]
Scope = Literal["case", "epoch", "trial", "stage", "precision"]
WorkCount = tuple[float, str]


@dataclass(frozen=True)
class Metric:
    """What a number is called, its unit, and which way is better."""

    name: str
    unit: str
    better: Better


@dataclass(frozen=True)
class MetricSamples:
    """Raw samples of a metric.

    Attributes:
        part: what of the run the samples are from, such as a stage or a precision.
        rounds: the round of each sample where parts took turns; empty where they did not.
    """

    metric: Metric
    values: tuple[float, ...]
    part: Mapping[str, str] = field(default_factory=dict)
    rounds: tuple[int, ...] = ()


THROUGHPUT = Metric("throughput", "structures/s", "higher")


@dataclass(frozen=True)
class CostJoin:
    """How the rows of a table find what they cost.

    Attributes:
        scope: what a row is: a whole case, or a part of one.
        keys: the columns that it has in common with the table of costs.
        name: the columns that, joined by a space, are the part's name.
    """

    scope: Scope = "case"
    keys: tuple[str, ...] = ("folder",)
    name: tuple[str, ...] = ()


@dataclass(frozen=True)
class PageContext:
    """What a page is made from.

    Attributes:
        tables: all tables of the report by name, of every experiment.
        records: all runs, also those that are not complete or cannot be read.
        figures: the folder for the page's figures.
        paper: the values that the paper prints.
    """

    tables: Mapping[str, pd.DataFrame]
    records: Sequence[RunRecord]
    figures: Path
    paper: Paper


class MetricsModule(Protocol):
    """The functions of an experiment's module `metrics`."""

    def build_tables(self, records: Sequence[RunRecord]) -> Mapping[str, pd.DataFrame]:
        """Return the experiment's tables by name, from all readable records; without a row where there is nothing."""

    def sample_metrics(self, record: RunRecord) -> Iterator[MetricSamples]:
        """Yield the numbers of a finished run that may be compared with another's (optional)."""

    def count_work(self, record: RunRecord, scope: Scope, name: str) -> WorkCount:
        """Return number and unit of the useful results of a case, or of the part of it that is called name (optional).

        What a case costs is divided by it.
        """


class PageModule(Protocol):
    """The functions of an experiment's module `page`."""

    def build_sections(self, context: PageContext) -> list[Section]:
        """Return the page's sections, none where there is nothing to show; draw its figures."""


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """An experiment: which programs' runs it is about, and where its tables and its page come from.

    Attributes:
        package: the package that holds its modules.
        title: the title of its page.
        programs: the programs whose runs it shows.
        page: the file name of its page, without ending; by default the last part of the package's name.
        costs: how the rows of its tables find their cost, by the table's name.
        has_samples: whether its page links to the table of all raw samples.
    """

    package: str
    title: str
    programs: tuple[str, ...]
    page: str = ""
    costs: Mapping[str, CostJoin] = field(default_factory=dict)
    has_samples: bool = False

    def __post_init__(self) -> None:
        """Name the page after the package unless it has a name."""
        object.__setattr__(self, "page", self.page or self.package.rpartition(".")[2])

    @property
    def metrics(self) -> MetricsModule:
        """The module with its tables and metrics."""
        return cast(MetricsModule, self._import("metrics"))

    @property
    def page_module(self) -> PageModule:
        """The module that shows it; needs matplotlib."""
        return cast(PageModule, self._import("page"))

    def find_function(self, name: Literal["sample_metrics", "count_work"]) -> Callable[..., Any] | None:
        """Return an optional function of its module `metrics`."""
        return getattr(self.metrics, name, None)

    def _import(self, module: str) -> Any:
        name = f"{self.package}.{module}"
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                raise
            raise UsageError(f"the experiment {self.package} has no module {module}.py") from None


def select_numbers(values: Iterable[Any]) -> tuple[float, ...]:
    """Return those of the values that are numbers."""
    return tuple([float(v) for v in values if type(v) in (float, int)])
