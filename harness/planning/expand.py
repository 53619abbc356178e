"""Suite x system -> plan: frozen cases, each known by the hash of its content."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from pydantic import BaseModel, ValidationError

from harness.config.language import validation
from harness.config.language.document import Loc
from harness.config.language.templating import Template, Templates
from harness.config.suite import Resources, Suite
from harness.config.suite_validation import MAX_CASES, axes_of
from harness.config.system import Site
from harness.host.garbage import without_garbage
from harness.planning.dependencies import with_after
from harness.protocol.case import Case
from harness.protocol.errors import UsageError, shortened
from harness.protocol.registry import PROGRAMS

LABEL_LENGTH = 32
NAME_LENGTH = 120
# Fields of sanity checks and figures of merit that are numbers by the time there is a case.
NUMBERS = ("above", "below", "reference")


@dataclass(frozen=True)
class Plan:
    """The cases of one suite on one system; a campaign is a plan being carried out."""

    suite: Suite
    site: Site
    cases: tuple[Case, ...]

    @property
    def campaign_name(self) -> str:
        """Its folder inside runs/."""
        return f"{self.suite.name}-{self.site.system.name}"


def expand(suite: Suite, site: Site, repeats: int | None = None) -> Plan:
    """Every point of the suite's axes, in the order of the file, the last axis running fastest; raises UsageError."""
    each = repeats or suite.repeats
    points = math.prod(len(values) for values in suite.matrix.values())
    points *= math.prod(len(next(iter(axes.values()))) for axes in suite.zips.values())
    if points * each > MAX_CASES:
        raise suite.document.error(("repeats",), f"{points * each} cases, where at most {MAX_CASES} can be handled")
    with without_garbage():
        cases = list(_Expansion(suite, site).cases(each))
    if not cases:
        at = "where" if suite.where else "exclude"
        raise suite.document.error((at,), f"no case: exclude and where leave none of {points} combinations")
    by_id: dict[str, Case] = {}
    for case in cases:
        twin = by_id.setdefault(case.id, case)
        if twin is not case:
            raise suite.document.error((), f"cases {twin.name} and {case.name} are the same work")
    return Plan(suite, site, with_after(suite, tuple(cases)))


def select(plan: Plan, names: Sequence[str], tags: Sequence[str], excluded: Sequence[str]) -> Plan:
    """The plan with only the cases whose name holds one of names, that have all tags, and match nothing excluded."""
    cases = tuple(
        c
        for c in plan.cases
        if (not names or any(n in c.name for n in names))
        and all(t in c.tags for t in tags)
        and not any(x in c.name for x in excluded)
    )
    return Plan(plan.suite, plan.site, cases)


def label(name: str, value: Any) -> str:
    """An axis and its value as part of a case's name: words speak for themselves, numbers need the axis."""
    text = Path(value).stem if isinstance(value, str) else str(value)
    short = "".join(ch if ch.isalnum() and ch.isascii() else "_" for ch in text.lower())[:LABEL_LENGTH]
    return short if isinstance(value, str) else f"{name}_{short}"


