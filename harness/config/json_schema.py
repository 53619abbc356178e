"""JSON Schemas (draft 2020-12) of suites and systems, by which editors complete and check them.

`python -m harness.config.json_schema` writes suites/suite.schema.json and systems/system.schema.json, which the first
line of every suite and system names.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any, get_args

from pydantic import create_model

from harness.config import resources, suite_validation, system
from harness.config.language import validation
from harness.config.language.schema_parts import (
    DRAFT,
    EXPRESSION,
    OVERLAY,
    Book,
    Generator,
    Schema,
    expressive,
    plain,
    ref,
    references,
    words_on,
)
from harness.config.suite import Number, Resources, Suite
from harness.config.system_file import System
from harness.protocol.registry import PROGRAMS, lists, partial
from harness.protocol.types import NAME, Word

FILES = {"suites": "suite.schema.json", "systems": "system.schema.json"}
EXTENDED: Schema = {"required": ["extends"]}
# What an overlay of `scale` may not change.
FIXED = ("name", "program", "scale", "extends")

EXTENDS = "A {} that this one is laid over, by name or file: mappings are merged, null takes a key away."
# Keys of which neither their model's docstring nor that of their values has something to say.
SUITE_KEYS = {
    "name": "Word by which the suite is run, and with which the names of its cases begin.",
    "title": "What it measures, in one line.",
    "description": "What it measures, at length.",
    "parameters": "What the program is given in every case; a value may be an expression.",
    "repeats": "How often every case is run.",
    "tags": "Words by which cases are selected.",
    "scale": "What differs on a system: its name, and what is laid over the suite there; null takes a key away.",
}
SYSTEM_KEYS = {
    "name": "Word by which the system is chosen.",
    "title": "What machine it is, in one line.",
    "source": "Where the site describes it.",
    "scheduler": "What jobs are given to; local: each is a process group on this machine.",
    "template": "The job script's Jinja2 template, a file beside this one.",
    "backend": "By which ranks talk to each other: system.backend in a suite.",
    "device": "On which ranks compute: system.device in a suite.",
    "settings": "Values that the user gives with -S, in HARNESS_* variables or in a file: settings.NAME in a line.",
    "environment": "Variables that every job exports; values are text, in quotes where they are numbers.",
}


class _Generator(Generator):
    def checked(self, node: Schema, check: Any) -> Schema:
        """Text that stands for a number is an expression."""
        if check is get_args(Number)[1].func:
            return {"anyOf": [EXPRESSION if member == {"type": "string"} else member for member in node["anyOf"]]}
        return super().checked(node, check)


def suite_schema() -> Schema:
    """What a file of suites/ may hold."""
    typed = {program: _typed(program) for program in PROGRAMS}
    book = Book([Suite, Resources, *typed.values()], _Generator)
    whole = book.of(Suite)
    properties = whole["properties"]
    _forbid_expressions(book, properties, (*suite_validation.PLACES, "where"))
    properties["program"] = {"enum": list(PROGRAMS)}
    properties["resources"] = book.changed(ref("Resources"), "-or-expressions", expressive)
    names = {"pattern": NAME}
    properties["scale"] = {"type": "object", "propertyNames": names, "additionalProperties": ref("scale" + OVERLAY)}
    programs = "; ".join(f"{name}: {words_on(model)[0].rstrip('.')}" for name, model in PROGRAMS.items())
    book.describe(whole, SUITE_KEYS | {"program": f"What its cases run. {programs}."})
    book.parts["scale" + OVERLAY] = {
        "type": "object",
        "properties": {n: value for n, value in book.overlay(whole)["properties"].items() if n not in FIXED},
        "additionalProperties": False,
    }
    for program, model in typed.items():
        _add_program(book, program, book.of(model))
    known = [{"if": _is(name), "then": _by_extension(name)} for name in PROGRAMS]
    inherited = {"if": {"required": ["program"]}, "else": {"anyOf": [ref(name + OVERLAY) for name in PROGRAMS]}}
    return book.finished({**_root(book, "Suite", EXTENDS.format("suite")), "allOf": [*known, inherited]})


def _forbid_expressions(book: Book, properties: dict[str, Schema], places: Collection[str]) -> None:
    """Let text be an expression only under the keys where one has a meaning."""
    for key in properties.keys() - places:
        properties[key] = book.changed(properties[key], "-plain", plain)


def _typed(program: str) -> type[Suite]:
    """Suites of one program."""
    return create_model(
        f"{program}_suite",
        __base__=Suite,
        parameters=(partial(program), None),
        matrix=(lists(program), None),
        zips=(dict[Word, lists(program)], None),  # type: ignore[arg-type, misc]
    )


def _add_program(book: Book, program: str, typed: Schema) -> None:
    """Add a part with what is particular to suites of a program, and another for files that extend such a suite."""
    properties = typed["properties"]
    special = {"parameters": book.changed(properties["parameters"], "-or-expressions", expressive)}
    for name in ("matrix", "zips"):
        special[name] = book.changed(properties[name], "-plain", plain)
    scalar = {"anyOf": [{"type": "boolean"}, {"type": "number"}, plain({"type": "string"})]}
    axis = {"type": "array", "minItems": 1, "items": scalar, "description": "An axis that expressions read."}
    for name in references(special["matrix"]):
        book.parts[name] |= {"propertyNames": {"pattern": validation.IDENTIFIER}, "additionalProperties": axis}
    special["scale"] = {"type": "object", "additionalProperties": ref(program + OVERLAY)}
    needed = [_somewhere(n) for n, field in PROGRAMS[program].model_fields.items() if field.is_required()]
    book.parts[program] = {"properties": special, **({"allOf": needed} if needed else {})}
    book.parts[program + OVERLAY] = book.overlay({"properties": special})


def _somewhere(name: str) -> Schema:
    """That a parameter stands under parameters, matrix, or one of zips."""
    direct = [{"required": [kind], "properties": {kind: {"required": [name]}}} for kind in ("parameters", "matrix")]
    nowhere = {"additionalProperties": {"not": {"required": [name]}}}
    return {"anyOf": [*direct, {"required": ["zips"], "properties": {"zips": {"not": nowhere}}}]}


def _is(program: str) -> Schema:
    return {"required": ["program"], "properties": {"program": {"const": program}}}


def _by_extension(name: str) -> Schema:
    return {"if": EXTENDED, "then": ref(name + OVERLAY), "else": ref(name)}


def _root(book: Book, name: str, extends: str) -> Schema:
    """A file: the whole model or, where it extends another, any part of it."""
    whole = book.parts[name]
    # The root says which keys there are: were it said here too, an editor would tell of an unknown one twice.
    del whole["additionalProperties"]
    book.overlay(ref(name))
    properties = {"extends": {"description": extends, "type": "string"}, **dict.fromkeys(whole["properties"], True)}
    head = {"title": name, "description": whole["description"], "type": "object", "properties": properties}
    return {"$schema": DRAFT, **head, "additionalProperties": False, **_by_extension(name)}


def system_schema() -> Schema:
    """What a file of systems/ may hold."""
    book = Book([System], _Generator)
    _forbid_expressions(book, book.of(System)["properties"], system.PLACES)
    ranks = book.parts["Node"]["properties"]["ranks_per_node"]
    ranks["anyOf"] = [{"type": "integer", "minimum": 1}, EXPRESSION]
    book.describe(book.of(System), SYSTEM_KEYS)
    return book.finished(_root(book, "System", EXTENDS.format("system")))


def text(schema: Schema) -> str:
    """The schema as its file holds it."""
    return json.dumps(schema, indent=1, ensure_ascii=False) + "\n"


def files() -> dict[Path, str]:
    """The files of both schemas and what they hold."""
    found = {"suites": suite_schema(), "systems": system_schema()}
    return {resources.folder(kind) / FILES[kind]: text(schema) for kind, schema in found.items()}


if __name__ == "__main__":
    for path, written in files().items():
        path.write_text(written, encoding="utf-8")
