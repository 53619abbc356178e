"""A document against a pydantic model: every problem of the file at once, each at its place."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from itertools import islice
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from harness.config.language.document import Document, Loc, Problem, gather
from harness.protocol.errors import did_you_mean, shortened
from harness.protocol.types import NAME, WORD

Model = TypeVar("Model", bound=BaseModel)
# Problems of one model that are put into words.
MOST = 200

IDENTIFIER = r"^[A-Za-z_][A-Za-z0-9_]*$"
FILE = r"^[A-Za-z0-9_][A-Za-z0-9._-]*$"
ONE_LINE = r"^[^\n\r]*$"
PATTERNS = {
    NAME: "lower-case letters, digits, - and _",
    WORD: "a word of lower-case letters, digits and _",
    IDENTIFIER: "a name of letters, digits and _",
    FILE: "the name of a file, without a folder",
    ONE_LINE: "text of one line",
}
EXPECTED = {
    **dict.fromkeys(("int_type", "int_parsing", "int_parsing_size", "int_from_float"), "a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false"),
    **dict.fromkeys(("model_type", "model_attributes_type", "dict_type"), "a mapping of keys"),
    **dict.fromkeys(("list_type", "tuple_type"), "a list"),
    "string_type": "text",
    "too_short": "at least {min_length} value in it",
    "too_long": "at most {max_length} values in it",
    "string_too_short": "text of at least {min_length} letters",
    "string_too_long": "text of at most {max_length} letters",
    "greater_than": "a number above {gt:.12g}",
    "greater_than_equal": "a number of at least {ge:.12g}",
    "less_than": "a number below {lt:.12g}",
    "less_than_equal": "a number of at most {le:.12g}",
}


def validate(document: Document, model: type[Model]) -> Model:
    """The document as a model; raises UsageError with all its problems."""
    try:
        return model.model_validate(document.data)
    except ValidationError as error:
        found = problems(document, model, error)
    gather([found])
    raise AssertionError("a model that does not fit has problems")


def problems(document: Document, model: type[BaseModel], error: ValidationError) -> list[Problem]:
    """One entry a problem; what no member of a union takes is one problem."""
    by_place: dict[Any, list[Any]] = defaultdict(list)
    for e in islice(error.errors(include_url=False), MOST):
        known = _known(document, e["loc"])
        alone = e["type"] in ("missing", "extra_forbidden", "value_error")
        by_place[(known, e["loc"] if alone else None)].append(e)
    return [
        document.problem((*loc, es[0]["loc"][-1]) if es[0]["type"] == "missing" else loc, describe(es, model, loc))
        for (loc, _), es in by_place.items()
    ]


def _known(document: Document, loc: Loc) -> Loc:
    """loc without the names that pydantic puts in for keys and for members of a union."""
    kept: list[int | str] = []
    node: Any = document.data
    for part in loc:
        inside = isinstance(node, list) and isinstance(part, int) and part < len(node)
        if inside or (isinstance(node, dict) and part in node):
            node = node[part]
            kept.append(part)
    return tuple(kept)


def describe(errors: list[Any], model: type[BaseModel], loc: Loc) -> str:
    """What is wrong at one place, in the user's words."""
    error = errors[0]
    name = ".".join(str(part) for part in loc)
    match error["type"]:
        case "extra_forbidden":
            return f"unknown key {shortened(loc[-1])}{did_you_mean(str(loc[-1]), siblings(model, loc[:-1]))}"
        case "missing":
            return f"{'.'.join(str(part) for part in (*loc, error['loc'][-1]))!r} is missing"
        case "literal_error":
            known = [word.strip(" '") for word in error["ctx"]["expected"].replace(" or ", ", ").split(",")]
            return f"{name}: unknown {shortened(error['input'])}{did_you_mean(str(error['input']), known)}"
        case "value_error":
            return f"{name}: {error['ctx']['error']}" if name else str(error["ctx"]["error"])
    kinds = dict.fromkeys(_expected(e) for e in errors)
    if "a number" in kinds:
        kinds.pop("a whole number", None)
    expected = " or ".join(kinds)
    value = error["input"]
    quotes = " (in quotes it is text)" if expected == "text" and not isinstance(value, (dict, list, type(None))) else ""
    return f"{name}: expected {expected}, got {shortened(value)}{quotes}"


def _expected(error: Any) -> str:
    if error["type"] == "string_pattern_mismatch":
        pattern = error["ctx"]["pattern"]
        return PATTERNS.get(pattern, f"text that matches {pattern}")
    said: str = EXPECTED.get(error["type"], "")
    return said.format(**error.get("ctx", {})) if said else error["msg"].replace("Input should be ", "")


def siblings(model: type[BaseModel], loc: Loc) -> list[str]:
    """The keys that are allowed beside an unknown one."""
    current: Any = model
    for part in loc:
        field = getattr(current, "model_fields", {}).get(part)
        if isinstance(part, int) or field is None:
            # a place in a list, or a name of the user's own choosing inside a mapping of models
            continue
        current = next((a for a in _members(field.annotation) if hasattr(a, "model_fields")), None)
        if current is None:
            return []
    return list(current.model_fields)


def _members(annotation: Any) -> Iterator[Any]:
    """A type and all the types it is made of."""
    yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from _members(argument)
