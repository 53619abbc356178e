"""Suite: what to measure, from suites/*.yaml."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PrivateAttr, ValidationError, create_model, model_validator

from harness.config import resources as shipped
from harness.config import suite_validation
from harness.config.language import expressions, validation
from harness.config.language.document import MOST_TOLD, Document, Loc, Problem, gather
from harness.config.language.inheritance import layered
from harness.protocol.errors import did_you_mean, shortened
from harness.protocol.registry import PROGRAMS, lists, partial
from harness.protocol.types import Count, Minutes, Name, Strict, Word


def _number(value: str | int | float) -> str | int | float:
    if isinstance(value, str) and not expressions.is_expression(value):
        raise ValueError(f"expected a number, got {shortened(value)}")
    return value


Scalar = bool | int | float | str
Axis = Annotated[list[Scalar], Field(min_length=1)]
Number = Annotated[str | int | float, AfterValidator(_number)]
# More is a slip of the pen on any machine.
Many = Annotated[int, Field(ge=1, le=1_000_000)]

# Parameters that hold the path of a file, or the name of a shipped checkpoint.
FILES = ("checkpoint", "structures")


class Resources(Strict):
    """What one case needs; the values may be expressions.

    minutes: wall time after which the case is stopped. expected_minutes: what it should take, for cost estimates.
    """

    nodes: Many = 1
    ranks_per_node: Many = 1
    minutes: Minutes = 60.0
    expected_minutes: Minutes | None = None


class After(Strict):
    """Cases that match `cases` start after the cases that match `needs` and agree with them on every other axis.

    across: axes on which they need not agree.
    """

    cases: dict[Word, Scalar] = Field(default_factory=dict)
    needs: Annotated[dict[Word, Scalar], Field(min_length=1)]
    across: list[Word] = Field(default_factory=list)


class Observation(Strict):
    """Which events of a case to look at, and which field of them.

    event: its kind. where: fields that must have these values. field: the value looked at, dots lead into mappings.
    """

    event: str
    where: dict[str, Scalar] = Field(default_factory=dict)
    field: str | None = None


class Check(Observation):
    """What must be true of the events of a case that ended well; otherwise it counts as failed."""

    at_least: Annotated[int, Field(ge=0)] = 1
    at_most: Annotated[int, Field(ge=0)] | None = None
    equals: Any = None
    above: Number | None = None
    below: Number | None = None

    @model_validator(mode="after")
    def _has_field(self) -> Check:
        if self.field is None and (self.equals, self.above, self.below) != (None, None, None):
            raise ValueError("equals, above and below need the field that they are about")
        if self.at_most is not None and self.at_most < self.at_least:
            raise ValueError(f"at_most {self.at_most} is below at_least {self.at_least}")
        return self


class Reference(Observation):
    """What a figure of merit should be: median of a field within a relative tolerance of the reference."""

    name: Name
    field: str
    reference: Number
    tolerance: Annotated[float, Field(gt=0)]
    direction: Literal["higher_is_better", "lower_is_better", "equal"]
    unit: str
    statistic: Literal["median", "mean", "min", "max"] = "median"


class Suite(Strict):
    """One experiment: a program, the parameters all its cases share, and those that the cases run through.

    variables: names for values and expressions. matrix: axis -> values, all combinations. zips: axes that advance
    together. exclude, where: combinations left out, conditions on those kept. pack: cases that share one allocation
    at most. retries: how often a case that was lost (a dead node, a vanished job) is submitted again.
    """

    name: Name
    title: Annotated[str, Field(min_length=1, max_length=200, pattern=validation.ONE_LINE)]
    description: str = ""
    program: str
    variables: dict[Word, Any] = Field(default_factory=dict)
    parameters: dict[str, Any] = Field(default_factory=dict)
    matrix: dict[str, list[Any]] = Field(default_factory=dict)
    zips: dict[Word, dict[str, list[Any]]] = Field(default_factory=dict)
    exclude: list[Annotated[dict[str, Any], Field(min_length=1)]] = Field(default_factory=list)
    where: list[str] = Field(default_factory=list)
    repeats: Annotated[int, Field(ge=1, le=1000)] = 1
    resources: dict[str, Any] = Field(default_factory=dict)
    pack: Count = 1
    retries: Annotated[int, Field(ge=0, le=100)] = 1
    after: list[After] = Field(default_factory=list)
    sanity: list[Check] = Field(default_factory=list)
    performance: list[Reference] = Field(default_factory=list)
    tags: list[Name] = Field(default_factory=list)

    _document: Document | None = PrivateAttr(default=None)

    @property
    def document(self) -> Document:
        """Where its parts stand."""
        return self._document or Document(Path(f"{self.name}.yaml"), {}, {})


def load(path: Path, scale_for: str | None = None) -> Suite:
    """Read and check a suite, with the overlay of its `scale` for a system, if it has one, laid over it.

    All overlays are checked, whichever is asked for; raises UsageError with every problem.
    """
    document = layered(path, "suites")
    base, overlays = document.without("scale"), _scale(document)
    gather([problems(base), *_scale_problems(document, base, overlays)])
    if scale_for in overlays:
        base = overlays[scale_for].over(base)
    suite = Suite.model_validate(_with_files(base))
    suite._document = base
    return suite


def _scale(document: Document) -> dict[str, Document]:
    """The overlays by system."""
    scale = document.data.get("scale")
    parts = scale.items() if isinstance(scale, dict) else ()
    return {name: document.part(("scale", name)) for name, part in parts if isinstance(part, dict)}


def _scale_problems(document: Document, base: Document, overlays: dict[str, Document]) -> Iterator[list[Problem]]:
    """What is wrong in `scale`, and what is wrong with the suite on a system and not without its overlay."""
    scale = document.data.get("scale", {})
    if not isinstance(scale, dict):
        yield [document.problem(("scale",), "scale: expected a mapping from systems to what differs there")]
        return
    known = shipped.names("systems")
    without = {problem.message for problem in problems(base)}
    for name in scale:
        at = ("scale", name)
        if name not in known:
            yield [document.problem(at, f"scale: unknown system {shortened(name)}{did_you_mean(name, known)}")]
        elif name not in overlays:
            yield [document.problem(at, f"scale.{name}: expected a mapping of what differs there")]
        else:
            part = overlays[name]
            fixed = [key for key in ("name", "scale", "extends", "program") if key in part.data]
            yield [document.problem((*at, key), f"scale.{name}: {key!r} cannot differ by system") for key in fixed]
            part = part.without(*fixed)
            found = [*part.takes_nothing(base), *problems(part.over(base))]
            yield [Problem(p.mark, f"{p.message} (scale.{name})") for p in found if p.message not in without]


def problems(document: Document) -> list[Problem]:
    """What is wrong with a suite's document."""
    program = document.data.get("program")
    if not isinstance(program, str) or program not in PROGRAMS:
        said = f"unknown program {shortened(program)}" if "program" in document.data else "'program' is missing"
        found = [document.problem(("program",), f"{said}{did_you_mean(str(program), PROGRAMS)}")]
        return found + _model_problems(document.without("program"), Suite, {("program",): found[0]})
    axes = partial(program), lists(program)
    typed = create_model(
        "SuiteFile",
        __base__=Suite,
        parameters=(axes[0], Field(default_factory=axes[0])),
        matrix=(axes[1], Field(default_factory=axes[1])),
        zips=(dict[Word, axes[1]], Field(default_factory=dict)),  # type: ignore[valid-type]
        resources=(Resources, Field(default_factory=Resources)),
    )
    expressions_found, wrong = suite_validation.expressions_of(document)
    used = suite_validation.names_used(document, expressions_found)
    pruned = suite_validation.without_expressions(document, {*expressions_found, *wrong}, used)
    found = [*wrong.values(), *suite_validation.name_problems(document, expressions_found, used)]
    types = _model_problems(pruned, typed, wrong)
    if types or wrong:
        return found + types
    return found + list(islice(suite_validation.problems(document, program), MOST_TOLD + 1)) + _file_problems(document)


