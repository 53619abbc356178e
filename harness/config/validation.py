"""Validation of a document by a pydantic model, which reports every problem at its location."""

from __future__ import annotations

from collections import defaultdict
from itertools import islice
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from harness.config.document import Document, KeyPath, Problem, format_key_path, raise_problems
from harness.protocol.errors import did_you_mean, shorten
from harness.protocol.parameters import list_sibling_names
from harness.protocol.types import IDENTIFIER, NAME

Model = TypeVar("Model", bound=BaseModel)
# The maximum number of errors of one model that are described.
MAX_ERRORS = 200

VARIABLE = r"^[A-Za-z_][A-Za-z0-9_]*$"
FILE = r"^[A-Za-z0-9_][A-Za-z0-9._-]*$"
ONE_LINE = r"^[^\n\r]*$"
PATTERNS = {
    NAME: "lower-case letters, digits, - and _",
    IDENTIFIER: "a word of lower-case letters, digits and _",
    VARIABLE: "a name of letters, digits and _",
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
    "too_short": "at least {min_length} item(s)",
    "too_long": "at most {max_length} item(s)",
    "string_too_short": "text of at least {min_length} character(s)",
    "string_too_long": "text of at most {max_length} characters",
    "greater_than": "a number above {gt:.12g}",
    "greater_than_equal": "a number of at least {ge:.12g}",
    "less_than": "a number below {lt:.12g}",
    "less_than_equal": "a number of at most {le:.12g}",
}


def validate(document: Document, model: type[Model]) -> Model:
    """Return the document as a model; raise UsageError with all its problems."""
    valid, problems = check_model(document, model)
    raise_problems(problems)
    assert valid is not None, "a document without problems is valid"
    return valid


def check_model(document: Document, model: type[Model]) -> tuple[Model | None, list[Problem]]:
    """Return the document as a model, or None and its problems."""
    try:
        return model.model_validate(document.data), []
    except ValidationError as error:
        return None, describe_errors(document, error.errors(include_url=False), model)


def describe_errors(document: Document, errors: list[Any], model: type[BaseModel], at: KeyPath = ()) -> list[Problem]:
    """Convert pydantic's errors to problems; a value that no member of a union accepts is a single problem.

    Args:
        document: The document that was validated.
        errors: What ValidationError.errors returns.
        model: The model that validated it.
        at: The key path of what the model validated.
    """
    by_location: dict[Any, list[Any]] = defaultdict(list)
    for error in islice(errors, MAX_ERRORS):
        path = _strip_union_tags(document, (*at, *error["loc"]))
        is_single = error["type"] in ("missing", "extra_forbidden", "value_error")
        by_location[path, error["loc"] if is_single else None].append(error)
    problems = []
    for (path, _), group in by_location.items():
        missing = (group[0]["loc"][-1],) if group[0]["type"] == "missing" else ()
        problems.append(document.problem((*path, *missing), describe_error(group, model, path)))
    return problems


def _strip_union_tags(document: Document, at: KeyPath) -> KeyPath:
    """Return the key path without the parts that pydantic inserts for keys and for members of a union."""
    path: list[int | str] = []
    node: Any = document.data
    for part in at:
        is_item = isinstance(node, list) and isinstance(part, int) and part < len(node)
        if is_item or (isinstance(node, dict) and part in node):
            node = node[part]
            path.append(part)
    return tuple(path)


def describe_error(errors: list[Any], model: type[BaseModel], at: KeyPath) -> str:
    """Return the message of the errors at one key path."""
    error, name = errors[0], format_key_path(at)
    match error["type"]:
        case "extra_forbidden":
            return f"unknown key {shorten(at[-1])}{did_you_mean(str(at[-1]), list_sibling_names(model, at))}"
        case "missing":
            missing = error["loc"][-1]
            return f"{format_key_path(at if at[-1:] == (missing,) else (*at, missing))!r} is missing"
        case "literal_error":
            known = [word.strip(" '") for word in error["ctx"]["expected"].replace(" or ", ", ").split(",")]
            return f"{name}: unknown {shorten(error['input'])}{did_you_mean(str(error['input']), known)}"
        case "value_error":
            return f"{name}: {error['ctx']['error']}" if name else str(error["ctx"]["error"])
    expected = dict.fromkeys(map(_describe_expected, errors))
    if "a number" in expected:
        expected.pop("a whole number", None)
    hint = ""
    if list(expected) == ["text"] and not isinstance(error["input"], (dict, list, type(None))):
        hint = " (in quotes it is text)"
    return f"{name}: expected {' or '.join(expected)}, got {shorten(error['input'])}{hint}"


def _describe_expected(error: Any) -> str:
    if error["type"] == "string_pattern_mismatch":
        pattern = error["ctx"]["pattern"]
        return PATTERNS.get(pattern, f"text that matches {pattern}")
    if error["type"] in EXPECTED:
        return EXPECTED[error["type"]].format(**error.get("ctx", {}))
    message: str = error["msg"]
    return message.replace("Input should be ", "")
