"""Parsed YAML files, in which every value has a location (file, line, column), and their validation with pydantic."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pydantic import BaseModel, ValidationError

from harness.protocol.errors import UsageError, did_you_mean, shorten
from harness.protocol.parameters import list_sibling_names
from harness.protocol.text import sanitize
from harness.protocol.types import IDENTIFIER, NAME
from harness.protocol.upgrade import describe_renamed, find_new_value

KeyPath = tuple[int | str, ...]
MAX_LINE_LENGTH = 120
MAX_PROBLEMS = 40
# The texts of the loaded files, from which messages quote lines.
_sources: dict[Path, str] = {}


class Location(NamedTuple):
    """A position in a file; line and column count from 1."""

    path: Path
    line: int
    column: int


class Problem(NamedTuple):
    """A message about a position in a file."""

    location: Location
    message: str

    def format(self) -> str:
        """Return `file:line:column: message`, followed by the line of the file."""
        path, line, column = self.location
        return f"{path}:{line}:{column}: {self.message}{quote_line(path, line)}"


@dataclass(frozen=True)
class Document:
    """A mapping of plain data, and the locations of all its keys and items by key path."""

    path: Path
    data: dict[str, Any]
    locations: Mapping[KeyPath, Location]

    def locate(self, key_path: KeyPath) -> Location:
        """Return the location of the deepest part of a key path that exists."""
        for depth in range(len(key_path), -1, -1):
            if key_path[:depth] in self.locations:
                return self.locations[key_path[:depth]]
        return Location(self.path, 1, 1)

    def make_problem(self, key_path: KeyPath, message: str) -> Problem:
        """Return a problem that is located at a key path."""
        return Problem(self.locate(key_path), message)

    def make_error(self, key_path: KeyPath, message: str) -> UsageError:
        """Return an exception that is located at a key path."""
        return UsageError(self.make_problem(key_path, message).format())

    def subdocument(self, key_path: KeyPath) -> Document:
        """Return the mapping at a key path as a document."""
        data: Any = self.data
        for key in key_path:
            data = data[key]
        locations = {
            path[len(key_path) :]: location
            for path, location in self.locations.items()
            if path[: len(key_path)] == key_path
        }
        return Document(self.path, data, locations)

    def drop(self, *keys: str) -> Document:
        """Return the document without some of its top-level keys."""
        data = {key: value for key, value in self.data.items() if key not in keys}
        locations = {
            key_path: location
            for key_path, location in self.locations.items()
            if not key_path or key_path[0] not in keys
        }
        return Document(self.path, data, locations)

    def overlay_on(self, base: Document) -> Document:
        """Return the base overlaid by this document: mappings are merged, null removes a key, the rest is replaced."""
        replaced: set[KeyPath] = set()
        data = _merge(base.data, self.data, (), replaced)
        locations = {
            key_path: location for key_path, location in base.locations.items() if not _is_inside(key_path, replaced)
        }
        locations |= {
            key_path: location
            for key_path, location in self.locations.items()
            if not key_path or _is_inside(key_path, replaced)
        }
        return Document(self.path, data, locations)

    def find_invalid_removals(self, base: Document) -> Iterator[Problem]:
        """Yield a problem for every key that this overlay removes with null but that the base does not have."""
        yield from self._find_invalid_removals(self.data, base.data, ())

    def _find_invalid_removals(
        self, top: Mapping[str, Any], base: Mapping[str, Any], key_path: KeyPath
    ) -> Iterator[Problem]:
        for key, value in top.items():
            if value is None and key not in base:
                unknown = f"null removes a key, and the base has no such key{did_you_mean(key, base)}"
                message = describe_renamed(key, base) or f"{format_key_path((*key_path, key))}: {unknown}"
                yield self.make_problem((*key_path, key), message)
            elif isinstance(value, dict) and isinstance(base.get(key), dict):
                yield from self._find_invalid_removals(value, base[key], (*key_path, key))


def _merge(base: dict[str, Any], top: dict[str, Any], key_path: KeyPath, replaced: set[KeyPath]) -> dict[str, Any]:
    """Return base overlaid by top; add the key paths whose values come from top to `replaced`."""
    merged = dict(base)
    for key, value in top.items():
        base_value = merged.get(key)
        if isinstance(value, dict) and isinstance(base_value, dict):
            merged[key] = _merge(base_value, value, (*key_path, key), replaced)
            continue
        replaced.add((*key_path, key))
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = value
    return merged


def _is_inside(key_path: KeyPath, containers: set[KeyPath]) -> bool:
    """Return whether the key path is one of `containers` or leads into one."""
    return any(key_path[:depth] in containers for depth in range(1, len(key_path) + 1))


def format_key_path(key_path: KeyPath) -> str:
    """Format a key path for messages: `matrix.seed.0`."""
    return ".".join(map(str, key_path))


def iter_strings(node: Any, key_path: KeyPath = ()) -> Iterator[tuple[KeyPath, str]]:
    """Yield every string in nested mappings and lists, with its key path."""
    if isinstance(node, str):
        yield key_path, node
    elif isinstance(node, (dict, list)):
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            yield from iter_strings(value, (*key_path, key))


def raise_problems(problems: Iterable[Problem]) -> None:
    """Raise one UsageError with the first MAX_PROBLEMS distinct problems, sorted by location, if there are any."""
    unique: dict[Problem, None] = {}
    for problem in problems:
        unique[problem] = None
        if len(unique) > MAX_PROBLEMS:
            break
    if unique:
        lines = [problem.format() for problem in sorted(islice(unique, MAX_PROBLEMS))]
        if len(unique) > MAX_PROBLEMS:
            lines.append(f"{next(iter(unique)).location.path}: more problems follow")
        raise UsageError("\n".join(lines))


def cache_source(path: Path, text: str) -> None:
    """Store the text of a file, so that messages can quote its lines."""
    _sources[path] = text


def quote_line(path: Path, line: int) -> str:
    """Return a line break and `7 | text of line 7`, or an empty string if that line is blank or unknown."""
    lines = _sources.get(path, "").split("\n")
    text = lines[line - 1].rstrip()[:MAX_LINE_LENGTH] if line <= len(lines) else ""
    return f"\n    {line} | {sanitize(text)}" if text.strip() else ""


Model = TypeVar("Model", bound=BaseModel)
# The maximum number of errors of one model that are described.
MAX_ERRORS = 200

# Patterns of texts, and their descriptions in messages.
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
# Descriptions of the expected value, by pydantic's type of the error.
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
    """Return the document as a model and no problems, or None and the problems of the document."""
    try:
        return model.model_validate(document.data), []
    except ValidationError as error:
        return None, describe_errors(document, error.errors(include_url=False), model)


def describe_errors(
    document: Document, errors: list[Any], model: type[BaseModel], key_path: KeyPath = ()
) -> list[Problem]:
    """Convert pydantic's errors to problems; a value that no member of a union accepts is a single problem.

    Args:
        document: The document that was validated.
        errors: The list that ValidationError.errors returns.
        model: The model that validated the document or a part of it.
        key_path: The key path of that part; empty for the whole document.
    """
    by_key_path: dict[Any, list[Any]] = defaultdict(list)
    for error in islice(errors, MAX_ERRORS):
        path = _strip_union_tags(document, (*key_path, *error["loc"]))
        is_single = error["type"] in ("missing", "extra_forbidden", "value_error")
        by_key_path[path, error["loc"] if is_single else None].append(error)
    problems = []
    for (path, _), group in by_key_path.items():
        missing = (group[0]["loc"][-1],) if group[0]["type"] == "missing" else ()
        problems.append(document.make_problem((*path, *missing), describe_error(group, model, path)))
    return problems


def _strip_union_tags(document: Document, key_path: KeyPath) -> KeyPath:
    """Return the key path without the parts that pydantic inserts for keys and for members of a union."""
    path: list[int | str] = []
    node: Any = document.data
    for part in key_path:
        is_item = isinstance(node, list) and isinstance(part, int) and part < len(node)
        if is_item or (isinstance(node, dict) and part in node):
            node = node[part]
            path.append(part)
    return tuple(path)


def describe_error(errors: list[Any], model: type[BaseModel], key_path: KeyPath) -> str:
    """Return the message of the errors at one key path."""
    error, name = errors[0], format_key_path(key_path)
    match error["type"]:
        case "extra_forbidden":
            known = list_sibling_names(model, key_path)
            unknown = f"unknown key {shorten(key_path[-1])}{did_you_mean(str(key_path[-1]), known)}"
            return describe_renamed(str(key_path[-1]), known) or unknown
        case "missing":
            missing = error["loc"][-1]
            return f"{format_key_path(key_path if key_path[-1:] == (missing,) else (*key_path, missing))!r} is missing"
        case "literal_error":
            known = [word.strip(" '") for word in error["ctx"]["expected"].replace(" or ", ", ").split(",")]
            if new := find_new_value(error["input"], known):
                return f"{name}: {shorten(error['input'])} is now called {new!r}"
            return f"{name}: unknown {shorten(error['input'])}{did_you_mean(str(error['input']), known)}"
        case "value_error":
            return f"{name}: {error['ctx']['error']}" if name else str(error["ctx"]["error"])
    expected = dict.fromkeys(map(_describe_expected, errors))
    if "a number" in expected:
        expected.pop("a whole number", None)
    hint = ""
    if list(expected) == ["text"] and not isinstance(error["input"], (dict, list, type(None))):
        hint = " (put it in quotes to make it text)"
    return f"{name}: expected {' or '.join(expected)}, got {shorten(error['input'])}{hint}"


def _describe_expected(error: Any) -> str:
    if error["type"] == "string_pattern_mismatch":
        pattern = error["ctx"]["pattern"]
        return PATTERNS.get(pattern, f"text that matches {pattern}")
    if error["type"] in EXPECTED:
        return EXPECTED[error["type"]].format(**error.get("ctx", {}))
    message: str = error["msg"]
    return message.replace("Input should be ", "")
