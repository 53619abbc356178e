"""Find, check and load files of claims; all mistakes are reported together with their locations."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

from pydantic import ValidationError

from harness.claims.evaluate import collect_tables
from harness.claims.model import Claim, Filter, Measure, Paper, Query
from harness.claims.notes import check_fields
from harness.claims.query import OPERATORS, split_comparison
from harness.config import resources, yaml_loader
from harness.config.document import Document, KeyPath, Problem, check_model, raise_problems
from harness.document.blocks import Table
from harness.experiments.tables import build_results
from harness.protocol.errors import UsageError, did_you_mean
from harness.protocol.registry import load_programs

FOLDER = Path("claims")
Tables = Mapping[str, Collection[str]]


def find_files(extra: Sequence[Path] = ()) -> dict[str, Path]:
    """Return the files of claims by name: the shipped ones, those in ./claims, and the extra ones.

    Raises:
        UsageError: two files have the same name, which identifies a paper on the scorecard.
    """
    shipped = sorted((resources.get_resource_dir("reports") / "claims").glob("*.yaml"))
    files: dict[str, Path] = {}
    for path in [*shipped, *sorted(FOLDER.glob("*.yaml")), *extra]:
        known = files.setdefault(path.stem, path)
        if path.exists() and not path.samefile(known):
            raise UsageError(f"{path}: {known} has the same name; rename one of the files")
    return files


def load_papers(extra: Sequence[Path] = ()) -> dict[str, Paper]:
    """Return the papers by the names of their files.

    Args:
        extra: Files of claims, in addition to the shipped ones and those in ./claims.

    Raises:
        UsageError: a file has mistakes; the message lists all of them, with the nearest name for each unknown one.
    """
    documents = {name: yaml_loader.load_yaml(path) for name, path in find_files(extra).items()}
    tables = _list_columns()
    raise_problems(problem for document in documents.values() for problem in _check_paper(document, tables))
    return {name: Paper.model_validate(document.data) for name, document in documents.items()}


@cache
def _list_columns() -> Tables:
    """Return the columns of each table that a claim can select."""
    tables = collect_tables(build_results([]))
    return {name: list(table.columns) for name, table in tables.items() if len(table.columns)}


def _check_paper(document: Document, tables: Tables) -> Iterator[Problem]:
    yield from check_model(document, Paper)[1]
    claims = document.data.get("claims")
    ids: set[str] = set()
    for index, data in enumerate(claims if isinstance(claims, list) else ()):
        try:
            claim = Claim.model_validate(data)
        except ValidationError:
            continue
        if claim.id in ids:
            yield document.make_problem(("claims", index, "id"), f"duplicate claim id {claim.id!r}")
        ids.add(claim.id)
        for location, message in _Checker(tables).check_claim(claim):
            yield document.make_problem(("claims", index, *location), message)


# The key path and the message of each mistake.
Mistakes = Iterator[tuple[KeyPath, str]]


class _Checker:
    """A check of the names in claims against the names of tables, columns, programs and suites."""

    def __init__(self, tables: Tables) -> None:
        self.tables = tables

    def check_claim(self, claim: Claim) -> Mistakes:
        """Yield a message for every mistake, with its key path in the claim."""
        programs = load_programs()
        if claim.program not in programs:
            yield ("program",), f"unknown program {claim.program!r}{did_you_mean(claim.program, programs)}"
        files: list[tuple[KeyPath, str]] = [(("suites", k), suite) for k, suite in enumerate(claim.suites)]
        if run := claim.decided_by:
            files.append((("decided_by", "suite"), run.suite))
            files += [(("decided_by", "systems", k), system) for k, system in enumerate(run.systems)]
        for location, name in files:
            kind = "systems" if "systems" in location else "suites"
            known = resources.list_resources(kind)
            if name not in known and not name.endswith((".yaml", ".yml")):
                yield location, f"unknown {kind.removesuffix('s')} {name!r}{did_you_mean(name, known)}"
        if claim.query is None:
            return
        yield from self.check_query(claim.query)
        columns = self.list_columns(claim.query)
        if columns is None:
            return
        for name, measure in claim.measures.items():
            yield from self.check_measure(measure, columns, ("measures", name))
        for index, condition in enumerate(claim.conditions):
            yield from self.check_filter(condition.where, columns, ("conditions", index, "where"))
            if condition.measure is not None:
                yield from self.check_measure(condition.measure, columns, ("conditions", index, "measure"))
        texts: list[tuple[KeyPath, str]] = [(("note",), claim.note), (("otherwise", "note"), claim.otherwise.note)]
        texts += [
            (("conditions", k, "otherwise", "note"), condition.otherwise.note)
            for k, condition in enumerate(claim.conditions)
        ]
        for location, text in texts:
            yield from ((location, message) for message in check_fields(text, columns, claim.measures))

    def check_query(self, query: Query) -> Mistakes:
        """Yield the mistakes of a query; its columns are only checked if all its tables are known."""
        names = [(("table",), query.table), *((("join", k, "table"), j.table) for k, j in enumerate(query.join))]
        unknown = [(location, name) for location, name in names if name not in self.tables]
        for location, name in unknown:
            yield ("query", *location), f"unknown table {name!r}{did_you_mean(name, self.tables)}"
        columns = self.list_columns(query)
        if unknown or columns is None:
            return
        available = set(self.tables[query.table])
        for k, join in enumerate(query.join):
            yield from self.check_names(join.on, available & set(self.tables[join.table]), ("query", "join", k, "on"))
            yield from self.check_names(join.columns, self.tables[join.table], ("query", "join", k, "columns"))
            available |= set(join.columns)
        for name in ("where", "complete", "prefer"):
            yield from self.check_filter(getattr(query, name), columns, ("query", name))
        yield from (
            (("query", "incomplete_reason"), message) for message in check_fields(query.incomplete_reason, columns)
        )
        if query.incorrect is not None:
            yield from self.check_filter(query.incorrect.where, columns, ("query", "incorrect", "where"))
        if query.descending is not None:
            yield from self.check_names([query.descending], columns, ("query", "descending"))
        if query.pick is not None:
            for name in ("largest", "smallest"):
                yield from self.check_name(getattr(query.pick, name), columns, ("query", "pick", name))
            yield from self.check_names(query.pick.of_each, columns, ("query", "pick", "of_each"))
        if query.groups is not None:
            yield from self.check_names(query.groups.by, columns, ("query", "groups", "by"))
            if query.groups.measure is not None:
                yield from self.check_measure(query.groups.measure, columns, ("query", "groups", "measure"))
        yield from self.check_measure(query.measure, columns, ("query", "measure"))
        if "folder" not in columns and not {"campaign", "case"} <= columns:
            yield ("query", "table"), f"{query.table} does not contain the folders of its runs: join a table that does"

    def check_measure(self, measure: Measure, columns: set[str], location: KeyPath) -> Mistakes:
        """Yield the mistakes of a measure."""
        for name in ("column", "per", "over", "low", "high"):
            value = getattr(measure, name)
            if isinstance(value, str):
                yield from self.check_name(value, columns, (*location, name))
        for name in ("matching", "against"):
            yield from self.check_filter(getattr(measure, name), columns, (*location, name))

    def check_filter(self, conditions: Filter, columns: Collection[str], location: KeyPath) -> Mistakes:
        """Yield a message for each unknown column of a filter, and each comparison with text that is not a number."""
        for column, values in conditions.items():
            yield from self.check_name(column, columns, (*location, column))
            for value in values if isinstance(values, list) else [values]:
                symbol, text = split_comparison(value)
                if symbol in OPERATORS and not is_number(text):
                    yield (*location, column), f"expected a number after {symbol}, got {text!r}"

    def check_names(self, names: Sequence[str], columns: Collection[str], location: KeyPath) -> Mistakes:
        """Yield a message for each unknown column of a list."""
        for index, name in enumerate(names):
            yield from self.check_name(name, columns, (*location, index))

    def check_name(self, name: str | None, columns: Collection[str], location: KeyPath) -> Mistakes:
        """Yield a message if the name is not a column."""
        if name is not None and name not in columns:
            yield location, f"unknown column {name!r}{did_you_mean(name, columns)}"

    def list_columns(self, query: Query) -> set[str] | None:
        """Return the columns of the query's table and of its joins; None if the table is unknown."""
        if query.table not in self.tables:
            return None
        return set(self.tables[query.table]).union(*(join.columns for join in query.join))


def is_number(text: str) -> bool:
    """Return whether Python can convert a text to a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def find_table(papers: Mapping[str, Paper], name: str) -> tuple[Paper, Table]:
    """Return the first paper that contains a printed table, and the table; raise UsageError if no paper contains it."""
    for paper in papers.values():
        if name in paper.values:
            return paper, paper.values[name]
    raise UsageError(f"no file of claims contains the printed table {name!r}")
