"""Expand a suite on a system into a plan of cases, each of which is identified by the hash of its content."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orjson
from pydantic import BaseModel, ValidationError

from harness.config.document import KeyPath, describe_error
from harness.config.suite_file import MAX_CASES, Resources, Suite, describe_excess
from harness.config.system import ResolvedSystem
from harness.config.templating import Template, TemplateCompiler
from harness.host.process import pause_gc
from harness.planning.dependencies import resolve_dependencies
from harness.planning.implementations import check_implementation
from harness.protocol.case import Case
from harness.protocol.errors import UsageError, shorten
from harness.protocol.registry import load_programs

MAX_LABEL_LENGTH = 32
MAX_CASE_NAME_LENGTH = 120
# Fields of sanity checks and figures of merit that must be numbers after rendering.
NUMERIC_FIELDS = ("at_least", "at_most", "reference")
# One value of every axis, by name of the axis.
Combination = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """The cases of one suite on one system; a campaign carries it out."""

    suite: Suite
    system: ResolvedSystem
    cases: tuple[Case, ...]

    @property
    def campaign_name(self) -> str:
        """Name of the campaign's folder in runs/."""
        return f"{self.suite.name}-{self.system.definition.name}"


def expand_suite(suite: Suite, system: ResolvedSystem, repeats: int | None = None) -> Plan:
    """Return the plan of the combinations of the suite's axes that `exclude` and `where` leave.

    The last axis varies fastest; if cases depend on others, each follows the cases that it needs.

    Args:
        suite: The suite, overlaid for the system.
        system: The system.
        repeats: The number of repeats of each case; None: as in the suite.

    Raises:
        UsageError: there are no cases or too many, two cases are identical, or a rendered value is invalid.
    """
    repeats = repeats or suite.repeats
    n_combinations = math.prod(len(values) for values in suite.matrix.values())
    n_combinations *= math.prod(len(next(iter(axes.values()))) for axes in suite.zips.values())
    if n_combinations * repeats > MAX_CASES:
        raise suite.document.make_error(("repeats",), describe_excess(n_combinations * repeats))
    with pause_gc():
        cases = tuple(_SuiteExpander(suite, system, repeats).iter_cases())
    if not cases:
        section = "where" if suite.where else "exclude"
        raise suite.document.make_error(
            (section,), f"no case: exclude and where remove all {n_combinations} combinations"
        )
    by_id: dict[str, Case] = {}
    for case in cases:
        duplicate = by_id.setdefault(case.id, case)
        if duplicate is not case:
            raise suite.document.make_error((), f"cases {duplicate.name} and {case.name} are identical")
    return Plan(suite, system, resolve_dependencies(suite, cases))


def filter_cases(plan: Plan, names: Sequence[str], tags: Sequence[str], excluded: Sequence[str]) -> Plan:
    """Return the plan with the cases that have all tags and whose name contains one of `names` and none of `excluded`.

    Without `names`, cases of every name are left.
    """
    cases = tuple(
        case
        for case in plan.cases
        if (not names or any(name in case.name for name in names))
        and all(tag in case.tags for tag in tags)
        and not any(name in case.name for name in excluded)
    )
    return replace(plan, cases=cases)


def format_axis_label(axis: str, value: Any) -> str:
    """Return the part of a case's name for a value on an axis: the text itself, or `axis_value` for anything else."""
    text = Path(value).stem if isinstance(value, str) else str(value)
    label = "".join(ch if ch.isalnum() and ch.isascii() else "_" for ch in text.lower())[:MAX_LABEL_LENGTH]
    return label if isinstance(value, str) else f"{axis}_{label}"