class _Expansion:
    """A suite on a site, made ready to be filled in point by point."""

    def __init__(self, suite: Suite, site: Site) -> None:
        self.suite = suite
        self.model: type[BaseModel] = PROGRAMS[suite.program]
        self.known = {"system": site.facts, "settings": dict(site.settings)}
        spaces = {"system": list(site.facts), "settings": list(site.system.settings)}
        templates = Templates(suite.document, spaces)
        self.variables = templates.of(suite.variables, ("variables",))
        self.parameters = templates.of(suite.parameters, ("parameters",))
        self.resources = templates.of(suite.resources, ("resources",))
        self.checks = {
            kind: [
                templates.of(row.model_dump(exclude_unset=True), (kind, k))
                for k, row in enumerate(getattr(suite, kind))
            ]
            for kind in ("sanity", "performance")
        }
        self.where = [templates.condition(text, ("where", k)) for k, text in enumerate(suite.where)]
        self.exclude = [{n: v if isinstance(v, list) else [v] for n, v in row.items()} for row in suite.exclude]
        self.axes = axes_of({"matrix": suite.matrix, "zips": suite.zips})
        self.shared: dict[str, Any] = {
            "program": suite.program,
            "system": site.system.name,
            "environment": dict(site.system.environment),
            "settings": site.identity,
        }
        self.settings = dict(site.settings)
        self.needed: dict[str, Resources] = {}
        self.labels: dict[Any, str] = {}

    def cases(self, repeats: int) -> Iterator[Case]:
        for point in self.points():
            for repeat in range(repeats):
                case = self.case(point, repeat, repeats)
                if case is not None:
                    yield case

    def points(self) -> Iterator[dict[str, Any]]:
        """All combinations of matrix axes and zip rows."""
        rows: list[list[dict[str, Any]]] = [[{n: v} for v in values] for n, values in self.suite.matrix.items()]
        for axes in self.suite.zips.values():
            rows.append([dict(zip(axes, row, strict=True)) for row in zip(*axes.values(), strict=True)])
        for parts in itertools.product(*rows):
            point: dict[str, Any] = {}
            for part in parts:
                point.update(part)
            yield point

    def case(self, point: dict[str, Any], repeat: int, repeats: int) -> Case | None:
        """The case at a point, or None if the suite leaves it out."""
        if any(all(point.get(n) in values for n, values in row.items()) for row in self.exclude):
            return None
        values = {**self.known, "repeat": repeat, **point, **self.parameters.fixed, **self.variables.fixed}
        for name, fill in self.variables.fills:
            values[name] = fill(values)
        if not all(condition(values) for condition in self.where):
            return None
        parameters = {**self.parameters.fixed, **{n: v for n, v in point.items() if n in self.model.model_fields}}
        for name, fill in self.parameters.fills:
            values[name] = parameters[name] = fill(values)
        name = self.name(point, repeat, repeats)
        parameters = self.checked(parameters, name)
        resources = self.resources_of(values, name)
        free = {n: v for n, v in point.items() if n not in self.model.model_fields}
        content: dict[str, Any] = {**self.shared, "parameters": parameters, "point": free}
        content |= {"nodes": resources.nodes, "ranks_per_node": resources.ranks_per_node}
        if repeat:
            content["repeat"] = repeat
        return Case(
            id=hashlib.sha256(orjson.dumps(content, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16],
            name=name,
            suite=self.suite.name,
            system=self.shared["system"],
            program=self.suite.program,
            parameters=parameters,
            point=point,
            settings=self.settings,
            nodes=resources.nodes,
            ranks_per_node=resources.ranks_per_node,
            minutes=resources.minutes,
            expected_minutes=resources.expected_minutes or resources.minutes,
            repeat=repeat,
            tags=tuple(self.suite.tags),
            sanity=self.rows("sanity", values, name),
            performance=self.rows("performance", values, name),
        )

    def rows(self, kind: str, values: Mapping[str, Any], name: str) -> tuple[dict[str, Any], ...]:
        """What the events of the case must show."""
        found = tuple(_filled(row, values) for row in self.checks[kind])
        for k, (template, row) in enumerate(zip(self.checks[kind], found, strict=True)):
            for field, _ in template.fills:
                if field in NUMBERS and (isinstance(row[field], bool) or not isinstance(row[field], (int, float))):
                    said = f"{kind}.{k}.{field}: expected a number, got {shortened(row[field])} (in case {name})"
                    raise self.suite.document.error((kind, k, field), said)
        return found

    def name(self, point: Mapping[str, Any], repeat: int, repeats: int) -> str:
        words = [self.suite.name]
        for axis, value in point.items():
            key = (axis, type(value), value if isinstance(value, (str, int, float)) else repr(value))
            if key not in self.labels:
                self.labels[key] = label(axis, value)
            words.append(self.labels[key])
        if repeats > 1:
            words.append(f"repeat_{repeat}")
        return "-".join(words)[:NAME_LENGTH].rstrip("-")

    def checked(self, parameters: dict[str, Any], name: str) -> dict[str, Any]:
        """The parameters as the program takes them; raises UsageError."""
        try:
            model = self.model.model_validate(parameters)
        except ValidationError as error:
            raise self.complaint(error, self.model, ("parameters",), name) from None
        return model.model_dump(mode="json", exclude_unset=True, exclude_none=True)

    def resources_of(self, values: Mapping[str, Any], name: str) -> Resources:
        asked = _filled(self.resources, values)
        key = repr(asked)
        if key not in self.needed:
            try:
                self.needed[key] = Resources.model_validate(asked)
            except ValidationError as error:
                raise self.complaint(error, Resources, ("resources",), name) from None
        return self.needed[key]

    def complaint(self, error: ValidationError, model: type[BaseModel], at: Loc, name: str) -> UsageError:
        """What is wrong with a value that only came to be at a point."""
        document, lines = self.suite.document, []
        for e in error.errors(include_url=False):
            loc = (*at, *e["loc"])
            if e["loc"] and e["loc"][0] in self.axes:
                loc = self.axes[str(e["loc"][0])][0]
            said = validation.describe([e], model, (*at, *e["loc"]))
            lines.append(document.problem(loc, f"{said} (in case {name})").told())
        return UsageError("\n".join(lines))


def _filled(template: Template, values: Mapping[str, Any]) -> dict[str, Any]:
    return (
        {**template.fixed, **{name: fill(values) for name, fill in template.fills}}
        if template.fills
        else template.fixed
    )
