"""JSON Schemas (draft 2020-12), with which editors complete and check suites and systems.

`python -m harness.config.json_schema` writes suites/suite.schema.json and systems/system.schema.json, which the first
line of every suite and system names; the build of a wheel does the same. Neither file is committed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, models_json_schema
from pydantic_core import core_schema

from harness.config import resources, suite, system
from harness.config.document import VARIABLE
from harness.config.suite_file import Resources, Suite, check_number
from harness.config.system_file import System
from harness.protocol.parameters import find_replaced_nulls
from harness.protocol.registry import load_programs
from harness.protocol.types import NAME, check_unique

Schema = dict[str, Any]
FILES = {"suites": "suite.schema.json", "systems": "system.schema.json"}
DRAFT = "https://json-schema.org/draft/2020-12/schema"
REF = "#/$defs/"
# The suffix of the definitions that accept expressions.
TEMPLATE_SUFFIX = "-template"
EXPRESSION: Schema = {"type": "string", "pattern": r"\{\{[\s\S]*\}\}"}
# Matches any text that the harness would read as an expression, even an invalid one.
EXPRESSION_START: Schema = {"pattern": r"\{[{%#]"}
EXTENDS = "A {} that this one extends, by name or file: mappings are merged, null removes a key."
OVERLAYS = (
    "Overlays by name of the system: their keys replace those of the suite on that system, and null removes a key."
)


class Generator(GenerateJsonSchema):
    """Generator of schemas that include the checks of validator functions, which pydantic ignores."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        """Leave out titles that repeat the name of a field."""
        return False

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> Schema:
        """Leave out the default null."""
        generated = super().default_schema(schema)
        if generated.get("default", ...) is None:
            del generated["default"]
        return generated

    def dict_schema(self, schema: core_schema.DictSchema) -> Schema:
        """Refuse keys that do not match the pattern."""
        generated = super().dict_schema(schema)
        return {**generated, "additionalProperties": False} if "patternProperties" in generated else generated

    def function_after_schema(self, schema: core_schema.AfterValidatorFunctionSchema) -> Schema:
        """Add the checks of known validator functions."""
        generated = super().function_after_schema(schema)
        check: Any = schema["function"]["function"]
        if check is check_unique:
            return {**generated, "uniqueItems": True}
        if check is check_number:
            members = [EXPRESSION if member == {"type": "string"} else member for member in generated["anyOf"]]
            return {"anyOf": members}
        return generated


def build_suite_schema() -> Schema:
    """Return the schema of suites."""
    models = {name: program.parameters for name, program in load_programs().items()}
    definitions = _build_definitions([Suite, Resources, *models.values()])
    root = definitions["Suite"]
    properties = root["properties"]
    _forbid_expressions(definitions, root, (*suite.EXPRESSION_SECTIONS, "where"))
    programs = "; ".join(f"{name}: {_summarize(model)}" for name, model in models.items())
    properties["program"] = {"enum": list(models), "description": f"The program that its cases run. {programs}."}
    properties["resources"] |= {"$ref": f"{REF}Resources{TEMPLATE_SUFFIX}"}
    keys = {
        name: {"description": value["description"]}
        for name, value in properties.items()
        if name not in suite.FIXED_KEYS
    }
    definitions["Overlay"] = {"type": "object", "properties": keys, "additionalProperties": False}
    overlays = {"propertyNames": {"pattern": NAME}, "additionalProperties": {"$ref": f"{REF}Overlay"}}
    properties["overlays"] = {"type": "object", "description": OVERLAYS, **overlays}
    for program, model in models.items():
        definitions[program] = _build_program(model, definitions)
    root["allOf"] = [
        {
            "if": {"required": ["program"], "properties": {"program": {"const": program}}},
            "then": {"$ref": REF + program},
        }
        for program in models
    ]
    return _build_root("Suite", definitions)


def _build_definitions(models: Collection[type[BaseModel]]) -> dict[str, Schema]:
    """Return the definitions of models, and variants of them in which every value may be an expression."""
    _, generated = models_json_schema([(model, "validation") for model in models], schema_generator=Generator)
    definitions: dict[str, Schema] = generated["$defs"]
    templates = {name + TEMPLATE_SUFFIX: _transform(part, _allow_expressions) for name, part in definitions.items()}
    return definitions | {name: _rename_refs(part) for name, part in templates.items()}


def _summarize(model: type[BaseModel]) -> str:
    return " ".join((model.__doc__ or "").split("\n\n")[0].split()).rstrip(".")


def _build_program(model: type[BaseModel], definitions: dict[str, Schema]) -> Schema:
    """Return the schema of the keys that depend on the program of a suite."""
    axis = {"anyOf": [{"type": "boolean"}, {"type": "number"}, _forbid({"type": "string"})]}
    free_axis = {"type": "array", "minItems": 1, "items": axis, "description": "An axis that expressions read."}
    fields = definitions[model.__name__]["properties"]
    axes = {
        "type": "object",
        "properties": {n: {"type": "array", "minItems": 1, "items": _transform(f, _forbid)} for n, f in fields.items()},
        "propertyNames": {"pattern": VARIABLE},
        "additionalProperties": free_axis,
    }
    definitions[f"{model.__name__}-axes"] = axes
    axes_ref = {"$ref": f"{REF}{model.__name__}-axes"}
    template = {**definitions[model.__name__ + TEMPLATE_SUFFIX]}
    required = template.pop("required", [])
    replaced = find_replaced_nulls(model)
    template["properties"] = {n: _allow_null(f) if n in replaced else f for n, f in template["properties"].items()}
    properties = {"parameters": template, "matrix": axes_ref, "zips": {"additionalProperties": axes_ref}}
    return {"properties": properties, **({"allOf": [_require(name) for name in required]} if required else {})}


def _allow_null(schema: Schema) -> Schema:
    """Return the schema of a parameter that may also be null, which stands for its default."""
    annotations: Schema = {key: schema[key] for key in ("description", "default") if key in schema}
    return {
        **annotations,
        "anyOf": [{key: value for key, value in schema.items() if key not in annotations}, {"type": "null"}],
    }


def _require(name: str) -> Schema:
    """Return a schema that requires a parameter in parameters, in matrix, or in one of zips."""
    sections = [{"required": [kind], "properties": {kind: {"required": [name]}}} for kind in ("parameters", "matrix")]
    absent = {"additionalProperties": {"not": {"required": [name]}}}
    return {"anyOf": [*sections, {"required": ["zips"], "properties": {"zips": {"not": absent}}}]}


def build_system_schema() -> Schema:
    """Return the schema of systems."""
    definitions = _build_definitions([System])
    _forbid_expressions(definitions, definitions["System"], system.EXPRESSION_SECTIONS)
    ranks = definitions["Node"]["properties"]["ranks_per_node"]
    ranks["anyOf"] = [{"type": "integer", "minimum": 1}, EXPRESSION]
    return _build_root("System", definitions)


def _build_root(name: str, definitions: dict[str, Schema]) -> Schema:
    """Return the schema of a file: the complete model or, if the file extends another, any of its keys."""
    root = definitions[name]
    # the root refuses unknown keys; if the definition did too, an editor would report each of them twice
    del root["additionalProperties"]
    keys = {key: {"description": value.get("description", "")} for key, value in root["properties"].items()}
    return {
        "$schema": DRAFT,
        "title": name,
        "description": root["description"],
        "type": "object",
        "properties": {"extends": {"type": "string", "description": EXTENDS.format(name.lower())}, **keys},
        "additionalProperties": False,
        "if": {"not": {"required": ["extends"]}},
        "then": {"$ref": REF + name},
        "$defs": dict(sorted(definitions.items())),
    }


def _forbid_expressions(definitions: dict[str, Schema], root: Schema, sections: Collection[str]) -> None:
    """Refuse expressions in all sections of the root except `sections`."""
    for key in root["properties"].keys() - set(sections):
        node = root["properties"][key] = _transform(root["properties"][key], _forbid)
        for name in re.findall(rf'"{re.escape(REF)}([^"]+)"', json.dumps(node)):
            definitions[name] = _transform(definitions[name], _forbid)


def _transform(node: Any, change: Callable[[Schema], Schema]) -> Any:
    """Return a copy of a schema with a change applied to each of its parts."""
    if isinstance(node, list):
        return [_transform(item, change) for item in node]
    if not isinstance(node, dict):
        return node
    copy = {
        key: {name: _transform(field, change) for name, field in value.items()}
        if key in ("properties", "patternProperties")
        else _transform(value, change)
        for key, value in node.items()
    }
    return change(copy)


def _rename_refs(node: Any) -> Any:
    """Return a copy of a schema that refers to the definitions that accept expressions."""
    return json.loads(re.sub(rf'("\$ref": "{re.escape(REF)}[^"]+)"', rf'\1{TEMPLATE_SUFFIX}"', json.dumps(node)))


def _allow_expressions(node: Schema) -> Schema:
    """Accept an expression for every value and every item."""
    if "properties" in node:
        node["properties"] = {name: _add_expression(value) for name, value in node["properties"].items()}
    if "items" in node:
        node["items"] = _add_expression(node["items"])
    if "prefixItems" in node:
        node["prefixItems"] = [_add_expression(value) for value in node["prefixItems"]]
    return node


def _add_expression(node: Schema) -> Schema:
    """Return a schema that also accepts an expression, unless it accepts any value or text already."""
    notes: Schema = {key: node[key] for key in ("title", "description", "default") if key in node}
    rest = {key: value for key, value in node.items() if key not in notes}
    members = rest["anyOf"] if list(rest) == ["anyOf"] else [rest]
    return node if not rest or {"type": "string"} in members else {**notes, "anyOf": [*members, EXPRESSION]}


def _forbid(node: Schema) -> Schema:
    """Refuse text that contains an expression, unless the schema of the text excludes expressions already."""
    may_be_expression = (
        node.get("type") == "string" and "enum" not in node and re.search(node.get("pattern", ""), "{{ x }}")
    )
    return {**node, "not": EXPRESSION_START} if may_be_expression else node


def build_files() -> dict[Path, str]:
    """Return the paths of both schema files and their contents."""
    schemas = {"suites": build_suite_schema(), "systems": build_system_schema()}
    return {
        resources.get_resource_dir(kind) / FILES[kind]: json.dumps(schema, indent=1, ensure_ascii=False) + "\n"
        for kind, schema in schemas.items()
    }


def write_files() -> None:
    """Write both schemas next to the suites and systems."""
    for path, text in build_files().items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write_files()
