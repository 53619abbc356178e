"""`after`: which cases of a suite start only when others have ended well."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Set
from dataclasses import replace
from graphlib import CycleError, TopologicalSorter
from typing import Any

from harness.config.suite import After, Suite
from harness.protocol.case import Case


def with_after(suite: Suite, cases: tuple[Case, ...]) -> tuple[Case, ...]:
    """The cases, each with the folders of those it needs, none before one that it needs; raises UsageError."""
    if not suite.after:
        return cases
    needs: dict[str, list[Case]] = defaultdict(list)
    for number, rule in enumerate(suite.after):
        _apply(suite, rule, number, cases, needs)
    by_id = {case.id: case for case in cases}
    sorter = TopologicalSorter({case.id: [n.id for n in needs[case.id]] for case in cases})
    try:
        order = list(sorter.static_order())
    except CycleError as error:
        circle = " needs ".join(by_id[i].name for i in error.args[1])
        raise suite.document.error(("after",), f"after: the cases wait for each other: {circle}") from None
    return tuple(_waiting(by_id[i], needs[i]) for i in order)


def _apply(suite: Suite, rule: After, number: int, cases: tuple[Case, ...], needs: dict[str, list[Case]]) -> None:
    """Add to needs what one rule says."""
    there: dict[Any, list[Case]] = defaultdict(list)
    named = {*rule.needs, *rule.across}
    for case in cases:
        if _matches(case, rule.needs):
            there[_others(case, named)].append(case)
    for case in cases:
        if _matches(case, rule.cases) and not _matches(case, rule.needs):
            found = there[_others(case, named)]
            if not found:
                said = ", ".join(f"{axis}: {value}" for axis, value in rule.needs.items())
                raise suite.document.error(("after", number), f"after: no case with {said} for {case.name} to wait for")
            needs[case.id] += found


def _matches(case: Case, values: Mapping[str, Any]) -> bool:
    return all(case.point[axis] == value for axis, value in values.items())


def _others(case: Case, named: Set[str]) -> Any:
    """Its place on the axes that a rule does not name."""
    return (case.repeat, *((axis, repr(value)) for axis, value in sorted(case.point.items()) if axis not in named))


def _waiting(case: Case, needed: list[Case]) -> Case:
    return replace(case, after=tuple(dict.fromkeys(n.folder_name for n in needed))) if needed else case