class _SuiteExpander:
    """A suite on a system, compiled so that it can be rendered for each combination of the axes."""

    def __init__(self, suite: Suite, system: ResolvedSystem, repeats: int) -> None:
        self.suite, self.system, self.repeats = suite, system, repeats
        self.model: type[BaseModel] = load_programs()[suite.program].parameters
        self.parameter_axes = suite.axes.keys() & self.model.model_fields.keys()
        compiler = TemplateCompiler(
            suite.document, {"system": list(system.expression_values), "settings": list(system.definition.settings)}
        )
        self.variables = compiler.compile(suite.variables, ("variables",))
        self.parameters = compiler.compile(suite.parameters, ("parameters",))
        self.resources = compiler.compile(suite.resources, ("resources",))
        self.sanity, self.performance = (
            [
                compiler.compile(row.model_dump(exclude_unset=True), (kind, k))
                for k, row in enumerate(getattr(suite, kind))
            ]
            for kind in ("sanity", "performance")
        )
        self.where = [compiler.compile_condition(text, ("where", k)) for k, text in enumerate(suite.where)]
        self.exclude = [{n: v if isinstance(v, list) else [v] for n, v in row.items()} for row in suite.exclude]
        self.constant_values = {
            "system": system.expression_values,
            "settings": dict(system.settings),
            **self.parameters.constants,
            **self.variables.constants,
        }
        # the id of a case depends on its content, of which this part is common to all cases
        self.content: dict[str, Any] = {
            "program": suite.program,
            "system": system.definition.name,
            "environment": dict(system.definition.environment),
            "settings": system.identifying_settings,
        }
        self.settings, self.tags = dict(system.settings), tuple(suite.tags)
        self.valid_resources: dict[str, Resources] = {}
        self.labels: dict[Any, str] = {}

    def iter_cases(self) -> Iterator[Case]:
        for combination in self.iter_combinations():
            if not any(all(combination.get(n) in values for n, values in row.items()) for row in self.exclude):
                for repeat in range(self.repeats):
                    case = self.build_case(combination, repeat)
                    if case is not None:
                        yield case

    def iter_combinations(self) -> Iterator[Combination]:
        """Yield all combinations of matrix axes and zip rows."""
        rows: list[list[Combination]] = [
            [{axis: value} for value in values] for axis, values in self.suite.matrix.items()
        ]
        for axes in self.suite.zips.values():
            rows.append([dict(zip(axes, row, strict=True)) for row in zip(*axes.values(), strict=True)])
        for parts in itertools.product(*rows):
            combination: Combination = {}
            for part in parts:
                combination.update(part)
            yield combination

    def build_case(self, combination: Combination, repeat: int) -> Case | None:
        """Return the case of a combination, or None if a condition of `where` is false."""
        values = {**self.constant_values, "repeat": repeat, **combination}
        for name, render in self.variables.renderers:
            values[name] = render(values)
        if not all(condition(values) for condition in self.where):
            return None
        parameters = {
            **self.parameters.constants,
            **{n: combination[n] for n in combination if n in self.parameter_axes},
        }
        for name, render in self.parameters.renderers:
            values[name] = parameters[name] = render(values)
        name = self.build_name(combination, repeat)
        parameters = self.validate_parameters(parameters, name)
        check_implementation(parameters, self.system)
        resources = self.render_resources(values, name)
        content = {
            **self.content,
            "parameters": parameters,
            # the values on axes that are not parameters; the key has its old name, so that ids stay the same
            "point": {n: combination[n] for n in combination if n not in self.parameter_axes},
            "nodes": resources.nodes,
            "ranks_per_node": resources.ranks_per_node,
        }
        if repeat:
            content["repeat"] = repeat
        try:
            digest = hashlib.sha256(orjson.dumps(content, option=orjson.OPT_SORT_KEYS)).hexdigest()
        except orjson.JSONEncodeError as error:
            raise self.suite.document.make_error(("parameters",), f"parameters: {error} (in case {name})") from None
        return Case(
            id=digest[:16],
            name=name,
            suite=self.suite.name,
            system=self.content["system"],
            program=self.suite.program,
            parameters=parameters,
            axis_values=combination,
            settings=self.settings,
            nodes=resources.nodes,
            ranks_per_node=resources.ranks_per_node,
            walltime_minutes=resources.walltime_minutes,
            expected_minutes=resources.expected_minutes or resources.walltime_minutes,
            repeat=repeat,
            tags=self.tags,
            sanity=self.render_checks("sanity", self.sanity, values, name),
            performance=self.render_checks("performance", self.performance, values, name),
        )

    def build_name(self, combination: Combination, repeat: int) -> str:
        parts = [self.suite.name]
        for axis, value in combination.items():
            key = (axis, type(value), value if isinstance(value, (str, int, float)) else repr(value))
            if key not in self.labels:
                self.labels[key] = format_axis_label(axis, value)
            parts.append(self.labels[key])
        if self.repeats > 1:
            parts.append(f"repeat_{repeat}")
        return "-".join(parts)[:MAX_CASE_NAME_LENGTH].rstrip("-")

    def render_checks(
        self, kind: str, templates: list[Template], values: Mapping[str, Any], name: str
    ) -> tuple[dict[str, Any], ...]:
        """Render the sanity checks or the figures of merit of a case; raise UsageError if a bound is not a number."""
        if not templates:
            return ()
        rows = tuple([template.render(values) for template in templates])
        for k, template in enumerate(templates):
            for field, _ in template.renderers:
                value = rows[k][field]
                if field in NUMERIC_FIELDS and (isinstance(value, bool) or not isinstance(value, (int, float))):
                    message = f"{kind}.{k}.{field}: expected a number, got {shorten(value)} (in case {name})"
                    raise self.suite.document.make_error((kind, k, field), message)
        return rows

    def validate_parameters(self, parameters: dict[str, Any], name: str) -> dict[str, Any]:
        """Return the valid parameters as plain data; raise UsageError if one is invalid."""
        try:
            model = self.model.model_validate(parameters)
        except ValidationError as error:
            raise self.make_error(error, self.model, ("parameters",), name) from None
        return model.model_dump(mode="json", exclude_unset=True, exclude_none=True)

    def render_resources(self, values: Mapping[str, Any], name: str) -> Resources:
        rendered = self.resources.render(values)
        key = repr(rendered) if self.resources.renderers else ""
        if key not in self.valid_resources:
            try:
                self.valid_resources[key] = Resources.model_validate(rendered)
            except ValidationError as error:
                raise self.make_error(error, Resources, ("resources",), name) from None
        return self.valid_resources[key]

    def make_error(self, error: ValidationError, model: type[BaseModel], key_path: KeyPath, name: str) -> UsageError:
        """Return the error about values of one case, located at their expressions or axes."""
        document, axes = self.suite.document, self.suite.axes
        lines = []
        for e in error.errors(include_url=False):
            path = (*key_path, *e["loc"])
            message = f"{describe_error([e], model, path)} (in case {name})"
            is_axis = key_path == ("parameters",) and e["loc"] and e["loc"][0] in axes
            lines.append(document.make_problem(axes[str(e["loc"][0])][0] if is_axis else path, message).format())
        return UsageError("\n".join(lines))