def _model_problems(document: Document, model: type[Suite], told: dict[Loc, Problem]) -> list[Problem]:
    """What the model says, but nothing of the places of which something is told already."""
    try:
        model.model_validate(document.data)
    except ValidationError as error:
        found = validation.problems(document, model, error)
        missing = {f"{'.'.join(map(str, loc))!r} is missing" for loc in told}
        return [p for p in found if p.mark not in {t.mark for t in told.values()} and p.message not in missing]
    return []


def _file_problems(document: Document) -> list[Problem]:
    return [
        document.problem(
            loc,
            f"{'.'.join(map(str, loc))}: no file {shortened(value)}{did_you_mean(str(value), shipped.checkpoints())}",
        )
        for loc, value in _files(document)
        if not expressions.is_expression(value) and _placed(document, loc, value) is None
    ]


def _with_files(document: Document) -> dict[str, Any]:
    """The document's data, the files in it made absolute."""
    data = {**document.data}
    for loc, value in _files(document):
        placed = None if expressions.is_expression(value) else _placed(document, loc, value)
        if placed is not None:
            data = _replaced(data, loc, placed)
    return data


def _files(document: Document) -> list[tuple[Loc, Any]]:
    """Every place of the document that names a file."""
    found: list[tuple[Loc, Any]] = []
    for name in FILES:
        if document.data.get("parameters", {}).get(name) is not None:
            found.append((("parameters", name), document.data["parameters"][name]))
        lists_here: list[tuple[Loc, Any]] = [(("matrix",), document.data.get("matrix", {}))]
        lists_here += [(("zips", zipped), axes) for zipped, axes in document.data.get("zips", {}).items()]
        for at, axes in lists_here:
            found += [((*at, name, k), value) for k, value in enumerate(axes.get(name, []))]
    return found


def _placed(document: Document, loc: Loc, value: Any) -> str | None:
    if value in shipped.checkpoints():
        return str(value)
    try:
        # as the user names it: the machine that runs the case may not have what a link leads to
        found = os.path.abspath(document.mark(loc).path.parent / str(value))
        return found if os.path.isfile(found) else None
    except (OSError, ValueError):
        return None


def _replaced(data: Any, loc: Loc, value: Any) -> Any:
    if not loc:
        return value
    copy: Any = dict(data) if isinstance(data, dict) else list(data)
    copy[loc[0]] = _replaced(copy[loc[0]], loc[1:], value)
    return copy
