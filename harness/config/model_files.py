"""Definitions of interatomic potentials in YAML files: the user's models/*.yaml, and suites/models/shipped.yaml."""

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
from harness.protocol.programs.labels import LabelsParameters
from harness.protocol.programs.models import ModelDefinition, ModelsParameters
from harness.protocol.registry import load_programs
from harness.protocol.types import NAME

USER_FOLDER = Path("models")
SHIPPED_FILE = Path("models") / "shipped.yaml"


def load_definitions() -> dict[str, dict[str, Any]]:
    """Return the definition of every model as plain data, by name; the user's models come first.

    Raises:
        UsageError: A file is invalid; the message lists all problems of all files.
    """
    files = [*sorted(USER_FOLDER.glob("*.yaml")), resources.get_resource_dir("suites") / SHIPPED_FILE]
    documents = [load_yaml(path, may_be_empty=True) for path in files]
    definitions: dict[str, dict[str, Any]] = {}
    locations: dict[str, str] = {}
    problems: list[Problem] = []
    for document in documents:
        for name in document.data:
            if name in locations:
                problems.append(
                    document.make_problem(
                        (name,), f"{locations[name]} also defines a model {name!r}; rename one of them"
                    )
                )
                continue
            definition, errors = _read_definition(document, name)
            problems += errors
            location = document.locate((name,))
            locations[name] = f"{location.path}:{location.line}"
            if definition is not None:
                definitions[name] = {**definition, "place": locations[name]}
    raise_problems(problems)
    return definitions


def _read_definition(document: Document, name: str) -> tuple[dict[str, Any] | None, list[Problem]]:
    """Return the definition of a model with absolute paths (None if it is not valid), and its problems."""
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


def _make_absolute(
    document: Document, data: dict[str, Any], key_path: tuple[str, ...], folder: Path
) -> Iterator[Problem]:
    """Replace a path in `data` relative to `folder` by the absolute path; yield a problem if there is no such file."""
    mapping = data
    for key in key_path[:-1]:
        mapping = mapping[key]
    path = os.path.abspath(folder / os.path.expanduser(mapping[key_path[-1]]))
    if os.path.isfile(path):
        mapping[key_path[-1]] = path
    else:
        names = resources.list_checkpoints() if key_path == ("checkpoint",) else []
        file_name = mapping[key_path[-1]]
        message = f"{'.'.join(key_path)}: no file {shorten(file_name)}{did_you_mean(file_name, names)}"
        yield document.make_problem(key_path, message)


def resolve_models(suite: Suite) -> Iterator[Problem]:
    """Set a suite's parameter `definitions` for the models that it names; yield a problem for each unknown name.

    Suites of other programs are not changed.
    """
    parameters = load_programs()[suite.program].parameters
    if parameters not in (ModelsParameters, LabelsParameters):
        return
    known = {**load_definitions(), **suite.parameters.get("definitions", {})}
    key = "models" if parameters is ModelsParameters else "calculator"
    key_path, values = suite.axes.get(key, (("parameters", key), [suite.parameters.get(key)]))
    models = [name for name, definition in known.items() if not definition.get("level_of_theory")]
    selected: dict[str, Any] = {}
    for number, names in enumerate(values):
        # the axis `calculator` has one name for each value, and the parameter `models` a list of names
        is_name = isinstance(names, str)
        for index, name in enumerate([names] if is_name else models if names is None else names):
            if name in known:
                selected[name] = known[name]
            else:
                message = f"unknown model {shorten(name)}{did_you_mean(str(name), known)}"
                position = (number,) * (key in suite.axes) if is_name else (index,)
                yield suite.document.make_problem((*key_path, *position), message)
    suite.parameters["definitions"] = selected
