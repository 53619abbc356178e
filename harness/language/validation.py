"""A document against a pydantic model: every problem of the file at once, each at its place."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from harness.errors import UsageError, did_you_mean
from harness.language.yamlfile import Document, Loc

Model = TypeVar("Model", bound=BaseModel)


def validate(document: Document, model: type[Model]) -> Model:
    """The document as a model; raises UsageError with all its problems."""
    try:
        return model.model_validate(document.data)
    except ValidationError as error:
        raise UsageError("\n".join(problems(document, model, error))) from None


def problems(document: Document, model: type[BaseModel], error: ValidationError, at: Loc = ()) -> list[str]:
    """One entry a problem, in the order of the file; at: where in the document the model's data stands."""
    told = {}
    for e in error.errors():
        loc = (*at, *_known(document, at, e["loc"]))
        told[document.problem(loc, describe(e, model))] = document.mark(loc)
    return sorted(told, key=lambda text: told[text])


def gather(checks: Iterable[list[str]]) -> None:
    """Raise one UsageError with all the problems, each told once."""
    found = list(dict.fromkeys(problem for check in checks for problem in check))
    if found:
        raise UsageError("\n".join(found))


def _known(document: Document, at: Loc, loc: Loc) -> Loc:
    """loc without the names that pydantic puts in for members of a union."""
    kept: list[int | str] = []
    node: Any = document.data
    for step in at:
        node = node.get(step) if isinstance(node, dict) else None
    for part in loc:
        inside = isinstance(node, list) and isinstance(part, int) and part < len(node)
        if inside or (isinstance(node, dict) and part in node):
            node = node[part]
            kept.append(part)
    return tuple(kept)


def describe(error: Any, model: type[BaseModel]) -> str:
    """One problem in the user's words."""
    loc = error["loc"]
    name = ".".join(str(part) for part in loc)
    match error["type"]:
        case "extra_forbidden":
            return f"unknown key {loc[-1]!r}{did_you_mean(str(loc[-1]), siblings(model, loc[:-1]))}"
        case "missing":
            return f"{name!r} is missing"
        case "literal_error":
            known = [word.strip(" '") for word in error["ctx"]["expected"].replace(" or ", ", ").split(",")]
            return f"{name}: unknown {error['input']!r}{did_you_mean(str(error['input']), known)}"
        case "value_error":
            return f"{name}: {error['ctx']['error']}"
    return f"{name}: {_expected(error)}, got {shortened(error['input'])}"


def _expected(error: Any) -> str:
    match error["type"]:
        case "model_type" | "model_attributes_type" | "dict_type":
            return "expected a mapping of keys"
        case "string_pattern_mismatch":
            return f"expected text that matches {error['ctx']['pattern']}"
    said: str = error["msg"]
    return said.replace("Input should be", "expected").replace("a valid ", "a ")


def shortened(value: Any) -> str:
    """The value as written, or its beginning."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def siblings(model: type[BaseModel], loc: Loc) -> list[str]:
    """The keys that are allowed beside an unknown one."""
    current: Any = model
    for part in loc:
        if isinstance(part, int):
            continue
        fields = getattr(current, "model_fields", {})
        field = fields.get(part)
        if field is None:
            # a name of the user's own choosing, inside a mapping of models
            continue
        current = next((a for a in _members(field.annotation) if hasattr(a, "model_fields")), None)
        if current is None:
            return []
    return list(current.model_fields)


def _members(annotation: Any) -> list[Any]:
    """A type and all the types it is made of."""
    found = [annotation]
    for argument in getattr(annotation, "__args__", ()):
        found += _members(argument)
    return found
