"""Parts of JSON Schemas made from pydantic models, and the variants of them that the languages need."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, models_json_schema
from pydantic_core import core_schema

from harness.protocol.types import Strict, without_repeats

Schema = dict[str, Any]
DRAFT = "https://json-schema.org/draft/2020-12/schema"
DEFS = "#/$defs/"
OVERLAY = "-overlay"

EXPRESSION: Schema = {"type": "string", "pattern": r"\{\{[\s\S]*\}\}"}
NO_EXPRESSION: Schema = {"pattern": r"\{[{%#]"}
NULL: Schema = {"type": "null"}
# What says something about a value, but does not restrict it.
NOTES = ("title", "description", "default")


class Generator(GenerateJsonSchema):
    """Pydantic's schemas with the checks that it cannot see, and with the docstrings' words on attributes."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        """A title made from a field's name says no more than the name."""
        return False

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> Schema:
        """Without the default of what is left out."""
        found = super().default_schema(schema)
        if found.get("default", ...) is None:
            del found["default"]
        return found

    def dict_schema(self, schema: core_schema.DictSchema) -> Schema:
        """No keys but those of the pattern."""
        found = super().dict_schema(schema)
        return {**found, "additionalProperties": False} if "patternProperties" in found else found

    def function_after_schema(self, schema: core_schema.AfterValidatorFunctionSchema) -> Schema:
        """With what a known check asks of a value."""
        found = super().function_after_schema(schema)
        return self.checked(found, schema["function"]["function"])

    def checked(self, node: Schema, check: Any) -> Schema:
        """What the node takes and a function lets pass."""
        return {**node, "uniqueItems": True} if check is without_repeats else node

    def model_schema(self, schema: core_schema.ModelSchema) -> Schema:
        """With the words of the docstring."""
        found, cls = super().model_schema(schema), schema["cls"]
        found.pop("description", None)
        summary, fields = words_on(cls)
        if summary:
            found["description"] = summary
        for name, said in fields.items():
            found["properties"][name] = {"description": said, **found["properties"][name]}
        return found


def words_on(model: type[BaseModel]) -> tuple[str, dict[str, str]]:
    """What a model's docstring says of it, and of its fields: `field: words.` and `field, field: words.`"""
    names = "|".join(map(re.escape, model.model_fields))
    begins = re.compile(rf"(?:^|(?<=[.] ))((?:{names})(?:, (?:{names}))*): ")
    summary, fields = "", {}
    for cls in reversed(model.__mro__):
        if not issubclass(cls, Strict) or cls is Strict or not vars(cls).get("__doc__"):
            continue
        summary, *found = begins.split(" ".join((cls.__doc__ or "").split()))
        for several, said in zip(found[::2], found[1::2], strict=True):
            fields.update(dict.fromkeys(several.split(", "), said[:1].upper() + said[1:].strip()))
    return summary.strip(), fields


class Book:
    """The named parts of a schema, and the variants that are made of them."""

    def __init__(self, models: Sequence[type[BaseModel]], generator: type[Generator]) -> None:
        _, found = models_json_schema([(model, "validation") for model in models], schema_generator=generator)
        self.parts: dict[str, Schema] = found["$defs"]

    def of(self, model: type[BaseModel]) -> Schema:
        """The part of a model."""
        return self.parts[model.__name__]

    def changed(self, node: Schema, mark: str, change: Callable[[Schema], Schema], in_lists: bool = True) -> Schema:
        """The node with a change made to all its parts; a reference leads to a changed copy of what it names."""
        if "$ref" in node:
            name = node["$ref"].removeprefix(DEFS)
            if not name.endswith(mark):
                if name + mark not in self.parts:
                    self.parts[name + mark] = self.changed(self.parts[name], mark, change, in_lists)
                name += mark
            return {**node, "$ref": DEFS + name}
        copy = dict(node)
        for key, value in node.items():
            if key in ("items", "prefixItems") and not in_lists:
                continue
            if key in ("properties", "patternProperties"):
                copy[key] = {n: self.changed(v, mark, change, in_lists) for n, v in value.items()}
            elif key in ("anyOf", "prefixItems"):
                copy[key] = [self.changed(v, mark, change, in_lists) for v in value]
            elif key in ("items", "additionalProperties") and isinstance(value, dict):
                copy[key] = self.changed(value, mark, change, in_lists)
        return change(copy)

    def overlay(self, node: Schema) -> Schema:
        """The node as a file or part that is laid over another may have it: any part of it, and null for any key."""
        return self.changed(node, OVERLAY, loosened, in_lists=False)

    def describe(self, node: Schema, keys: Mapping[str, str]) -> None:
        """Describe every key of a model: in its own words, in those given for it, or in those of its values."""
        for name, value in node["properties"].items():
            named = [self.parts[part].get("description", "") for part in references(value) if part in self.parts]
            node["properties"][name] = {"description": keys.get(name) or "".join(named[:1]), **value}

    def finished(self, root: Schema) -> Schema:
        """The root with those parts that it leads to."""
        needed: dict[str, Schema] = {}
        waiting = [root]
        while waiting:
            for name in references(waiting.pop()):
                if name not in needed:
                    needed[name] = self.parts[name]
                    waiting.append(self.parts[name])
        return {**root, "$defs": dict(sorted(needed.items()))}


def references(node: Any) -> Iterator[str]:
    """Names of the parts that a node leads to."""
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"].removeprefix(DEFS)
        node = list(node.values())
    if isinstance(node, list):
        for value in node:
            yield from references(value)


def ref(name: str) -> Schema:
    """A node that leads to a part."""
    return {"$ref": DEFS + name}


def either(node: Schema, other: Schema) -> Schema:
    """What the node takes and what the other takes."""
    rest = {key: value for key, value in node.items() if key not in NOTES}
    members = rest["anyOf"] if list(rest) == ["anyOf"] else [rest]
    if not rest or other in members or (other == EXPRESSION and {"type": "string"} in members):
        return node
    return {**{key: node[key] for key in NOTES if key in node}, "anyOf": [*members, other]}


def loosened(node: Schema) -> Schema:
    """Nothing is required, and every key may be null."""
    loose = {key: value for key, value in node.items() if key not in ("required", "minProperties", "default")}
    for key in ("properties", "patternProperties"):
        if key in node:
            loose[key] = {name: either(value, NULL) for name, value in node[key].items()}
    if isinstance(node.get("additionalProperties"), dict):
        loose["additionalProperties"] = either(node["additionalProperties"], NULL)
    return loose


def expressive(node: Schema) -> Schema:
    """Every value and every item may be an expression."""
    if "properties" in node:
        node["properties"] = {name: either(value, EXPRESSION) for name, value in node["properties"].items()}
    if "items" in node:
        node["items"] = either(node["items"], EXPRESSION)
    if "prefixItems" in node:
        node["prefixItems"] = [either(value, EXPRESSION) for value in node["prefixItems"]]
    return node


def plain(node: Schema) -> Schema:
    """No text may be an expression."""
    free = node.get("type") == "string" and "enum" not in node and re.search(node.get("pattern", ""), "{{ x }}")
    return {**node, "not": NO_EXPRESSION} if free else node
