"""Suite: what to measure, from suites/*.yaml."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, create_model
from ruamel.yaml.comments import CommentedMap

from harness import shipped, yamlfile
from harness.errors import UsageError, did_you_mean
from harness.programs import PROGRAMS, Strict, lists, partial

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]

# Parameters that hold the path of a file, or the name of a shipped checkpoint.
FILES = ("checkpoint", "structures")


class Suite(Strict):
    """One experiment: a program, the parameters all its cases share, and those that the cases run through.

    minutes: wall time that one case may take before its job is stopped.
    """

    name: Name
    title: str
    description: str = ""
    program: str
    parameters: dict[str, Any] = Field(default_factory=dict)
    matrix: dict[str, list[Any]] = Field(default_factory=dict)
    minutes: Annotated[float, Field(gt=0)] = 60.0
    tags: list[Name] = Field(default_factory=list)


def load(path: Path) -> Suite:
    """Read and check a suite; raises UsageError with a line per problem."""
    tree = yamlfile.parse(path)
    program = tree.get("program")
    if program not in PROGRAMS:
        said = f"unknown program {program!r}" if "program" in tree else "'program' is missing"
        raise UsageError(f"{path}:{yamlfile.position(tree, ['program'])}: {said}{did_you_mean(str(program), PROGRAMS)}")
    model = create_model(
        "SuiteFile",
        __base__=Suite,
        parameters=(partial(program), Field(default_factory=partial(program))),
        matrix=(lists(program), Field(default_factory=lists(program))),
    )
    checked = yamlfile.validate(path, tree, model)
    plain = checked.model_dump(exclude_unset=True, exclude_none=True)
    both = set(plain.get("parameters", {})) & set(plain.get("matrix", {}))
    if both:
        where = yamlfile.position(tree, ["matrix", sorted(both)[0]])
        raise UsageError(f"{path}:{where}: {sorted(both)[0]!r} stands in both parameters and matrix")
    given = {**plain.get("parameters", {}), **plain.get("matrix", {})}
    for name, field in PROGRAMS[program].model_fields.items():
        if field.is_required() and name not in given:
            raise UsageError(f"{path}:1:1: program {program!r} needs {name!r} under parameters or matrix")
    place_files(path, tree, plain)
    return Suite.model_validate(plain)


def place_files(path: Path, tree: CommentedMap, plain: dict[str, Any]) -> None:
    """Make the files that parameters name absolute, relative to the suite; raises UsageError if one is absent."""
    for name in FILES:
        parameters, matrix = plain.get("parameters", {}), plain.get("matrix", {})
        if name in parameters:
            parameters[name] = _placed(path, parameters[name], yamlfile.position(tree, ["parameters", name]))
        for k, value in enumerate(matrix.get(name, [])):
            matrix[name][k] = _placed(path, value, yamlfile.position(tree, ["matrix", name, k]))


def _placed(path: Path, value: str, where: str) -> str:
    if value in shipped.checkpoints():
        return value
    found = (path.parent / value).resolve()
    if not found.is_file():
        raise UsageError(f"{path}:{where}: {value}: no such file{did_you_mean(value, shipped.checkpoints())}")
    return str(found)
