"""Suite: what to measure, from suites/*.yaml."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PrivateAttr, ValidationError, create_model, model_validator

from harness import shipped
from harness.errors import did_you_mean
from harness.language import consistency, expressions, validation, yamlfile
from harness.language.layers import layered
from harness.language.yamlfile import Document
from harness.programs import PROGRAMS, Count, Positive, Strict, lists, partial

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$", max_length=60)]
Word = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=60)]
Scalar = bool | int | float | str
Axis = Annotated[list[Scalar], Field(min_length=1)]
Text = str | int | float

# Parameters that hold the path of a file, or the name of a shipped checkpoint.
FILES = ("checkpoint", "structures")


class Resources(Strict):
    """What one case needs; the values may be expressions.

    minutes: wall time after which the case is stopped. expected_minutes: what it should take, for cost estimates.
    """

    nodes: Count = 1
    ranks_per_node: Count = 1
    minutes: Positive = 60.0
    expected_minutes: Positive | None = None


class After(Strict):
    """Cases that match `cases` start after the cases that match `needs` and agree with them on every other axis."""

    cases: dict[Word, Scalar] = Field(default_factory=dict)
    needs: Annotated[dict[Word, Scalar], Field(min_length=1)]


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
    above: Text | None = None
    below: Text | None = None

    @model_validator(mode="after")
    def _has_field(self) -> Check:
        if self.field is None and (self.equals, self.above, self.below) != (None, None, None):
            raise ValueError("equals, above and below need the field that they are about")
        return self


class Reference(Observation):
    """What a figure of merit should be: median of a field within a relative tolerance of the reference."""

    name: Name
    field: str
    reference: Text
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
    title: Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\n\r]*$")]
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
    scale = _scale(document)
    base = document.without("scale")
    validation.gather([problems(base), *(problems(part.over(base)) for part in scale.values())])
    if scale_for in scale:
        base = scale[scale_for].over(base)
    suite = Suite.model_validate(_with_files(base))
    suite._document = base
    return suite


def _scale(document: Document) -> dict[str, Document]:
    """The overlays by system."""
    scale = document.data.get("scale", {})
    if not isinstance(scale, dict):
        raise document.error(("scale",), "scale: expected a mapping from systems to what differs there")
    known = shipped.names("systems")
    for name, part in scale.items():
        if name not in known:
            raise document.error(("scale", name), f"scale: unknown system {name!r}{did_you_mean(name, known)}")
        if not isinstance(part, dict):
            raise document.error(("scale", name), f"scale.{name}: expected a mapping of what differs there")
        for key in ("name", "scale", "extends", "program"):
            if key in part:
                raise document.error(("scale", name, key), f"scale.{name}: {key!r} cannot differ by system")
    return {name: document.part(("scale", name)) for name in scale}


def problems(document: Document) -> list[str]:
    """Everything that is wrong with a suite's document."""
    program = document.data.get("program")
    if program not in PROGRAMS:
        said = f"unknown program {program!r}" if "program" in document.data else "'program' is missing"
        found = [document.problem(("program",), f"{said}{did_you_mean(str(program), PROGRAMS)}")]
        return found + _model_problems(document, Suite)
    axes = partial(program), lists(program)
    typed = create_model(
        "SuiteFile",
        __base__=Suite,
        parameters=(axes[0], Field(default_factory=axes[0])),
        matrix=(axes[1], Field(default_factory=axes[1])),
        zips=(dict[Word, axes[1]], Field(default_factory=dict)),  # type: ignore[valid-type]
        resources=(Resources, Field(default_factory=Resources)),
    )
    expressions_found, wrong = consistency.expressions_of(document)
    used = consistency.names_used(document, expressions_found)
    pruned = consistency.without_expressions(document, set(expressions_found), used)
    found = wrong + _model_problems(pruned, typed)
    return found or consistency.problems(document, program, expressions_found, used) + _file_problems(document)


def _model_problems(document: Document, model: type[Suite]) -> list[str]:
    try:
        model.model_validate(document.data)
    except ValidationError as error:
        return validation.problems(document, model, error)
    return []


def _file_problems(document: Document) -> list[str]:
    return [
        document.problem(loc, f"{value}: no such file{did_you_mean(str(value), shipped.checkpoints())}")
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


def _files(document: Document) -> list[tuple[yamlfile.Loc, Any]]:
    """Every place of the document that names a file."""
    found: list[tuple[yamlfile.Loc, Any]] = []
    for name in FILES:
        if name in document.data.get("parameters", {}):
            found.append((("parameters", name), document.data["parameters"][name]))
        lists_here: list[tuple[yamlfile.Loc, Any]] = [(("matrix",), document.data.get("matrix", {}))]
        lists_here += [(("zips", zipped), axes) for zipped, axes in document.data.get("zips", {}).items()]
        for at, axes in lists_here:
            found += [((*at, name, k), value) for k, value in enumerate(axes.get(name, []))]
    return found


def _placed(document: Document, loc: yamlfile.Loc, value: Any) -> str | None:
    if value in shipped.checkpoints():
        return str(value)
    found = (document.mark(loc).path.parent / str(value)).resolve()
    return str(found) if found.is_file() else None


def _replaced(data: Any, loc: yamlfile.Loc, value: Any) -> Any:
    if not loc:
        return value
    copy: Any = dict(data) if isinstance(data, dict) else list(data)
    copy[loc[0]] = _replaced(copy[loc[0]], loc[1:], value)
    return copy
