"""A system's settings: what the user gives with -S, in HARNESS_* variables, or in the user's file."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, model_validator

from harness.config import validation, yaml_loader
from harness.config.document import KeyPath, raise_problems
from harness.protocol.errors import UsageError, did_you_mean, shortened
from harness.protocol.types import StrictModel

PREFIX = "HARNESS_"
# Values become words of job scripts: a shell may expand variables in them and nothing else.
SAFE = re.compile(r"(?:[\w./:@%+=,~-]|\$[A-Za-z_]\w*|\$\{[A-Za-z_]\w*\})*", re.ASCII)
SAFE_CHARACTERS = "letters, digits, $NAME and any of ./:@%+=,~_-"
INTEGER = re.compile(r"[-+]?[0-9]{1,18}", re.ASCII)
DECIMAL = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?", re.ASCII)

Value = str | int | float


def check_safe(value: Value | None) -> Value | None:
    """Return the value; raises ValueError for text that a shell would interpret."""
    if isinstance(value, str) and not SAFE.fullmatch(value):
        raise ValueError(f"expected {SAFE_CHARACTERS}, got {shortened(value)}")
    return value


class Setting(StrictModel):
    """A value that the user may give, and must give if there is no default."""

    help: Annotated[str, Field(pattern=validation.ONE_LINE)]
    """What it is, in one line."""
    default: Annotated[Value | None, AfterValidator(check_safe)] = None
    """Its value if the user gives none; others must be of the same type."""
    identity: bool = False
    """Whether it changes what is measured, so that cases with another value are other cases."""

    @model_validator(mode="after")
    def _has_identity(self) -> Setting:
        if self.identity and self.default is None:
            raise ValueError("a setting with identity needs a default, as the ids of cases depend on its value")
        return self


def variable_name(name: str) -> str:
    """Return the environment variable of a setting."""
    return PREFIX + name.upper()


def describe_sources(system: str, name: str) -> str:
    """Return the places where the user may give a setting of a system."""
    return f"-S {name}=..., {variable_name(name)}, or `{system}: {{{name}: ...}}` in {user_file()}"


def user_file() -> Path:
    """Return the user's file: a mapping from settings to values, or from systems to such mappings."""
    base = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(base) / "gfm-harness" / "settings.yaml"


def resolve_settings(
    system: str, declared: Mapping[str, Setting], given: Mapping[str, str]
) -> tuple[dict[str, Value], dict[str, str]]:
    """Return the values of settings, and for each setting without one a message to the user; raises UsageError."""
    errors = [
        f"-S {name}: no such setting of system {system!r}{did_you_mean(name, declared)}"
        for name in given
        if name not in declared
    ]
    user_values = _load_user_values(system, declared)
    values: dict[str, Value] = {}
    missing = {}
    for name, setting in declared.items():
        variable = variable_name(name)
        sources = ((f"-S {name}", given.get(name)), (variable, os.environ.get(variable)))
        source, text = next(((where, text) for where, text in sources if text is not None), ("", None))
        if text is not None:
            try:
                values[name] = _parse_value(source, setting, text)
            except UsageError as error:
                errors.append(str(error))
        elif name in user_values:
            values[name] = user_values[name]
        elif setting.default is not None:
            values[name] = setting.default
        else:
            sources_text = describe_sources(system, name)
            missing[name] = f"system {system!r} needs the setting {name!r} ({setting.help}): give {sources_text}"
    if errors:
        raise UsageError("\n".join(errors))
    return values, missing


def _load_user_values(system: str, declared: Mapping[str, Setting]) -> dict[str, Value]:
    path = user_file()
    if not path.is_file():
        return {}
    document = yaml_loader.load_yaml(path, may_be_empty=True, read=yaml_loader.read_text)
    of_system = document.data.get(system, {})
    problems = []
    if not isinstance(of_system, dict):
        problems.append(document.problem((system,), f"{system}: expected a mapping from settings to values"))
        of_system = {}
    given: dict[KeyPath, Any] = {(k,): v for k, v in document.data.items() if k in declared and k not in of_system}
    given |= {(system, name): value for name, value in of_system.items()}
    values = {}
    for at, value in given.items():
        name = str(at[-1])
        if name not in declared:
            message = f"{name}: no such setting of system {system!r}{did_you_mean(name, declared)}"
            problems.append(document.problem(at, message))
        elif not isinstance(value, str):
            problems.append(document.problem(at, f"{name}: expected text or a number, got {shortened(value)}"))
        else:
            try:
                values[name] = _parse_value(name, declared[name], value)
            except UsageError as error:
                problems.append(document.problem(at, str(error)))
    raise_problems(problems)
    return values


def _parse_value(source: str, setting: Setting, text: str) -> Value:
    """Return the text as the type of the setting's default; raises UsageError that begins with the source."""
    default = setting.default
    if default is None or isinstance(default, str):
        if not SAFE.fullmatch(text) or (default is None and not text):
            raise UsageError(f"{source}: expected {SAFE_CHARACTERS}, got {shortened(text)}")
        return text
    if isinstance(default, int) and INTEGER.fullmatch(text):
        return int(text)
    if isinstance(default, float) and DECIMAL.fullmatch(text) and math.isfinite(float(text)):
        return float(text)
    kind = "a whole number" if isinstance(default, int) else "a number"
    raise UsageError(f"{source}: expected {kind}, such as {default!r}, got {shortened(text)}")
