"""Interatomic potentials that YAML files define: the user's models/*.yaml, and suites/models/shipped.yaml."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness.config import resources
from harness.config.document import PATTERNS, Document, Problem, check_model, raise_problems
from harness.config.suite_file import Suite
from harness.config.yaml_loader import load_yaml
from harness.protocol.errors import did_you_mean, shorten
from harness.protocol.programs.models import ModelDefinition, ModelsParameters
from harness.protocol.registry import load_programs
from harness.protocol.types import NAME

FOLDER = Path("models")
SHIPPED = Path("models") / "shipped.yaml"


def load_definitions() -> dict[str, dict[str, Any]]:
    """Return every defined model by name as plain data, the user's first.

    Raises:
        UsageError: a file has problems; the message has all of them.
    """
    files = [*sorted(FOLDER.glob("*.yaml")), resources.resource_dir("suites") / SHIPPED]
    documents = [load_yaml(path, may_be_empty=True) for path in files]
    definitions: dict[str, dict[str, Any]] = {}
    places: dict[str, str] = {}
    problems: list[Problem] = []
    for document in documents:
        for name in document.data:
            if name in places:
                problems.append(
                    document.make_problem((name,), f"{places[name]} defines a model {name!r} too; rename one")
                )
                continue
            definition, errors = _read_definition(document, name)
            problems += errors
            location = document.locate((name,))
            places[name] = f"{location.path}:{location.line}"
            if definition is not None:
                definitions[name] = {**definition, "place": places[name]}
    raise_problems(problems)
    return definitions


def _read_definition(document: Document, name: str) -> tuple[dict[str, Any] | None, list[Problem]]:
    """Return a model with absolute paths, or None and what is wrong with it."""
    if not isinstance(document.data[name], dict):
        return None, [
            document.make_problem((name,), f"{name}: expected a mapping such as {{module: ..., class_name: ...}}")
        ]
    part = document.subdocument((name,))
    definition, problems = check_model(part, ModelDefinition)
    if not re.fullmatch(NAME, name):
        message = f"{shorten(name)} is not a name: expected {PATTERNS[NAME]}"
        problems.append(document.make_problem((name,), message))
    if definition is None or problems:
        return None, problems
    data = definition.model_dump(mode="json", exclude_unset=True)
    folder = document.path.parent
    if definition.checkpoint is not None and definition.checkpoint not in resources.list_checkpoints():
        problems += _make_absolute(part, data, ("checkpoint",), folder)
    if definition.hydragnn is not None:
        files = ("checkpoint", "config", *(("gate",) if definition.hydragnn.gate is not None else ()))
        for key in files:
            problems += _make_absolute(part, data, ("hydragnn", key), folder)
    if definition.python is not None:
        problems += _make_absolute(part, data, ("python",), folder)
    return data, problems


def _make_absolute(document: Document, data: dict[str, Any], at: tuple[str, ...], folder: Path) -> Iterator[Problem]:
    """Replace a path relative to the file by an absolute one; yield a problem if there is no such file."""
    holder = data
    for key in at[:-1]:
        holder = holder[key]
    path = os.path.abspath(folder / os.path.expanduser(holder[at[-1]]))
    if os.path.isfile(path):
        holder[at[-1]] = path
    else:
        names = resources.list_checkpoints() if at == ("checkpoint",) else []
        message = f"{'.'.join(at)}: no file {shorten(holder[at[-1]])}{did_you_mean(holder[at[-1]], names)}"
        yield document.make_problem(at, message)


def resolve_models(suite: Suite) -> Iterator[Problem]:
    """Add the definitions of the models that a suite names to its parameters; yield a problem for each unknown name."""
    if load_programs()[suite.program].parameters is not ModelsParameters:
        return
    known = {**load_definitions(), **suite.parameters.get("definitions", {})}
    at, values = suite.axes.get("models", (("parameters", "models"), [suite.parameters.get("models")]))
    chosen: dict[str, Any] = {}
    for names in values:
        for index, name in enumerate(known if names is None else names):
            if name in known:
                chosen[name] = known[name]
            else:
                message = f"unknown model {shorten(name)}{did_you_mean(str(name), known)}"
                yield suite.document.make_problem((*at, index), message)
    suite.parameters["definitions"] = chosen
