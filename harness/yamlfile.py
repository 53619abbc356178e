"""YAML into a pydantic model, with every error of the file told at its line and column."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from harness.errors import UsageError, did_you_mean

Model = TypeVar("Model", bound=BaseModel)
Loc = Sequence[int | str]


def parse(path: Path) -> CommentedMap:
    """The file's top-level mapping, with positions; raises UsageError with file:line:column."""
    try:
        tree = YAML(typ="rt").load(path.read_text(encoding="utf-8"))
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        raise UsageError(f"{where}: {error.problem or error.context}") from None
    except (OSError, UnicodeDecodeError, YAMLError) as error:
        raise UsageError(f"{path}: cannot be read as YAML ({error})") from None
    if not isinstance(tree, CommentedMap):
        raise UsageError(f"{path}:1:1: expected a mapping of keys at the top of the file")
    return tree


def position(tree: CommentedMap, loc: Loc) -> str:
    """`line:column` of the deepest part of loc that the file has."""
    line, column, node = 0, 0, tree
    for part in loc:
        try:
            if isinstance(node, CommentedMap) and part in node:
                line, column = node.lc.key(part)
            elif isinstance(node, CommentedSeq) and isinstance(part, int):
                line, column = node.lc.item(part)
            else:
                break
            node = node[part]
        except (KeyError, IndexError, TypeError):
            break
    return f"{line + 1}:{column + 1}"


def validate(path: Path, tree: CommentedMap, model: type[Model]) -> Model:
    """The tree as a model; raises UsageError with one line per problem."""
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        lines = [f"{path}:{position(tree, e['loc'])}: {describe(e, model)}" for e in error.errors()]
        raise UsageError("\n".join(dict.fromkeys(lines))) from None


def describe(error: Any, model: type[BaseModel]) -> str:
    """One problem in the user's words."""
    loc = error["loc"]
    name = ".".join(str(part) for part in loc)
    if error["type"] == "extra_forbidden":
        return f"unknown key {loc[-1]!r}{did_you_mean(str(loc[-1]), siblings(model, loc[:-1]))}"
    if error["type"] == "missing":
        return f"{name!r} is missing"
    if error["type"] == "literal_error":
        known = [word.strip(" '") for word in error["ctx"]["expected"].replace(" or ", ", ").split(",")]
        return f"{name}: unknown {error['input']!r}{did_you_mean(str(error['input']), known)}"
    return f"{name}: {error['msg']}, got {error['input']!r}"


def siblings(model: type[BaseModel], loc: Loc) -> list[str]:
    """The keys that are allowed beside an unknown one."""
    current: Any = model
    for part in loc:
        field = current.model_fields.get(part) if isinstance(part, str) and hasattr(current, "model_fields") else None
        current = next((a for a in members(field.annotation) if hasattr(a, "model_fields")), None) if field else None
        if current is None:
            return []
    return list(current.model_fields)


def members(annotation: Any) -> list[Any]:
    """A type and, for a union or optional, its members."""
    return [annotation, *getattr(annotation, "__args__", ())]
