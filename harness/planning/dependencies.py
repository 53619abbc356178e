"""Resolve `depends_on`: which cases of a suite start only after which others are done."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Set
from dataclasses import replace
from graphlib import CycleError, TopologicalSorter
from typing import Any

from harness.config.suite_file import DependencyRule, Suite
from harness.protocol.case import Case


def resolve_dependencies(suite: Suite, cases: tuple[Case, ...]) -> tuple[Case, ...]:
    """Set the dependencies of the cases and sort each case after its dependencies.

    Raises:
        UsageError: dependencies are circular, or a case that a rule requires does not exist.
    """
    if not suite.depends_on:
        return cases
    needs: dict[str, list[Case]] = defaultdict(list)
    for number, rule in enumerate(suite.depends_on):
        _apply_rule(suite, rule, number, cases, needs)
    by_id = {case.id: case for case in cases}
    sorter = TopologicalSorter({case.id: [needed.id for needed in needs[case.id]] for case in cases})
    try:
        order = list(sorter.static_order())
    except CycleError as error:
        cycle = " needs ".join(by_id[i].name for i in error.args[1])
        raise suite.document.make_error(("depends_on",), f"depends_on: circular dependency: {cycle}") from None
    return tuple(
        replace(by_id[i], depends_on=tuple(dict.fromkeys(needed.folder_name for needed in needs[i])))
        if needs[i]
        else by_id[i]
        for i in order
    )


def _apply_rule(
    suite: Suite, rule: DependencyRule, number: int, cases: tuple[Case, ...], needs: dict[str, list[Case]]
) -> None:
    """Add the dependencies of one rule to `needs`."""
    free_axes = {*rule.required_cases, *rule.ignored_axes}
    providers: dict[Any, list[Case]] = defaultdict(list)
    for case in cases:
        if _matches(case, rule.required_cases):
            providers[_get_shared_values(case, free_axes)].append(case)
    for case in cases:
        if _matches(case, rule.cases) and not _matches(case, rule.required_cases):
            matching = providers[_get_shared_values(case, free_axes)]
            if not matching:
                values = ", ".join(f"{axis}: {value}" for axis, value in rule.required_cases.items())
                message = f"depends_on: {case.name} needs a case with {values}, and there is none"
                raise suite.document.make_error(("depends_on", number), message)
            needs[case.id] += matching


def _matches(case: Case, values: Mapping[str, Any]) -> bool:
    return all(case.axis_values[axis] == value for axis, value in values.items())


def _get_shared_values(case: Case, free_axes: Set[str]) -> Any:
    """Return what a case shares with the cases that it needs: the repeat, and values on all axes except `free_axes`."""
    values = sorted(case.axis_values.items())
    return (case.repeat, *((axis, repr(value)) for axis, value in values if axis not in free_axes))
